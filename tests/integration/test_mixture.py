"""A mixture of two drawn tasks with a held-out set of a third, from the command line to the last evaluation."""

import json

import pytest

from tests.integration.runs import SMALL, rows, run_here

PARTS = [
    "task=mixture",
    "+task.parts.find={task: miniature, train: 24, held_out: 6, weight: 2}",
    "+task.parts.count={task: miniature_vqa, train: 12, held_out: 5}",
    "+eval.sets.names={task: miniature_classification, held_out: 4}",
]
SETTINGS = [*(one for one in SMALL if not one.startswith("task.")), *PARTS]


def test_a_dry_run_shows_parts_and_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here("train", *SETTINGS, "train.steps=9", "train.dry_run=true")
    assert done.returncode == 0, done.stderr
    for shown in (
        "find, 67% of the examples: 24 training rows, 6 held-out rows",
        "count, 33% of the examples: 12 training rows, 5 held-out rows",
        "names: 4 held-out rows",
        "9 of 4 prompts: 1.00 epochs of find, 1.00 epochs of count",
    ):
        assert shown in done.stdout


@pytest.mark.usefixtures("ray_cluster")
def test_a_mixture_is_trained_and_every_part_is_measured(tmp_path):
    """Two steps, then one more from the checkpoint."""
    folder = tmp_path / "run"
    settings = [*SETTINGS, f"output_dir={folder}", "train.checkpoint_every=2", "eval.every=0", "method.style=auto"]
    done = run_here("train", *settings, "train.steps=2", "train.export=false")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((folder / "summary.json").read_text())
    for scores in (summary["before"], summary["after"]):
        assert {"giou", "find/giou", "relaxed_accuracy", "count/relaxed_accuracy", "names/accuracy"} <= scores.keys()
        assert scores["find/giou"] == scores["giou"] and "accuracy" not in scores
    steps = [row for row in rows(folder) if "train/loss" in row]
    assert len(steps) == 2
    logged = {name for row in steps for name in row}
    for part in ("find", "count"):
        assert {f"reward/rollout/total/{part}", f"train/all_solved_share/{part}", f"align/margin/{part}"} <= logged
    assert "reward/rollout/total" in logged and not any(name.endswith("/names") for name in logged)
    assert any("eval/names/accuracy" in row for row in rows(folder))
    done = run_here("train", *settings, "train.steps=3", "train.export=false", "train.resume=auto")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in rows(folder) if "train/loss" in row] == [1, 2, 3]


@pytest.mark.usefixtures("ray_cluster")
def test_an_evaluation_of_a_mixture_can_be_scored_again(tmp_path):
    folder = tmp_path / "evaluation"
    done = run_here("evaluate", *PARTS, "checkpoint=miniature", f"output_dir={folder}", "rollout.memory=0.25")
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((folder / "metrics.json").read_text())
    assert {"find/giou", "count/relaxed_accuracy", "names/accuracy"} <= scores.keys()
    done = run_here("evaluate", *PARTS, f"predictions={folder}/predictions.jsonl", f"output_dir={tmp_path}/again")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == scores
