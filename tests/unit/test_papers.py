"""The rows of the papers' tables: each composes to what its name says, and carries the paper's numbers."""

import itertools
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from functools import cache

import pytest
from hydra import compose

from visurf_ray import paper
from visurf_ray.checks import check
from visurf_ray.config.explain import CommandLine
from visurf_ray.config.load import CONFIG_DIR, load_config, searching, typed
from visurf_ray.config.schema import Config, EvaluateConfig
from visurf_ray.errors import ConfigError
from visurf_ray.monitor.charts import SCORES
from visurf_ray.monitor.report import write_report
from visurf_ray.paper_rows import PaperRow, find_row, paper_rows, table_titles
from visurf_ray.rewards.spec import RewardSpec

# One process composes the rows, and not each: most tests need the same ones.
pytestmark = pytest.mark.xdist_group("papers")
EXPERIMENTS = ["paper", "visual_rft"]  # those that rows use
METHODS = ("sft", "rlvr", "sft_then_rlvr", "visurf")
# What the paper reports of each task.
REPORTED = {
    "non_object": {"gRefCOCO val": ["giou", "n_acc"]},
    "reasoning_segmentation": {"ReasonSeg val": ["giou"], "ReasonSeg test": ["giou"]},
    "gui_grounding": {"OmniACT": ["accuracy"]},
    "anomaly": {"RealIAD": ["roc_auc"]},
    "lesion": {"ISIC2018": ["bbox_acc"]},
    "math": {"MathVista testmini": ["accuracy"]},
}
SEGMENTATION = ("non_object", "reasoning_segmentation")

each_row = pytest.mark.parametrize("row", paper_rows(), ids=lambda row: row.name)
each_trained_row = pytest.mark.parametrize(
    "row", [row for row in paper_rows() if row.program == "train"], ids=lambda row: row.name
)


def composed(row: PaperRow) -> Config:
    """The configuration of the command that is printed for a row."""
    return composed_command(paper.command(row))


@cache
def composed_command(command: str) -> Config:
    python, flag, module, *overrides = shlex.split(command)
    assert (python, flag) == ("python", "-m")
    if module == "visurf_ray.train":
        return load_config(overrides)
    assert module == "visurf_ray.evaluate"
    line = CommandLine("evaluate", overrides, [CONFIG_DIR])
    with searching(line):
        return typed(compose("evaluate", overrides), EvaluateConfig, line)


def parts(row: PaperRow) -> tuple[str, str, str]:
    """Table, method or ablation, and task: table 5 has the prompt between the last two."""
    table, method, *_, task = row.name.split(", ")
    return table, method, task


def names(table: str, *lists: tuple[str, ...]) -> set[str]:
    return {", ".join((table, *name)) for name in itertools.product(*lists)}


# Configurations


@each_row
def test_a_row_composes_and_leaves_only_data_and_models_to_add(row):
    config = composed(row)
    settings = {"task.train": config.task.train, "task.held_out": config.task.held_out}
    if isinstance(config, EvaluateConfig):
        settings = {"checkpoint": config.checkpoint, "task.held_out": config.task.held_out}
        assert config.eval.examples is None, "the paper scores the whole split"
    assert [key for key, value in settings.items() if value is None] == row.needed
    if config.task.name != "vqa":  # it has no reward: it is only evaluated
        RewardSpec.of(config.reward).load()
    assert config.rollout.workers * config.rollout.gpus == config.learner.ranks * config.learner.gpus == 8
    assert config.model.path != "miniature"


@each_trained_row
def test_a_trained_row_is_its_method_task_model_and_settings(row):
    """§5.4 of the paper: the learning rate, the batch size, and equal steps of all methods of a task."""
    config = composed(row)
    assert config.learner.learning_rate == 1e-6
    assert config.monitor.paper_row == row.name
    if row.table == "visual-rft":
        assert config.task.name == row.name.split(", ")[1]
        assert config.model.path == f"Qwen/Qwen2-VL-{row.name[-2:].upper()}-Instruct"
        assert (config.method.name, config.method.kl_coef, config.train.batch_size) == ("rlvr", 0.04, 16)
        assert config.rollout.n == (4 if row.name.endswith("7b") else 8)
        return
    table, method, task = parts(row)
    assert config.task.name == task
    assert config.method.name == ("visurf" if method.startswith("without") else method)
    assert config.train.batch_size == (32 if method == "sft" else 16)
    assert config.reward.name == ("math" if task == "math" else "vision_reasoner")
    assert config.model.path == f"Qwen/{'Qwen2' if table == 'table 3' else 'Qwen2.5'}-VL-7B-Instruct"
    assert config.model.max_pixels == 840 * 840
    assert config.task.prompt == ("plain" if "plain prompt" in row.name else "detailed")
    whole = composed(find_row(f"table 1, visurf, {task}"))
    assert config.train.steps == (20 if table == "table 6" else whole.train.steps)
    assert config.method.sft_steps == (config.train.steps // 2 if method == "sft_then_rlvr" else 0)
    assert config.method.sft_batch_size == (32 if method == "sft_then_rlvr" else None)


@pytest.mark.parametrize(
    ("ablation", "changed"),
    [
        ("align", {"style": "compact"}),
        ("eliminate", {"eliminate": False, "label_thinking": "empty"}),
        ("smooth", {"smooth": False}),
    ],
)
def test_an_ablation_switches_off_one_control(ablation, changed):
    rows = [row for row in paper_rows() if parts(row)[:2] == ("table 4", f"without {ablation}")]
    assert rows
    for row in rows:
        whole = composed(find_row(f"table 1, visurf, {parts(row)[2]}"))
        assert asdict(composed(row).method) == asdict(whole.method) | changed


def test_rows_write_to_folders_of_their_own_unless_they_are_one_run():
    folders: dict[str, set[tuple[str, ...]]] = {}
    for row in paper_rows():
        folders.setdefault(composed(row).output_dir, set()).add(row.overrides)
    assert {folder: runs for folder, runs in folders.items() if len(runs) > 1} == {}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_papers_sampler_and_learner_take_turns_on_8_gpus(name):
    config = load_config([f"+experiment={name}"])
    assert config.colocated and config.learner.ranks == config.rollout.workers * config.rollout.gpus == 8


@pytest.mark.parametrize("file", (CONFIG_DIR / "experiment").glob("*.yaml"), ids=lambda file: file.stem)
def test_every_experiment_is_read_at_the_top_level(file):
    assert file.read_text().startswith("# @package _global_\n"), "Hydra reads it from the first line alone"


def test_an_override_beside_an_experiment_wins():
    row = find_row("table 1, visurf, non_object")
    config = load_config([*row.overrides, "method=rlvr", "rollout.n=4", "task.held_out=a.parquet"])
    assert (config.method.name, config.rollout.n, config.task.held_out) == ("rlvr", 4, "a.parquet")
    assert config.train.steps == 456


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+experiment=papr", "unknown experiment 'papr'. Did you mean 'paper'?"),
        ("experiment=paper", "write +experiment=paper"),
        ("+experiment=paper rollout.nn=3", "'rollout.nn'. Did you mean 'rollout.n'?"),
        ("+experiment=paper task=math reward.options.boxed_credi=0", "'reward.options.boxed_credit'?"),
    ],
)
def test_a_misspelt_name_beside_an_experiment_is_refused_with_the_nearest(override, message):
    with pytest.raises(ConfigError) as error:
        load_config(override.split())
    assert message in str(error.value)


# Numbers


def test_every_row_of_the_tables_is_there_once():
    tasks, tables = tuple(REPORTED), Counter(row.name for row in paper_rows() if row.table != "visual-rft")
    expected = names("table 1", ("baseline", *METHODS), tasks)
    expected |= names("table 2", ("baseline", *METHODS), ("chartqa", "docvqa"))
    expected |= names("table 3", ("baseline", *METHODS), ("anomaly", "lesion"))
    expected |= names("table 4", ("without eliminate", "without smooth", "visurf"), (*SEGMENTATION, "math"))
    expected |= names("table 4", ("without align",), SEGMENTATION)
    expected |= names("table 5", ("rlvr", "visurf"), ("plain prompt", "detailed prompt"), ("reasoning_segmentation",))
    expected |= names("table 6", METHODS, ("reasoning_segmentation",))
    assert tables == Counter(expected)
    assert {row.table for row in paper_rows()} == set(table_titles())


@each_row
def test_a_row_reports_what_its_table_has(row):
    table, method, task = parts(row)
    found = {split: sorted(numbers) for split, numbers in row.reported.items()}
    expected = REPORTED.get(task, {})
    if table == "visual-rft":
        expected = {}
    elif table == "table 2":
        expected = {"chartqa": {"ChartQA": ["relaxed_accuracy"]}, "docvqa": {"DocVQA val": ["anls"]}}[task]
    elif table == "table 3":
        expected = {
            {"RealIAD": "RealIAD subset", "ISIC2018": "ISIC2018 test"}[split]: expected[split] for split in expected
        }
    elif table == "table 4" and task == "reasoning_segmentation":
        expected = {"ReasonSeg val": ["giou"]}
    elif table == "table 6":
        expected = {"cost": ["gpu_memory", "time/step"]}
    elif (method, task) == ("baseline", "non_object"):
        expected = {"gRefCOCO val": ["n_acc"]}
    assert found == expected
    assert all(0 <= value <= 100 for numbers in row.reported.values() for value in numbers.values())
    if table != "table 6":
        assert {metric for metrics in found.values() for metric in metrics} <= set(SCORES)


@pytest.mark.parametrize(
    ("method", "average"),
    [("sft_then_rlvr", 65.4), ("visurf", 69.6)],  # the paper's other averages are not those of its numbers
)
def test_table_1_has_the_averages_of_the_paper(method, average):
    rows = [find_row(f"table 1, {method}, {task}") for task in REPORTED]
    values = [value for row in rows for numbers in row.reported.values() for value in numbers.values()]
    assert len(values) == 8
    assert sum(values) / 8 == pytest.approx(average, abs=0.051)


# The command


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["paper", *arguments])
    status = paper.main()
    return status, *capsys.readouterr()


def test_the_list_shows_every_row_with_its_numbers_in_100_columns(capsys, monkeypatch):
    status, out, _ = run(capsys, monkeypatch)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    for row in paper_rows():
        assert len(re.findall(rf"^{re.escape(row.name)} ", out, re.MULTILINE)) == 1
    assert re.search(
        r"^table 1, visurf, non_object +gRefCOCO val: giou 66.6 %, n_acc 57.1 %$", re.sub(" +\n", "\n", out), re.M
    )
    assert "cost: time/step 22.9 s, gpu_memory 81.8 GB" in out
    assert all(title in out for title in table_titles().values())


def test_a_row_is_printed_as_one_command_and_comments(capsys, monkeypatch):
    row = find_row("table 4, without smooth, math")
    status, out, _ = run(capsys, monkeypatch, row.name)
    command, *comments = out.splitlines()
    assert status == 0 and command == paper.command(row)
    assert "method.smooth=false" in shlex.split(command)
    assert 'monitor.paper_row="table 4, without smooth, math"' in shlex.split(command)
    assert all(line.startswith("# ") for line in comments)
    assert comments[:2] == [
        "# Add task.train=… task.held_out=… (see conf/task/).",
        "# The paper reports MathVista testmini: accuracy 66.8 %.",
    ]
    assert "one epoch of about 10,000 examples" in " ".join(comments)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("TABLE 4, Non_Object, without smooth", "table 4, without smooth, non_object"),
        ("table 4 smooth math", "table 4, without smooth, math"),
        ("table 1, rlvr, math", "table 1, rlvr, math"),
        ("Table 1, SFT → RLVR, math", "table 1, sft_then_rlvr, math"),
        ("table 5 rlvr plain", "table 5, rlvr, plain prompt, reasoning_segmentation"),
        ("visual-rft detection 7b", "visual-rft, detection, qwen2_vl_7b"),
    ],
)
def test_a_name_means_a_row_whatever_its_case_and_order(asked, meant):
    # `7b` is a word of `qwen2_vl_7b`: names are split at underscores too.
    assert find_row(asked).name == meant


@pytest.mark.parametrize(
    ("asked", "reason", "nearest"),
    [
        ("table 4, without smoth, math", "names no row", "table 4, without smooth, math"),
        ("table 9, visurf, math", "names no row", "table 1, visurf, math"),
        ("table 4 smooth", "names several rows", "table 4, without smooth, non_object"),
    ],
)
def test_an_unknown_or_ambiguous_name_is_refused_with_the_nearest(capsys, monkeypatch, asked, reason, nearest):
    status, out, err = run(capsys, monkeypatch, asked)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert reason in err and nearest in err


def test_the_command_imports_nothing_heavy():
    heavy = ("torch", "ray", "vllm", "transformers", "hydra", "wandb", "matplotlib")
    code = (
        "import sys; from visurf_ray import paper; sys.argv = ['paper']; paper.main();"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


# Runs


def test_a_run_that_names_no_row_is_refused_before_it_starts():
    with pytest.raises(ConfigError, match=r"monitor\.paper_row='table 8, visurf'.*names no row.*table 1, visurf, "):
        check(load_config(["monitor.paper_row='table 8, visurf'"]))


@pytest.fixture
def report(tmp_path):
    def written(paper_row: str | None, rows=()) -> str:
        """The table of scores and the facts of a report, as text without tags."""
        scores = {"giou": 0.5, "n_acc": 0.25, "format_rate": 1.0}
        write_report(
            tmp_path / "report.html",
            config={"monitor": {"paper_row": paper_row}},
            summary={"before": scores, "after": scores, "steps": 2},
            rows=list(rows),
            samples=[],
        )
        page = (tmp_path / "report.html").read_text()
        overview = page.partition('<div class="overview">')[2].partition("<h2>")[0]
        return " ".join(re.sub(r"<[^>]*>", " ", overview).split())

    return written


def test_the_report_shows_the_papers_numbers_in_its_own_unit(report):
    page = report("table 1, visurf, non_object")
    assert "before after paper change" in page
    assert "0.500 0.500 0.666 gRefCOCO val 0.000" in page and "0.250 0.250 0.571 gRefCOCO val 0.000" in page
    assert "1.000 1.000 – 0.000" in page
    assert "Paper: table 1, visurf, non_object." in page and "SAM2" in page
    assert "0.665 ReasonSeg val 0.650 ReasonSeg test" in report("table 1, visurf, reasoning_segmentation")


def test_the_report_shows_the_papers_seconds_per_step(report):
    page = report("table 6, visurf, reasoning_segmentation", [{"step": 1, "time/step": 20.0}])
    assert "Seconds per step 20.00 Seconds per step, paper 22.90" in page
    assert "after change" in page, "the paper has no scores for it"


def test_the_report_of_a_run_without_a_row_names_no_paper(report):
    assert "paper" not in report(None).lower()
