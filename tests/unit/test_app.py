"""The command line as Hydra's users know it: flags, a user's own configuration files, sweeps, shell completion."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.integration.runs import is_refused, run_here
from tests.unit.conftest import composed
from visurf_ray.config.app import run_app
from visurf_ray.config.choices import Layout
from visurf_ray.config.schema import Config, EvaluateConfig, to_dict
from visurf_ray.errors import UserError
from visurf_ray.evaluate import set_defaults

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str, module: str = "train", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an entry point in a folder of its own."""
    command = [sys.executable, "-m", f"visurf_ray.{module}", *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=variables)


@pytest.fixture
def own(tmp_path) -> Path:
    """A user's folder of configuration files: a task, an experiment and a primary configuration."""
    folder = tmp_path / "own"
    (folder / "task").mkdir(parents=True)
    (folder / "task" / "kettles.yaml").write_text("defaults: [non_object]\ntrain: /data/kettles.jsonl\n")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "short.yaml").write_text("# @package _global_\ntrain:\n  steps: 7\n")
    (folder / "experiment" / "bare.yaml").write_text("train:\n  steps: 7\n")
    (folder / "mine.yaml").write_text("defaults: [config]\nseed: 5\n")
    (folder / "task" / "damaged.yaml").write_text("defaults: [non_object\n")
    (folder / "task" / "misspelt.yaml").write_text("defaults: [non_object]\npromt: plain\n")
    return folder


def test_the_configuration_is_printed_and_nothing_written(tmp_path):
    done = run(tmp_path, "seed=1", "--cfg", "job", "--resolve", "seed=3")
    assert done.returncode == 0 and "output_dir: outputs/visurf-seed3" in done.stdout and done.stderr == ""
    assert "checkpoint: null" in run(tmp_path, "--cfg", "job", module="evaluate").stdout
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_options_of_each_group(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "method: chord, cispo, dapo, dft, gspo, hpt," in done.stdout and "learning_rate: 6.0e-05" in done.stdout


def test_info_shows_where_the_configuration_comes_from(tmp_path, own):
    done = run(tmp_path, "--info", "searchpath", "--config-dir", str(own))
    assert done.returncode == 0 and str(own) in done.stdout


def test_a_users_own_groups_stand_beside_ours(tmp_path, own):
    done = run(tmp_path, "--config-dir", "own", "--cfg", "job", "task=kettles", "+experiment=short", "method=rlvr")
    assert done.returncode == 0, done.stderr
    for line in ("train: /data/kettles.jsonl", "steps: 7", "name: rlvr", "prompt: detailed"):
        assert line in done.stdout
    done = run(tmp_path, "--config-dir", "own", "--config-name", "mine", "--cfg", "job")
    assert "seed: 5" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-dir", "nowhere"], "--config-dir: there is no folder"),
        (["--config-name", "confg"], "--config-name=confg: there is no such file. Did you mean 'config'?"),
        (["--config-dir", "own", "task=misspelt"], "task.promt: In 'task/misspelt': ConfigKeyError"),
        (["--config-dir", "own", "+experiment=bare"], "+experiment=bare: begin the file with the line `# @package _gl"),
        (["--config-dir", "own", "task=damaged"], "while parsing a flow sequence"),
        (["seed=???"], "output_dir: MissingMandatoryValue while resolving interpolation"),
        (["method=glob(*)"], "Sweep parameters 'method=glob(*)' requires --multirun"),
        (["eval.every='${.max_tokens}'", "learner.zero_stage=9"], "learner.zero_stage=9 must be at least 1"),
        (["--config-dir", "own", "task=kettle"], "unknown task 'kettle'. Did you mean 'kettles'?"),
        (["--train.steps=3"], "there is no flag --train.steps=3: a setting is written without dashes, KEY=VALUE"),
        (["rollout.nn=3"], "there is no configuration key 'rollout.nn'. Did you mean 'rollout.n'?"),
        (["+rollout.nn=3"], "there is no configuration key 'rollout.nn'. Did you mean 'rollout.n'?"),
        (["-m", "method=visurf,rlv"], "unknown method 'rlv'. Did you mean 'rlvr'?"),
        (["-m", "output_dir=a,b"], "output_dir cannot be swept"),
        (["-m", "++output_dir=a,b"], "output_dir cannot be swept"),
        (["output_dir=a,b"], "Ambiguous value for argument 'output_dir=a,b'"),
        (["-m", "method=glob(x*)"], "the sweep has no runs: a glob"),
        (["--config-name", "evaluate"], "--config-name=evaluate is no configuration of this program"),
        (["-m", "seed=1,2", "rollout.nn=3"], "there is no configuration key 'rollout.nn'. Did you mean 'rollout.n'?"),
        (["train.steps=three"], "train.steps=three: Value 'three' of type 'str' could not be converted to Integer"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(tmp_path, own, arguments, message):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")


def test_a_sweep_refuses_each_run_by_its_name_and_goes_on(tmp_path):
    done = run(tmp_path, "-m", "learner.zero_stage=4,5", "output_dir=runs")
    assert done.returncode == 2
    assert [line for line in done.stdout.splitlines() if line] == [
        "run learner.zero_stage-4",
        "run learner.zero_stage-5",
    ]
    assert [line.split(" must")[0] for line in done.stderr.splitlines()] == [
        "error: learner.zero_stage=4",
        "error: learner.zero_stage=5",
    ]


def test_the_shell_completes_groups_options_and_keys(tmp_path):
    def completed(words: str) -> str:
        command = [str(Path(sys.executable).with_name("visurf-train")), "-sc", "query=bash"]
        environment = os.environ | {"COMP_LINE": words, "COMP_POINT": str(len(words))}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment).stdout

    assert {"method=sft", "method=visurf"} <= set(completed("visurf-train method=").split())
    assert "learner.learning_rate=" in completed("visurf-train learner.learn").split()


def test_an_error_of_the_task_itself_is_raised_and_not_taken_for_a_wrong_command_line(monkeypatch, tmp_path):
    def task(config: Config, overrides: Sequence[str]) -> None:
        raise ValueError(f"a defect at seed {config.seed}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "seed=3"])
    with pytest.raises(ValueError, match="a defect at seed 3"):
        run_app(task, Config)
    monkeypatch.setattr("sys.argv", ["train", "-m", "seed=4,5"])
    with pytest.raises(ValueError, match="a defect at seed 4"):
        run_app(task, Config)


def test_each_run_of_a_sweep_gets_a_folder_that_needs_no_quotes(monkeypatch, tmp_path):
    folders = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "-m", "method=visurf,rlvr", "seed=1,2", "output_dir=runs"])
    assert run_app(lambda config, overrides: folders.append(config.output_dir), Config) == 0
    assert folders == [
        f"{tmp_path}/runs/method-{method}_seed-{seed}" for method in ("visurf", "rlvr") for seed in (1, 2)
    ]
    assert composed(f"output_dir={folders[0]}").output_dir == folders[0]


@pytest.mark.parametrize("error", [ConnectionResetError("Connection lost"), UserError("an actor is gone")])
def test_ctrl_c_ends_a_sweep_also_if_the_end_of_its_run_fails(monkeypatch, tmp_path, capsys, error):
    monkeypatch.setattr(sys, "argv", ["train", "-m", "seed=1,2", f"output_dir={tmp_path / 'sweep'}"])
    seeds = []

    def task(config: Config, overrides: Sequence[str]) -> None:
        seeds.append(config.seed)
        try:
            raise KeyboardInterrupt
        finally:
            raise error

    assert run_app(task, Config) == 130
    assert seeds == [1] and capsys.readouterr().err.strip() == "interrupted"


def test_runs_of_a_sweep_never_share_a_folder(monkeypatch, tmp_path):
    folders = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "-m", "task.train=/a/b,/a-b", "++output_dir=runs"])
    assert run_app(lambda config, overrides: folders.append(config.output_dir), Config) == 0
    assert folders == [f"{tmp_path}/runs/0_task.train--a-b", f"{tmp_path}/runs/1_task.train--a-b"]
    monkeypatch.setattr("sys.argv", ["train", "-m", "task.train='/训','/练'", "output_dir=runs"])
    assert run_app(lambda config, overrides: folders.append(config.output_dir), Config) == 0
    assert folders[2:] == [f"{tmp_path}/runs/{number}_task.train-----" for number in (0, 1)]


def test_an_evaluation_ignores_the_folder_and_the_examples_of_an_experiment():
    config = to_evaluate()
    set_defaults(config, ["+experiment=paper", "checkpoint=runs/a/export"])
    assert (config.output_dir, config.eval.examples) == ("runs/a/export-evaluation", None)
    config = to_evaluate()
    set_defaults(config, ["checkpoint=runs/a/export", "output_dir=there", "eval.examples=9"])
    assert (config.output_dir, config.eval.examples) == ("there", 9)


def test_workers_of_an_evaluation_share_no_gpus_and_do_not_sleep():
    config = to_evaluate()
    config.cluster.layout = Layout.colocated  # as in +experiment=one_gpu
    set_defaults(config, ["+experiment=one_gpu", "checkpoint=runs/a/export"])
    assert not config.colocated


def to_evaluate() -> EvaluateConfig:
    """An evaluation's configuration, with the folder and the number of examples of some training."""
    plain = to_dict(composed()) | {"checkpoint": "runs/a/export", "predictions": None, "output_dir": "there"}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvaluateConfig), plain))
    config.eval.examples = 9
    return config


def test_a_job_finds_the_folder_of_configuration_files_from_the_users_folder(tmp_path, own):
    (tmp_path / "copy").mkdir()
    done = run(
        tmp_path / "copy", "--config-dir", "own", "--cfg", "job", "task=kettles", VISURF_RAY_FOLDER=str(tmp_path)
    )
    assert done.returncode == 0 and "train: /data/kettles.jsonl" in done.stdout


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("train", ["--cfg", "job"]), ("train", ["--help"]), ("paper", []), ("paper", ["--help"])],
)
def test_a_reader_that_ends_early_is_no_error(tmp_path, module, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", f"visurf_ray.{module}", *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, cwd=tmp_path, env=variables
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["x" * 300, "file/below"])
@pytest.mark.parametrize("what", ["checkpoint=miniature", "predictions=predictions.jsonl"])
def test_an_evaluation_that_cannot_write_is_refused_first(tmp_path, name, what):
    (tmp_path / "file").touch()
    assert is_refused(run_here("evaluate", what, f"output_dir={tmp_path}/{name}"), [f"output_dir={tmp_path}/{name}: "])


def test_the_status_tells_which_signal_has_ended_a_run(tmp_path):
    """Also where the tests themselves run in the background of a shell, which has its jobs ignore SIGINT."""
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from visurf_ray.config.app import run_app
from visurf_ray.config.schema import Config
sys.exit(run_app(lambda config, overrides: os.kill(os.getpid(), signal.SIG{0}), Config))
"""
    ended = [
        subprocess.run(
            [sys.executable, "-c", code.format(name)], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        for name in ("INT", "TERM")
    ]
    assert [(done.returncode, done.stderr) for done in ended] == [(130, "interrupted\n"), (143, "terminated\n")]
