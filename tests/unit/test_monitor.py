"""Monitoring: what is written is valid and complete, and shows what happened."""

import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import wandb
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from tests.unit.groups import example, group
from visurf_ray.config.choices import WandbMode
from visurf_ray.errors import UserError
from visurf_ray.groups import Example, Group, Prediction, Source
from visurf_ray.method.control import smooth
from visurf_ray.monitor import Monitor, SampleChooser
from visurf_ray.monitor.metrics import MetricsLog, _resolve, check_wandb
from visurf_ray.monitor.progress import Progress
from visurf_ray.monitor.report import to_yaml, write_report
from visurf_ray.monitor.samples import (
    ANSWER_COLOUR,
    LINE,
    TRUTH_COLOUR,
    Sample,
    SampleResponse,
    answer_table,
    draw,
    sample_table,
)
from visurf_ray.monitor.teaching import why_nothing_teaches

CONFIG: dict[str, Any] = {
    "seed": 3,
    "method": {"name": "visurf", "clip_low": 0.2, "style": None},
    "task": {"name": "miniature", "train": "a: b"},
    "model": {"path": "Qwen/Qwen2.5-VL-7B-Instruct"},
}
SUMMARY: dict[str, Any] = {
    "before": {"giou": 0.4375, "bbox_acc": 0.88, "n_acc": 0.0, "format_rate": 0.99, "thinking_rate": 0.98},
    "after": {"giou": 0.6125, "bbox_acc": 0.87, "n_acc": 0.715, "format_rate": 0.99, "thinking_rate": math.nan},
    "steps": 2,
    "train_seconds": 3723.0,
    "method": "visurf",
    "seed": 3,
    "versions": {"torch": "2.13.0+cpu"},
}
STEP = {
    "reward/rollout/total": 5.31,
    "reward/rollout/accuracy": 2.5,
    "reward/label/total": 6.0,
    "train/label_active": 0.31,
    "train/entropy/rollout": 0.42,
    "train/grad_norm": 0.91,
    "train/rollout_logprob_diff": 1e-6,
    "train/tokens_per_second": 1234.0,
}
SFT_STEP = {"train/loss": 1.25, "train/entropy/label": 0.5, "train/logprob/label": -1.0, "train/grad_norm": 0.9}


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path, config={}, project="test", mode=WandbMode.disabled, run_id=None, name="test")


@pytest.fixture
def sample() -> Sample:
    text = "<think>a <b>bold</b> guess</think><script>alert(1)</script>"
    rollout = SampleResponse(Source.ROLLOUT, text, 3.5, {"accuracy": 1.5}, -0.25, [(50, 50, 70, 70), (90, 80, 4, -5)])
    label = SampleResponse(Source.LABEL, "<answer>[]</answer>", 5.25, {"accuracy": 6.0}, None, [], smoothed_from=6.0)
    return Sample(Image.new("L", (84, 84)), "Find the <7>", [(0, 0, 10, 20)], [rollout, label])


def chooser(**changes: Any) -> SampleChooser:
    settings: dict[str, Any] = {
        "count": 2,
        "every": 1,
        "images": lambda example: [Image.new("L", example.size)],
        "boxes": lambda text, example: [(0, 0, *example.size)],
        "true_boxes": lambda example: [(10, 10, 20, 20)],
    }
    return SampleChooser(**settings | changes)


def begin(output_dir: Path, **settings: Any) -> Monitor:
    chosen: dict[str, Any] = {"wandb": WandbMode.disabled, "total_steps": 2} | settings
    return Monitor(output_dir, config=CONFIG, project="test", **chosen)


def test_a_mismatch_of_sampler_and_learner_is_warned_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = begin(tmp_path, warn_logprob_diff=0.2)
    for step, difference in enumerate([0.1, 0.3, 0.4]):
        monitor.log(step + 1, {"train/rollout_logprob_diff_p99": difference})
    monitor.log(4, {})
    monitor.close()
    printed = capsys.readouterr().out
    assert printed.count("WARNING") == 1 and "1 % differ by more than 0.3 nats" in printed
    for place in ("rollout.dtype", "learner.dtype", "learner.head_dtype", "attention", "weight sync"):
        assert place in printed
    silent = begin(tmp_path / "other", warn_logprob_diff=None)
    silent.log(1, {"train/rollout_logprob_diff_p99": 5.0})
    silent.close()
    assert "WARNING" not in capsys.readouterr().out


EQUAL = {"train/instructive_share": 0.0, "reward/rollout/total": 0.0, "reward/rollout/accuracy": 0.0}


def test_steps_that_teach_nothing_are_warned_of_once_until_one_teaches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warnings(*shares: float) -> int:
        for share in shares:
            monitor.log(1, EQUAL | {"train/instructive_share": share})
        return capsys.readouterr().out.count("WARNING")

    monitor = begin(tmp_path, warn_equal_rewards=3)
    assert warnings(0, 0, 0.1, 0, 0) == 0
    assert warnings(0) == 1
    assert warnings(0, 0, 0, 0) == 0
    assert warnings(0.5, 0, 0) == 0
    assert warnings(0) == 1
    monitor.log(2, {})  # a step of SFT
    monitor.close()
    silent = begin(tmp_path / "other", warn_equal_rewards=None)
    silent.log(1, EQUAL)
    silent.close()
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parts", "label", "why"),
    [
        ({"format": 0.0, "accuracy": 0.0}, None, "no rollout has the form"),
        ({"answer_format": 0.0, "thinking_format": 0.0, "accuracy": 0.0}, 6.0, "no rollout has the form"),
        ({"format": 1.0, "accuracy": 0.0}, None, "no answer is right"),
        ({"format": 1.0, "accuracy": 1.0}, None, "equally good, as on a task that is solved"),
        ({"format": 1.0, "accuracy": 1.0}, 2.0, "the task is solved"),
        ({"format": 0.5, "accuracy": 0.5}, 2.0, "equally good"),
        ({"score": 0.0}, 0.0, "the reward does not fit the data"),
        ({"score": 0.0}, None, "no answer is right"),
    ],
)
def test_the_rewards_parts_tell_why_nothing_is_learnt(parts: dict[str, float], label: float | None, why: str) -> None:
    metrics = {f"reward/rollout/{name}": value for name, value in (parts | {"total": sum(parts.values())}).items()}
    told = why_nothing_teaches(metrics | ({} if label is None else {"reward/label/total": label}))
    assert why in told and all(f"{name} {value:.3g}" in told for name, value in parts.items())
    assert "raise it" in why_nothing_teaches(metrics | {"train/truncated_share": 1.0})


def rows(output_dir: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_every_line_is_json_even_for_numbers_that_json_lacks(log: MetricsLog, tmp_path: Path) -> None:
    log.log(1, {"a": 0.5, "b": math.nan})
    log.log(2, {"a": math.inf})
    first, second = rows(tmp_path)
    assert (first["step"], first["a"], first["b"]) == (1, 0.5, None)
    assert (second["step"], second["a"]) == (2, None)
    assert first["time"] <= second["time"]
    assert log.read() == [first, second]


def test_rewind_drops_later_rows_and_a_torn_line(log: MetricsLog, tmp_path: Path) -> None:
    for step in range(4):
        log.log(step, {"a": step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "ti')
    log.rewind(2)
    log.log(3, {"a": 30})
    assert [(row["step"], row["a"]) for row in rows(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_was_stopped_after_its_last_evaluation_has_no_doubled_row(tmp_path: Path) -> None:
    """Its checkpoint is older than the evaluation, which is made again; that of another step stays."""
    begun = begin(tmp_path)
    for step in (1, 2):
        begun.log(step, {"train/loss": step})
        begun.log_eval(step, {"score": step})
    begun.close()
    resumed = begin(tmp_path, start_step=2)
    resumed.log_eval(2, {"score": 20})
    resumed.close()
    found = [(row["step"], row.get("train/loss"), row.get("eval/score")) for row in rows(tmp_path)]
    assert found == [(1, 1, None), (1, None, 1), (2, 2, None), (2, None, 20)]


def sent(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[str]]]:
    """What W&B gets from now on: the step, and the names of its metrics."""
    found: list[tuple[int, set[str]]] = []
    monkeypatch.setattr(
        monitor._metrics._run, "log", lambda row: found.append((row["step"], row.keys() - {"step", "time/step"}))
    )
    return found


def test_steps_that_a_learner_repeats_are_in_wandb_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has them as they were repeated."""
    monitor = begin(tmp_path)
    monitor._metrics.mode = WandbMode.offline  # without W&B's process, which takes seconds to start
    monitor.log_eval(0, {"score": 0})
    for step in (1, 2, 3):
        monitor.log(step, {"a": step})
    monitor.rewind(1)
    assert "W&B   keeps its rows of steps 2 to 3" in capsys.readouterr().out
    found = sent(monitor, monkeypatch)
    for step in (2, 3, 4):
        monitor.log(step, {"a": 10 * step})
        monitor.log_eval(step, {"score": step})
    assert found == [(2, {"eval/score"}), (3, {"eval/score"}), (4, {"a"}), (4, {"eval/score"})]
    assert [row["a"] for row in rows(tmp_path) if "a" in row] == [1, 20, 30, 40]
    monitor.rewind(0)
    for step in (0, 1):
        monitor.log_eval(step, {"score": step})
    assert found[4:] == [(1, {"eval/score"})]
    monitor.close()


@pytest.mark.parametrize(("run_id", "repeats", "steps"), [("a", True, [3]), ("a", False, [2, 3]), (None, True, [2, 3])])
def test_a_resumed_run_repeats_no_row_of_its_wandb_run_unless_it_changes_what_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_id: str | None, repeats: bool, steps: list[int]
) -> None:
    """A run that begins anew has a W&B run of its own."""
    begun = begin(tmp_path)
    for step in (1, 2):
        begun.log(step, {"a": step})
    begun.close()
    resumed = begin(tmp_path, run_id=run_id, start_step=1, repeats=repeats)
    found = sent(resumed, monkeypatch)
    for step in (2, 3):
        resumed.log(step, {"a": step})
    resumed.close()
    assert [step for step, _ in found] == steps


def test_a_broken_line_is_named(log: MetricsLog) -> None:
    log.path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is not JSON"):
        log.read()


@pytest.mark.parametrize("named", ["offline", "disabled"])
def test_auto_follows_wandb_mode_even_beside_an_api_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", named)
    auto = MetricsLog(tmp_path, config={}, project="test", mode=WandbMode.auto, run_id=None, name="test")
    auto.finish()
    assert auto.mode is WandbMode(named)


@pytest.mark.parametrize(("key", "mode"), [("0" * 40, "online"), ("", "offline")])
def test_auto_without_wandb_mode_looks_for_credentials(no_key: None, key: str, mode: str) -> None:
    """In a process of its own: W&B keeps the credentials that it has found."""
    code = "from visurf_ray.monitor.metrics import WandbMode, _resolve; print(_resolve(WandbMode.auto))"
    environment = os.environ | {"WANDB_API_KEY": key}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{mode}\n" and not done.stderr


def test_a_chosen_mode_overrides_wandb_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert _resolve(WandbMode.disabled) is WandbMode.disabled


def test_an_unknown_wandb_mode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(UserError, match=r"WANDB_MODE=on is unknown: set it to online, offline, disabled"):
        begin(tmp_path / "run", wandb=WandbMode.auto)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "mode"),
    [
        ("WANDB_MODE", "dryrun", "offline"),
        ("WANDB_MODE", "OFFLINE", "offline"),
        ("WANDB_MODE", "run", "online"),
        ("WANDB_DISABLED", "true", "disabled"),
    ],
)
def test_wandbs_other_names_of_modes_are_known(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, mode: str
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(name, value)
    assert _resolve(WandbMode.auto) == mode


@pytest.mark.parametrize("named", ["", "OFFLINE"])
def test_a_mode_that_wandb_itself_refuses_is_no_obstacle(tmp_path: Path, no_key: None, monkeypatch, named: str) -> None:
    monkeypatch.setenv("WANDB_MODE", named)
    check_wandb(WandbMode.auto)
    log = MetricsLog(tmp_path, config={}, project="test", mode=WandbMode.auto, run_id=None, name="test")
    log.finish()
    assert log.mode == "offline"


def test_online_without_a_key_is_refused_before_a_run(no_key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    check_wandb(WandbMode.auto)
    with pytest.raises(UserError, match=r"monitor\.wandb=online, but W&B has no API key: set WANDB_API_KEY"):
        check_wandb(WandbMode.online)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="WANDB_MODE=online, but W&B has no API key"):
        check_wandb(WandbMode.auto)


def test_a_run_goes_offline_if_wandb_does_not_answer(tmp_path: Path) -> None:
    """In a process of its own, as above. Nothing listens at the address."""
    code = """
import sys
from pathlib import Path
from visurf_ray.monitor import metrics
metrics._PATIENCE = 2.0
log = metrics.MetricsLog(
    Path(sys.argv[1]), config={}, project="test", mode=metrics.WandbMode.online, run_id=None, name="test"
)
log.log(1, {"a": 1.0})
print(log.mode, log.where)
log.finish()
"""
    environment = os.environ | {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.startswith("offline offline, because W&B does not answer ("), done.stderr
    assert "upload with: wandb sync" in done.stdout


@pytest.mark.parametrize(
    ("before", "after"), [("", "log.fail()"), ("log.finish()", "")], ids=["in a run", "between two runs of a sweep"]
)
def test_a_process_whose_wandb_process_was_stopped_as_well_ends_without_a_traceback(
    tmp_path: Path, before: str, after: str
) -> None:
    code = f"""
import sys
from pathlib import Path
import psutil
from visurf_ray.monitor import metrics
log = metrics.MetricsLog(
    Path(sys.argv[1]), config={{}}, project="test", mode=metrics.WandbMode.offline, run_id=None, name="test"
)
{before}
for process in psutil.Process().children(recursive=True):
    process.terminate()
    process.wait()
{after}
print("closed")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("closed\n", "", 0)


def test_phases_add_up_and_are_taken_once() -> None:
    progress = Progress(2, console=Console(file=io.StringIO()))
    for name in ("sample", "learn", "sample", "evaluate"):
        with progress.phase(name):
            pass
    assert list(progress.take_times("evaluate", "absent")) == ["time/evaluate"]
    times = progress.take_times()
    assert list(times) == ["time/sample", "time/learn"]
    assert all(0 < seconds < 1 for seconds in times.values())
    assert progress.take_times() == {}


def test_phases_do_not_nest_and_survive_errors() -> None:
    progress = Progress(2, console=Console(file=io.StringIO()))
    nested = pytest.raises(RuntimeError, match="phase 'learn' inside 'sample'")
    with nested, progress.phase("sample"), progress.phase("learn"):
        pass
    assert list(progress.take_times()) == ["time/sample"]
    with progress.phase("learn"):
        pass


def test_a_log_shows_one_line_for_each_step() -> None:
    out = io.StringIO()
    progress = Progress(80, console=Console(file=out))
    progress.step(12, STEP | {"time/checkpoint": 11.94, "time/learn": 2.3, "time/step": 14.24})
    progress.step(13, SFT_STEP)
    progress.evaluation(40, {"giou": 0.71, "n_acc": 0.425})
    step = "step  12/80  reward  5.31  label 0.31  entropy 0.420  grad  0.91  diff 1e-06"
    assert out.getvalue().splitlines() == [
        f"{step} | learn  2.3 s  checkpoint 11.9 s | 1.2k tok/s  eta 16:08",
        "step  13/80  loss  1.2500  entropy 0.500  grad  0.90 | eta 15:54",
        "eval  40/80  giou 0.710  n_acc 0.425",
    ]


def test_a_terminal_shows_the_phase_and_the_last_step() -> None:
    out = io.StringIO()
    progress = Progress(80, console=Console(file=out, force_terminal=True, width=120))
    with progress.phase("learn"):
        pass
    progress.step(12, STEP)
    progress.close()
    last = out.getvalue()
    assert "learn" in last and "12/80" in last and "reward  5.31" in last


def test_boxes_are_drawn_where_they_are(sample: Sample) -> None:
    picture = draw(sample, sample.responses[0], side=340)
    assert picture.size == (84 * 4 + 2 * LINE, 84 * 4 + 2 * LINE)  # whole pixels of the image, and the frame
    at = picture.getpixel
    # The truth goes around its box, in the frame where the box touches the image's edge.
    assert at((0, 0)) == at((LINE - 1, 40)) == at((20, LINE + 80)) == TRUTH_COLOUR
    # The answer lies inside its box.
    first, last = LINE + 50 * 4, LINE + 70 * 4 - 1
    assert at((first, first)) == at((first + LINE - 1, first + 30)) == at((last, last)) == ANSWER_COLOUR
    assert at((first - 1, first - 1)) == at((first + LINE, first + LINE)) == at((last + 1, last + 1)) == (0, 0, 0)
    # An inverted box that leaves the image ends at its edge.
    assert at((LINE + 84 * 4 - 1, LINE + 100)) == ANSWER_COLOUR


def test_equal_boxes_both_show() -> None:
    answer = SampleResponse(Source.ROLLOUT, "", 1.0, {}, None, [(0, 0, 84, 84)])
    picture = draw(Sample(Image.new("RGB", (84, 84)), "", [(0, 0, 84, 84)], [answer]), answer, side=84)
    assert picture.getpixel((0, 40)) == TRUTH_COLOUR
    assert picture.getpixel((LINE, 40)) == ANSWER_COLOUR


def test_a_large_image_is_made_smaller() -> None:
    answer = SampleResponse(Source.ROLLOUT, "", 1.0, {}, None, [(500, 400, 1e6, 1e6)])
    picture = draw(Sample(Image.new("RGB", (1000, 500)), "", [], [answer]), answer, side=100)
    assert picture.size == (100 + 2 * LINE, 50 + 2 * LINE)
    assert picture.getpixel((LINE + 50, LINE + 40)) == ANSWER_COLOUR


class Outside(HTMLParser):
    """Collects what a page would fetch, run, or jump to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object"):
            self.found.append(tag)
        for name, value in attrs:
            local = value is not None and value.startswith(("data:image/png;base64,", "#"))
            if name in ("src", "href", "xlink:href", "srcset") and not local:
                self.found.append(f"{name}={value}")


def report(path: Path, **parts: Any) -> str:
    write_report(path, **{"config": CONFIG, "summary": SUMMARY, "rows": [], "samples": []} | parts)
    return path.read_text()


def test_the_report_is_one_page_with_everything(tmp_path: Path, sample: Sample) -> None:
    steps = [{"step": step, "time": 0.0, "time/step": 4.0, "time/learn": 4.0} | STEP for step in (1, 2)]
    evaluations = [{"step": step, "time": 0.0, "eval/giou": 0.5, "eval/n_acc": None} for step in (0, 2)]
    page = report(tmp_path / "report.html", rows=evaluations + steps, samples=[(1, [sample]), ("last", [sample])])

    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    assert "http" not in page and "url(" not in page.replace("url(#", "")

    assert "a &lt;b&gt;bold&lt;/b&gt; guess" in page and "Find the &lt;7&gt;" in page and "alert(1)&lt;" in page
    for shown in ("0.438", "0.613", "+0.175", "−0.010", "1:02:03", "2.13.0+cpu", "seed 3", "−0.25", "3.50", "5.31"):
        assert shown in page
    for title in ("Held-out evaluation", "Label active", "Throughput", "Responses, step 1", "Responses, last"):
        assert title in page
    assert "Advantage</h3>" not in page and "Clip share" not in page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("truth", "told"), [(None, None), ([], "truth: no box"), ([(0, 0, 9, 9)] * 2, "truth: 2 boxes")]
)
def test_a_sample_tells_the_boxes_meant_where_it_is_about_boxes(tmp_path: Path, sample: Sample, truth, told) -> None:
    page = report(tmp_path / "report.html", samples=[(1, [replace(sample, truth=truth)])])
    assert told in page if told else "</i>truth" not in page


def test_the_report_shows_what_the_task_measures(tmp_path: Path) -> None:
    scores = {"before": {"accuracy": 0.125, "format_rate": 1.0}, "after": {"accuracy": 0.75, "format_rate": 1.0}}
    rows = [{"step": step, "eval/accuracy": value} for step, value in ((0, 0.125), (2, 0.75))]
    page = report(tmp_path / "report.html", summary=SUMMARY | scores, rows=rows)
    assert "+0.625" in page and "<td>Accuracy<" in page and "gIoU" not in page
    assert page.count("<svg") == 1


def test_the_report_shows_the_metrics_of_a_task_of_ones_own(tmp_path: Path) -> None:
    """It does not know which way is better, nor that they lie between 0 and 1."""
    scores = {"before": {"<mae>": 3.0, "bias": -0.5}, "after": {"<mae>": 2.0, "bias": -0.25, "bias_low": -0.4}}
    rows = [
        {"step": step, "eval/<mae>": value, "eval/bias": 0.0, "eval/bias_low": 0.0}
        for step, value in ((0, 3.0), (2, 2.0))
    ]
    page = report(tmp_path / "report.html", summary=SUMMARY | scores, rows=rows)
    assert "<td>&lt;mae&gt;<" in page and '<span class="quiet">−1.000</span>' in page and "<td>bias<" in page
    assert 'class="track"' not in page and page.count("<svg") == 1 and "bias_low" not in page


def test_the_report_of_sft_has_no_rollouts(tmp_path: Path) -> None:
    page = report(tmp_path / "report.html", rows=[{"step": 1, "time": 0.0, "time/step": 1.0} | SFT_STEP])
    assert "Loss</h3>" in page and "1.25" in page
    assert "rollout" not in page.partition("<body>")[2]


def test_the_report_copes_with_nothing_and_with_gaps(tmp_path: Path) -> None:
    assert "<svg" not in report(tmp_path / "report.html", config={}, summary={})
    gaps = [{"step": step, "train/grad_norm": None if step % 3 else 1.0, "train/loss": None} for step in range(60)]
    assert report(tmp_path / "report.html", rows=gaps).count("<svg") == 1


def test_the_configuration_is_yaml() -> None:
    config = CONFIG | {"odd": ["no", "1.5", "", "x # y", {"a": 1e-06}], "switch": "off", "empty": {}}
    assert OmegaConf.to_container(OmegaConf.create(to_yaml(config))) == config


@pytest.fixture
def no_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # it has read the environment already
    monkeypatch.setenv("NETRC", str(tmp_path_factory.mktemp("home") / "netrc"))


def test_a_run_is_recorded_and_finished(tmp_path: Path, capfd: pytest.CaptureFixture[str], no_key: None) -> None:
    monitor = begin(tmp_path, wandb=WandbMode.auto, samples=chooser())
    with monitor.phase("evaluate"):
        pass
    monitor.log_eval(0, {"giou": 0.5})
    for step in (1, 2):
        with monitor.phase("learn"):
            pass
        monitor.log(step, STEP)
        monitor.show_samples(step, [smoothed_group()])
    run_id = monitor.run_id
    monitor.finish(SUMMARY)

    assert len(run_id) == 8
    assert [path.name for path in (tmp_path / "wandb").glob(f"offline-run-*-{run_id}")] != []
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(
        json.dumps(SUMMARY | {"after": SUMMARY["after"] | {"thinking_rate": None}})
    )
    assert (tmp_path / "report.html").exists()
    last = rows(tmp_path)[-1]
    assert last["time/step"] == last["time/learn"] > 0 and last["reward/rollout/total"] == 5.31
    assert "time/evaluate" not in last and "time/evaluate" in rows(tmp_path)[0]

    resumed = begin(tmp_path, wandb=WandbMode.offline, run_id=run_id, start_step=1)
    assert resumed.run_id == run_id
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]
    assert not (tmp_path / "summary.json").exists() and not (tmp_path / "report.html").exists()
    resumed.close()
    assert wandb.run is None

    shown = capfd.readouterr()
    assert "wandb:" not in shown.out + shown.err  # only we speak
    assert "wandb sync" in shown.out and "reward  5.31" in shown.out


def test_a_new_run_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    for _ in range(2):
        monitor = begin(tmp_path)
        monitor.log_eval(0, {"giou": 0.5})
        monitor.close()
    assert len(rows(tmp_path)) == 1


def test_a_failed_run_keeps_its_metrics_and_has_no_summary(tmp_path: Path) -> None:
    monitor = begin(tmp_path)
    with pytest.raises(ValueError), monitor.phase("learn"):
        raise ValueError
    monitor.log(1, STEP)
    monitor.close()
    assert rows(tmp_path)[0]["time/learn"] >= 0
    assert not (tmp_path / "summary.json").exists() and not (tmp_path / "report.html").exists()


def test_the_report_shows_the_first_samples_and_the_latest(tmp_path: Path) -> None:
    monitor = begin(tmp_path, samples=chooser())
    for step in range(1, 6):
        monitor.show_samples(step, [smoothed_group()])
    monitor.finish(SUMMARY)
    page = (tmp_path / "report.html").read_text()
    assert [step for step in range(1, 6) if f"Responses, step {step}" in page] == [1, 4, 5]


def held_out(count: int) -> list[Example]:
    return [replace(example(identity=str(number)), question=f"question {number}") for number in range(count)]


def test_the_same_examples_are_shown_at_each_evaluation(tmp_path: Path) -> None:
    """With several answers to each, the first one."""
    monitor = begin(tmp_path, samples=chooser(answers=2))
    examples = held_out(5)
    for step in (0, 4):
        texts = [(each, f"answer <{step}.{each.id}.{number}>", number) for each in examples for number in range(3)]
        monitor.show_answers(step, examples, [Prediction.of(*text) for text in texts])
    monitor.finish(SUMMARY)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h3>question") == 2 and "question 2" not in page
    found = re.findall(r"step (\d)</span>.*?<pre>answer &lt;(.*?)&gt;</pre>", page)
    assert found == [("0", "0.0.0"), ("4", "4.0.0"), ("0", "0.1.0"), ("4", "4.1.0")]
    assert "rollout" not in page.partition("<body>")[2] and page.count('alt=""') == 4


def test_answers_are_shown_of_each_part_and_each_set() -> None:
    examples = [replace(each, part=part) for part in ("find", "count") for each in held_out(3)]
    predictions = [Prediction.of(each, f"{each.part} {each.id}.{n}", n) for each in examples for n in range(2)]
    texts = [sample.responses[0].text for sample in chooser(answers=2).answered(examples, predictions)]
    assert texts == ["find 0.0", "find 1.0", "count 0.0", "count 1.0"]


def test_wandb_has_a_table_of_answers_for_each_evaluation() -> None:
    samples = chooser(answers=2).answered(held_out(3), [Prediction.of(each, f"to {each.id}") for each in held_out(3)])
    table = answer_table(40, samples)
    assert table.get_column("text") == ["to 0", "to 1"] and table.get_column("step") == [40, 40]
    assert table.get_column("truth") == ["[[10, 10, 20, 20]]"] * 2
    assert samples[0].responses[0].boxes == [(0, 0, 84, 84)]


@pytest.mark.parametrize("evaluations", [1, 8, 9, 40])
def test_of_many_evaluations_the_report_shows_the_first_the_last_and_some_between(
    tmp_path: Path, evaluations: int
) -> None:
    monitor = begin(tmp_path, samples=chooser(answers=1))
    for step in range(evaluations):
        monitor.show_answers(step, held_out(1), [Prediction.of(held_out(1)[0], "")])
    monitor.finish(SUMMARY)
    steps = [int(step) for step in re.findall(r"step (\d+)</span>", (tmp_path / "report.html").read_text())]
    assert steps[0] == 0 and steps[-1] == evaluations - 1 and steps == sorted(steps)
    assert len(steps) <= 8 and len(steps) >= min(evaluations, 5)


@pytest.mark.parametrize(("count", "examples"), [(0, 3), (2, 0)])
def test_no_answers_no_section(tmp_path: Path, count: int, examples: int) -> None:
    monitor = begin(tmp_path, samples=chooser(answers=count))
    monitor.show_answers(0, held_out(examples), [Prediction.of(each, "") for each in held_out(examples)])
    monitor.finish(SUMMARY)
    assert "Answers to held-out questions" not in (tmp_path / "report.html").read_text()


def test_the_report_shows_intervals_sampled_scores_and_the_best(tmp_path: Path) -> None:
    after = {"accuracy": 0.75, "accuracy_low": 0.701, "accuracy_high": 0.799, "pass@4": 0.875, "pass@4_low": 0.8}
    after |= {"pass@4_high": 0.95}
    best = {"metric": "accuracy", "value": 0.76, "step": 40, "checkpoint": "step_000040"}
    summary = SUMMARY | {"before": {"accuracy": 0.5}, "after": after, "best": best}
    page = report(tmp_path / "report.html", summary=summary)
    assert "0.701 – 0.799" in page and "95 % bootstrap interval" in page
    assert "<td>pass@4<" in page and "0.875" in page and "pass@4_low" not in page
    assert "Best accuracy" in page and "0.760 at step 40" in page


def test_the_report_shows_intervals_and_sampled_scores_of_each_part(tmp_path: Path) -> None:
    after = {"anls": 0.6, "a/anls": 0.4, "a/anls_low": 0.301, "a/anls_high": 0.499, "a/pass@2": 0.875}
    after |= {"a/pass@2_low": 0.8, "a/pass@2_high": 0.9}
    page = report(tmp_path / "report.html", summary=SUMMARY | {"before": {}, "after": after})
    assert "<td>a: ANLS<" in page and "0.301 – 0.499" in page
    assert "<td>a: pass@2<" in page and "0.800 – 0.900" in page and "pass@2_low" not in page


@pytest.mark.parametrize(("every", "shown"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [1, 3, 5])])
def test_samples_are_shown_when_they_are_due(every: int, shown: list[int]) -> None:
    assert [step for step in range(1, 6) if chooser(every=every).due(step)] == shown


def test_the_best_and_the_worst_rollout_and_the_label_are_shown() -> None:
    samples = chooser().choose([group([2.0, 5.0, 1.0, 3.0], 6.0), group([], 6.0), group([1.0])])
    assert [[r.reward for r in sample.responses] for sample in samples] == [[5.0, 1.0, 6.0], [6.0]]
    assert [r.source for r in samples[0].responses] == [Source.ROLLOUT, Source.ROLLOUT, Source.LABEL]
    assert samples[0].image.size == (84, 84) and samples[0].truth == [(10, 10, 20, 20)]
    assert samples[0].responses[0].boxes == [(0, 0, 84, 84)]


def smoothed_group() -> Group:
    one = group([7.0, 3.0], 6.0)
    assert smooth(one)
    return one


def test_a_smoothed_label_shows_both_rewards_in_the_report_and_in_wandb(tmp_path: Path) -> None:
    """The parts beside it add up to the reward before it was smoothed."""
    samples = chooser().choose([smoothed_group(), group([1.0], 6.0)])
    page = report(tmp_path / "report.html", samples=[(1, samples)])
    assert "reward <b>5.00</b>, smoothed from 6.00</span>" in page
    assert "reward <b>7.00</b></span>" in page and page.count("smoothed from") == 1
    table = sample_table(1, samples)
    rewards, before = table.get_column("reward"), table.get_column("smoothed from")
    assert list(zip(rewards, before, strict=True)) == [
        *[(7.0, None), (3.0, None), (5.0, 6.0)],
        *[(1.0, None), (1.0, None), (6.0, None)],
    ]


def test_several_images_are_shown_side_by_side_and_none_as_a_white_one():
    images = [Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 5), "blue")]
    (sample,) = chooser(images=lambda _: images).choose([group([1.0])])
    assert sample.image.size == (40, 20)
    assert [sample.image.getpixel(place) for place in ((9, 19), (10, 0), (10, 19))] == [
        (255, 0, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    (sample,) = chooser(images=lambda _: []).choose([group([1.0])])
    assert sample.image.getextrema() == ((255, 255),) * 3
