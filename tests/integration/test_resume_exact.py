"""A deterministic run that is stopped after a step and resumed is the run that was never stopped, bit for bit."""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.integration.runs import SMALL, rows, run_here

pytestmark = pytest.mark.usefixtures("ray_cluster")

# What differs between two runs: when and how fast they were. Every other number of metrics.jsonl is compared.
TIMES = re.compile(r"time|time/.*|train/tokens_per_second")

# Several epochs of the rows, with what a resumed run must know of the steps before: styles, the curriculum, the best
# score, the optimizer's moments and the schedule; and draws of rollouts and of answers.
SETTINGS = [
    *SMALL,
    *("rollout.deterministic=true", "task.train=8", "task.held_out=4", "feed.curriculum=1", "learner.schedule=cosine"),
    *("method.style=auto", "method.style_every=3", "eval.every=2", "eval.n=2", "eval.temperature=1.0"),
    *("train.keep_best=n_acc", "train.keep_checkpoints=99"),
]
CASES = {
    "all weights": [],
    "adapters with dropout": ["learner.lora.rank=4", "learner.lora.dropout=0.2"],
    "two ranks and engines": ["learner.ranks=2", "learner.zero_stage=3", "rollout.workers=2", "feed.workers=2"],
    "stages and a reference": ["method=sft_then_rlvr", "method.sft_steps=3", "method.kl_coef=0.05"],
    "refills": ["method=dapo", "method.max_refills=2", "learner.minibatches=2", "train.async_checkpoint=false"],
}


def numbers(folder: Path) -> list[dict[str, float]]:
    """What the run has logged, in order, without times."""
    return [{name: value for name, value in row.items() if not TIMES.fullmatch(name)} for row in rows(folder)]


def train(folder: Path, *settings: str, own: Collection[str] = ("learners", "engines")) -> None:
    done = run_here("train", *SETTINGS, *settings, f"output_dir={folder}", own=own)
    assert done.returncode == 0, done.stderr[-3000:]


def killed_after(whole: Path, step: int, folder: Path) -> Path:
    """The folder of a run that was killed some time after the checkpoint of a step."""
    shutil.copytree(whole, folder)
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "export")
    for checkpoint in (folder / "checkpoints").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    return folder


def assert_same_run(whole: Path, resumed: Path) -> None:
    expected, found = numbers(whole), numbers(resumed)
    assert [row["step"] for row in found] == [row["step"] for row in expected], "no row is doubled, and none is missing"
    for one, other in zip(expected, found, strict=True):
        assert other.keys() == one.keys()
        differing = {name: (one[name], other[name]) for name in one if one[name] != other[name]}
        assert not differing, f"step {one['step']}"
    files = sorted(path.relative_to(whole) for path in (whole / "export").rglob("*.safetensors"))
    assert files
    for file in files:
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, resumed)]
    for summary in summaries:
        del summary["train_seconds"]
    assert summaries[0] == summaries[1]


def test_a_run_that_is_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    settings = ["train.steps=4", "train.checkpoint_every=2"]
    train(tmp_path / "whole", *settings, own=["learners"])
    steps = [row for row in numbers(tmp_path / "whole") if "train/loss" in row]
    assert ["align/margin" in row for row in steps] == [True, False, False, True]
    assert len({row["train/loss"] for row in steps}) == 4 and any(row["train/left_out"] for row in steps)
    resumed = killed_after(tmp_path / "whole", 2, tmp_path / "resumed")
    train(resumed, *settings, "train.resume=auto", own=["learners"])
    assert_same_run(tmp_path / "whole", resumed)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_may_be_stopped_after_any_step(tmp_path, case):
    settings = ["train.steps=8", "train.checkpoint_every=1", *CASES[case]]
    train(tmp_path / "whole", *settings)
    for step in range(1, 9):
        resumed = killed_after(tmp_path / "whole", step, tmp_path / str(step))
        train(resumed, *settings, "train.resume=auto")
        assert_same_run(tmp_path / "whole", resumed)
