"""Runs whose rows have no image: all of them, or some of a batch, also where these are all that a rank has."""

import json

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.integration.runs import SMALL, rows, run_here

pytestmark = pytest.mark.usefixtures("ray_cluster")

SETTINGS = [
    *(setting for setting in SMALL if not setting.startswith("task.")),
    "train.steps=2",
    "train.checkpoint_every=0",
    "learner.learning_rate=1e-3",
]


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return f"task.train={path}", f"task.held_out={path}"


def sums(count):
    return [{"problem": f"{number} plus {number}", "solution": str(2 * number)} for number in range(count)]


def check_run(done, folder):
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [row for row in rows(folder) if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["train/rollout_logprob_diff_max"] < 1e-4 and row["train/grad_norm"] > 0.0


@pytest.mark.timeout(300)
def test_a_rank_may_have_rows_of_text_alone(tmp_path):
    """Of the two groups of each step one has an image, and each rank gets one, under ZeRO-3."""
    folder = tmp_path / "run"
    Image.new("RGB", (84, 84), (200, 30, 30)).save(tmp_path / "a.png")
    data = write(tmp_path / "rows.jsonl", [*sums(1), {"problem": "how many", "solution": "1", "image": "a.png"}])
    ranks = ["train.batch_size=2", "learner.ranks=2", "learner.zero_stage=3"]
    done = run_here("train", *SETTINGS, *ranks, *data, "task=math", f"output_dir={folder}")
    check_run(done, folder)


REWARD = "def score(response, ground_truth):\n    return float(len(response) % 3)\n"  # rewards of a group differ


@pytest.mark.parametrize(
    ("task", "metric"), [("vqa", "relaxed_accuracy"), pytest.param("math", "accuracy", marks=pytest.mark.slow)]
)
def test_rows_of_text_alone_are_trained_evaluated_and_exported(task, metric, tmp_path):
    """No prompt has an image, so vLLM is told to expect none."""
    folder = tmp_path / "run"
    (tmp_path / "own.py").write_text(REWARD)
    data = write(tmp_path / "rows.jsonl", sums(6))
    own = ["reward=none", f"reward.function={tmp_path}/own.py:score"]
    done = run_here("train", *SETTINGS, *data, *own, f"task={task}", f"output_dir={folder}")
    check_run(done, folder)
    assert metric in json.loads((folder / "summary.json").read_text())["after"]
    AutoModelForImageTextToText.from_pretrained(folder / "export")
    asked = [f"checkpoint={folder}/export", f"output_dir={tmp_path}/again", "rollout.memory=0.25", *data]
    done = run_here("evaluate", *asked, f"task={task}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert metric in json.loads((tmp_path / "again" / "metrics.json").read_text())
