"""A run on a task of the user's own: the printed example, whose file every actor loads."""

import json

import pytest

from tests.counting import write_example
from tests.integration.runs import SMALL, rows, run_here

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_printed_example_trains(tmp_path, monkeypatch):
    *_, (*_, train) = [None], write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = [setting for setting in SMALL if not setting.startswith("task.")]
    output = tmp_path / "run"
    done = run_here("train", *settings, *train[3:], "train.steps=2", f"output_dir={output}")
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [row for row in rows(output) if "train/loss" in row]
    assert len(steps) == 2
    assert "accuracy" in json.loads((output / "summary.json").read_text())["after"]
