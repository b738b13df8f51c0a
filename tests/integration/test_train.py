"""The job from its command line: a short run, its outputs, resuming, evaluating; and bad input."""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.integration.runs import ALL, SMALL, is_refused, rows, run_here, run_watched
from tests.integration.watching import CANARIES, Seen, holding
from tests.remote_code import save_model_with_code
from visurf_ray.tasks import TASKS


def without_compiler(folder: Path) -> dict[str, str]:
    """An environment whose PATH holds only what a run calls, no compiler, and where nothing is compiled yet.

    Only what vLLM has noted of models' classes is kept: it would start a process to look at the miniature's.
    """
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("bash", "lscpu"):  # Ray starts its workers with the one, vLLM asks the other for the cores
        (tools / tool).symlink_to(shutil.which(tool))  # type: ignore[arg-type]
    caches = ("TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT")
    notes = Path(os.environ.get("VLLM_CACHE_ROOT", "~/.cache/vllm")).expanduser() / "modelinfos"
    if notes.is_dir():
        shutil.copytree(notes, folder / "vllm_cache_root" / "modelinfos")
    return {"PATH": str(tools)} | {name: str(folder / name.lower()) for name in caches}


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory) -> Iterator[tuple[Path, CompletedProcess[str], Seen]]:
    """A ViSurf run of two steps with a checkpoint of each: its folder, its process, and what was seen of it.

    No compiler is there.
    """
    folder = tmp_path_factory.mktemp("run")
    settings = ["train.steps=2", "train.checkpoint_every=1", "eval.every=1", f"output_dir={folder}"]
    bare = without_compiler(tmp_path_factory.mktemp("bare"))
    with run_watched("train", *SMALL, *settings, **bare) as (done, seen):
        assert done.returncode == 0, done.stderr[-3000:]
        yield folder, done, seen


@pytest.fixture(scope="module")
def finished_run(watched_run) -> tuple[Path, CompletedProcess[str]]:
    return watched_run[:2]


@pytest.fixture(scope="module")
def finished(finished_run) -> Path:
    return finished_run[0]


OUR_LINES = (
    r"learner\.packing=prefix: log-probs differ by \S+ nats on average from those of separate rows",
    r"starting 1 rollout worker\(s\), 1 learner rank\(s\)",
    r"W&B   offline; upload with: wandb sync \S+",
    r"(eval|step)  \d/\d  .*",
)


def test_a_run_shows_our_lines_alone(finished_run):
    """No library warns, tells that it compiles, or reports what it leaks at the end."""
    _, done = finished_run
    lines = done.stdout.splitlines()
    assert [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in OUR_LINES)] == []
    assert len(lines) == 8 and done.stderr == ""


def test_nothing_of_a_run_is_left_after_its_end(watched_run):
    """No process, and nothing in /dev/shm."""
    assert watched_run[2].left == ([], [])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Intel's OpenMP exists for x86-64 alone")
def test_threads_that_compute_yield_their_cores_while_they_wait(watched_run):
    """Engines and ranks have loaded Intel's OpenMP; see `on_cpu`."""
    lines = watched_run[2].with_intel_openmp
    assert all(any(line.startswith(name) for line in lines) for name in ("VLLM::EngineCore", "ray::LearnerActor"))


def test_nothing_of_a_run_listens_beyond_this_machine(watched_run):
    """Ray, vLLM and the ranks. Who reaches Ray nevertheless, such as another user of the machine, needs its token."""
    seen = watched_run[2]
    names = {name.split()[0].rpartition("/")[2] for name, _ in seen.sockets}
    assert {"gcs_server", "raylet", "ray::DashboardAgent"} <= names, "they are looked at"
    beyond = [(name, at) for name, at in seen.sockets if not ip_address(at.removeprefix("::ffff:")).is_loopback]
    assert beyond == []
    assert seen.answer == "UNAUTHENTICATED"


def test_no_key_is_in_an_output_or_a_command_line(watched_run):
    folder, done, seen = watched_run
    token = Path("~/.ray/auth_token").expanduser()
    secrets = [*CANARIES.values(), *([token.read_text().strip()] if token.is_file() else [])]
    texts = [done.stdout, done.stderr, *seen.lines]
    assert [text for text in texts if any(secret in text for secret in secrets)] == []
    assert any(seen.logs.rglob("raylet.out")) and any(folder.rglob("*.wandb")), "they are looked at"
    assert holding([folder, seen.logs], secrets) == []
    (folder.parent / "canary").mkdir()
    (folder.parent / "canary" / "log").write_text(f"a {secrets[0]}")
    assert holding([folder.parent / "canary"], secrets), "a key would be found"


def test_a_run_leaves_what_it_promises(finished):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["method"] == "visurf" and summary["seed"] == 0
    assert summary["train_seconds"] > 0 and "torch" in summary["versions"]
    for when in ("before", "after"):
        assert {"giou", "giou_low", "giou_high", "bbox_acc", "n_acc", "format_rate", "thinking_rate"} <= summary[
            when
        ].keys()
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["step_000001", "step_000002"]
    assert "<svg" in (finished / "report.html").read_text()
    assert "| `giou` |" in (finished / "export" / "README.md").read_text()
    assert (finished / "config.yaml").is_file() and (finished / "wandb").is_dir()
    model = AutoModelForImageTextToText.from_pretrained(finished / "export")
    assert sum(p.numel() for p in model.parameters()) > 1e6
    assert AutoProcessor.from_pretrained(finished / "export").tokenizer.eos_token == "<|im_end|>"


def test_every_step_is_logged_by_source(finished):
    steps = [row for row in rows(finished) if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        for source in ("rollout", "label"):
            for name in ("entropy", "logprob", "ratio", "clip_share"):
                assert f"train/{name}/{source}" in row
            assert f"reward/{source}/accuracy" in row
        assert {"train/label_active", "reward/margin", "train/grad_norm", "train/tokens_per_second"} <= row.keys()
        assert {"time/sample", "time/reward", "time/learn", "time/sync", "time/step"} <= row.keys()
        assert row["train/rollout_logprob_diff_max"] < 1e-4
        # The label is correct by construction, and its thinking earns nothing.
        assert row["reward/label/accuracy"] == 3.0 and row["reward/label/answer_format"] == 2.0
        assert row["reward/label/thinking_format"] == 0.0
    assert [row["step"] for row in rows(finished) if "eval/n_acc" in row] == [0, 1, 2]


@pytest.fixture(scope="module")
def resumed(finished, ray_cluster, tmp_path_factory) -> Path:
    """A copy of the run that goes on from the first of its checkpoints, one step off: step 2 is made anew."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints" / "step_000002")
    settings = ["train.steps=4", "train.checkpoint_every=3", "train.resume=auto", f"output_dir={folder}"]
    settings += ["pipeline=one_step_off", "rollout.oversample=2", "learner.learning_rate=1e-3", "method.style=auto"]
    settings += ["eval.every=3"]
    refused = run_here("train", *SMALL, *settings)
    assert is_refused(refused, ["rollout.oversample=2 (before: 0)", "train.resume_override=true"]), refused.stderr
    done = run_here("train", *SMALL, *settings, "train.resume_override=true")
    assert done.returncode == 0, done.stderr
    assert "resumed with other settings: " in done.stdout and "eval.every=3" in done.stdout
    return folder


def test_a_run_is_resumed_where_it_was(finished, resumed):
    """In the same metrics file and the same W&B run."""
    assert [row["step"] for row in rows(resumed) if "train/loss" in row] == [1, 2, 3, 4]
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (finished, resumed))
    assert after["before"] == before["before"] and after["train_seconds"] > 0
    states = [
        json.loads((folder / "checkpoints" / name / "state.json").read_text())
        for folder, name in ((finished, "step_000001"), (resumed, "step_000003"), (resumed, "step_000004"))
    ]
    assert len({state["run_id"] for state in states}) == 1


def test_sampling_ahead_learns_from_older_weights_and_says_so(resumed):
    """The first batch is of the policy that learns from it, the later ones are one step older."""
    steps = [row for row in rows(resumed) if "train/loss" in row][1:]
    differences = [row["train/rollout_logprob_diff_max"] for row in steps]
    assert differences[0] < 1e-4 and min(differences[1:]) > 1e-3
    assert steps[0]["align/logprob/spaced"] > steps[0]["align/logprob/compact"], "as the base model writes"
    assert "align/margin" not in steps[1], "it is asked every 20 steps"
    assert [row["step"] for row in rows(resumed) if "eval/n_acc" in row] == [0, 1, 3, 4]


@pytest.mark.usefixtures("ray_cluster")
def test_evaluation_of_a_checkpoint_gives_the_scores_of_its_run(finished, tmp_path):
    done = run_here("evaluate", f"checkpoint={finished}/checkpoints/step_000002", *SMALL, f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    expected = json.loads((finished / "summary.json").read_text())["after"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx(expected)
    predictions = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 12
    known = {"id", "question", "ground_truth", "size", "response", "answered", "compared"}
    assert predictions[0].keys() == known


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("task", sorted(name for name in TASKS if name.startswith("miniature_")))
def test_every_drawn_task_is_trained_and_scored(task, tmp_path):
    """Its labels are right, and its metrics are those of the evaluation afterwards."""
    settings = [f"task={task}", "rollout.max_tokens=128", "train.checkpoint_every=0"]
    done = run_here("train", *SMALL, *settings, "train.steps=1", f"output_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["before"] and summary["before"].keys() == summary["after"].keys()
    (step,) = (row for row in rows(tmp_path / "run") if "train/loss" in row)
    assert step["reward/label/total"] >= 1.0 and step["train/grad_norm"] > 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_model_with_trusted_code_of_its_own_is_trained(tmp_path):
    """Its family is not in transformers; learner, sampler and export take its code."""
    model = save_model_with_code(tmp_path / "model")
    settings = [f"model.path={model}", "model.coordinates=pixels", "train.steps=1", f"output_dir={tmp_path}/run"]
    refused = run_here("train", *SMALL, *settings, own=ALL)
    assert is_refused(refused, ["needs code of its own", "model.trust_remote_code=true"]), refused.stderr
    done = run_here("train", *SMALL, *settings, "model.trust_remote_code=true", own=ALL)
    assert done.returncode == 0, done.stderr
    (step,) = (row for row in rows(tmp_path / "run") if "train/loss" in row)
    assert step["train/rollout_logprob_diff_max"] < 1e-4
    export = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert export["model_type"] == "own_vl" and (tmp_path / "run" / "export" / "modeling_own.py").is_file()


def data_file(folder: Path, solution: str = "[]", image: str = "image.png") -> Path:
    from PIL import Image

    Image.new("RGB", (56, 56)).save(folder / "image.png")
    (folder / "broken.png").write_bytes(b"no image")
    Image.effect_noise((56, 56), 50).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:1500])
    path = folder / "data.jsonl"
    path.write_text(json.dumps({"id": "seven", "problem": "the 7", "solution": solution, "image": image}) + "\n")
    return path


def grounding(path: Path) -> list[str]:
    return ["task=non_object", f"task.train={path}", f"task.held_out={path}"]


_BAD_DATA = {
    "no file": (lambda d: grounding(d / "none.jsonl"), r"task.held_out: there is no data file .*none.jsonl"),
    "missing image": (
        lambda d: grounding(data_file(d, image="nowhere.png")),
        r"data.jsonl, row 0 \(id seven\): there is no image .*nowhere.png",
    ),
    "unreadable image": (
        lambda d: grounding(data_file(d, image="broken.png")),
        r"row 0 \(id seven\): .*broken.png cannot be read as an image",
    ),
    "truncated image": (
        lambda d: grounding(data_file(d, image="cut.png")),
        r"row 0 \(id seven\): the image .* is damaged",
    ),
    "not JSON": (
        lambda d: grounding(data_file(d, solution="[{")),
        r"row 0 \(id seven\): the solution is not JSON",
    ),
    "malformed box": (
        lambda d: grounding(data_file(d, solution='[{"bbox_2d": [1, 2, 3], "point_2d": [1, 2]}]')),
        r"row 0 \(id seven\): the solution item 0 needs bbox_2d with 4 numbers",
    ),
    "box outside": (
        lambda d: grounding(data_file(d, solution='[{"bbox_2d": [1, 2, 99, 9], "point_2d": [5, 5]}]')),
        r"row 0 \(id seven\): the solution item 0 reaches outside the image of 56×56",
    ),
    "long prompt": (
        lambda d: ["task.train=8", "rollout.max_model_len=40"],
        r"scene train-0.*rollout.max_model_len",
    ),
}


@pytest.mark.parametrize("case", _BAD_DATA)
def test_bad_data_is_refused_by_file_and_row(tmp_path, case):
    """By what the data actor calls; a missing image is refused by a whole run below."""
    from visurf_ray.config.load import load_config
    from visurf_ray.errors import DataError
    from visurf_ray.feed.mixture import Mixture

    make, message = _BAD_DATA[case]
    config = load_config(make(tmp_path))
    with pytest.raises(DataError, match=message):
        Mixture(config, train=True, put=lambda value: value)


_REFUSED_BY_THE_CLUSTER = {
    "missing image": (
        lambda d: grounding(data_file(d, image="nowhere.png")),
        ["data.jsonl, row 0 (id seven)", "nowhere.png"],
    ),
    "too many workers": (lambda d: ["rollout.workers=4000"], ["rollout.workers=4000", "Lower"]),
}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("case", _REFUSED_BY_THE_CLUSTER)
def test_a_run_that_finds_no_data_or_no_room_ends_in_one_line_and_writes_nothing(tmp_path, case):
    make, expected = _REFUSED_BY_THE_CLUSTER[case]
    folder = tmp_path / "output"
    done = run_here("train", f"output_dir={folder}", *make(tmp_path))
    assert is_refused(done, expected), done.stderr
    assert not folder.exists()


_REFUSED = {
    "resume path": (lambda d: [f"train.resume={d}"], ["train.resume", "no checkpoint"]),
    "long name": (lambda d: [f"output_dir={d}/{'x' * 256}"], ["output_dir=", "File name too long"]),
    "no folder": (lambda d: [f"output_dir={data_file(d)}/run"], ["output_dir=", "data.jsonl is no folder"]),
    "model": (lambda d: [f"model.path={d}"], ["model.path", "no config.json"]),
    "adapters": (
        lambda d: ["learner.lora.rank=2", "learner.lora.targets=[q_proj,kproj]"],
        ["learner.lora.targets", "'kproj'", "'k_proj'"],
    ),
    "method": (lambda d: ["method=visrf"], ["unknown method 'visrf'", "'visurf'"]),
    "task": (lambda d: ["task.name=miniture"], ["unknown task 'miniture'", "'miniature'"]),
    "style": (lambda d: ["task=miniature_math", "method.style=compact"], ["method.style=compact", "spaced, auto"]),
    "reward": (lambda d: ["reward.name=vision_reasonr"], ["unknown reward", "'vision_reasoner'"]),
    "key": (lambda d: ["rollout.worker=2"], ["'rollout.worker'", "'rollout.workers'"]),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_bad_input_is_refused_in_one_line_before_anything_starts(tmp_path, case):
    make, expected = _REFUSED[case]
    folder = tmp_path / "output"
    done = run_here("train", f"output_dir={folder}", *make(tmp_path))
    assert is_refused(done, expected), done.stderr
    assert not folder.exists()
