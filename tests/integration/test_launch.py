"""The launch scripts as a user runs them: a whole job on a Ray of its own, and Ctrl-C in the middle."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SMALL = [
    "train.batch_size=4",
    "rollout.n=3",
    "rollout.max_tokens=70",
    "rollout.memory=0.25",
    "task.train=32",
    "task.held_out=8",
    "monitor.wandb=offline",
]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = ["bash", "launch/local.sh", *_SMALL, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=_ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def of_our_ray() -> list[str]:
    """Command lines of processes that a Ray of local.sh has left."""
    found = subprocess.run(["pgrep", "-af", "/tmp/vsr[.]"], capture_output=True, text=True)
    return found.stdout.splitlines()


def test_a_job_from_one_command(tmp_path):
    job = start("train.steps=1", f"output_dir={tmp_path}/a run")
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output[-3000:]
    assert json.loads((tmp_path / "a run" / "summary.json").read_text())["steps"] == 1
    assert f"{tmp_path}/a run/report.html" in output
    assert not of_our_ray()


@pytest.mark.slow
def test_ctrl_c_stops_the_job_and_its_ray(tmp_path):
    job = start("train.steps=500", f"output_dir={tmp_path}/run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 500
    while not (metrics.exists() and "train/loss" in metrics.read_text()):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(1)
    os.killpg(job.pid, signal.SIGINT)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 130, output[-3000:]
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not of_our_ray()


@pytest.mark.slow
def test_a_failing_job_fails_the_command(tmp_path):
    job = start("task.name=nothing", f"output_dir={tmp_path}/run")
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 2
    assert "error: unknown task 'nothing'" in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()
