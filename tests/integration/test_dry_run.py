"""A dry run from its command line: what it tells, that it leaves nothing, and that it refuses what a run refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_train import grounding


def dry_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In an empty working folder, with the output folder below it."""
    folder.mkdir()
    command = [sys.executable, "-m", "visurf_ray.train", "train.dry_run=true", "cluster.address=local", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)


def test_a_dry_run_tells_what_would_be_run_and_leaves_nothing(tmp_path):
    folder = tmp_path / "work"
    done = dry_run(folder, "task.train=40", "task.held_out=10", "train.steps=5", "learner.ranks=2", "learner.cpus=0.25")
    assert done.returncode == 0, done.stderr[-3000:]
    for part in (
        "40 training rows, 10 held-out rows",
        "5 of 16 prompts: 2.00 epochs",
        "1,929,440 parameters",
        "1 rollout worker(s), 2 learner rank(s)",
        "optimizer states",
        "KV cache",
        "all checks passed; nothing was started or written",
    ):
        assert part in done.stdout
    assert list(folder.iterdir()) == []


_REFUSED = {
    "no data file": (
        lambda d: grounding(d / "none.jsonl"),
        ["task.held_out: there is no data file", "none.jsonl"],
    ),
    "no data set": (
        lambda d: ["task=non_object", "task.train=owner/none", "task.held_out=owner/none"],
        ["task.held_out: owner/none cannot be read"],
    ),
    "data not given": (lambda d: ["task=non_object"], ["task.held_out is not set"]),
    "long prompt": (lambda d: ["task.train=8", "rollout.max_model_len=40"], ["scene train-0", "rollout.max_model_len"]),
    "too many workers": (lambda d: ["rollout.workers=4000"], ["rollout.workers=4000", "CPU", "Lower"]),
    "GPUs": (lambda d: ["rollout.gpus=1", "learner.gpus=1"], ["rollout.gpus=1"]),
    "model": (lambda d: ["model.path=owner/none"], ["model.path=owner/none", "hf download owner/none"]),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_a_dry_run_refuses_in_one_line_what_a_run_refuses(tmp_path, case):
    make, expected = _REFUSED[case]
    done = dry_run(tmp_path / "work", *make(tmp_path))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for part in expected:
        assert part in line
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.usefixtures("ray_cluster")
def test_a_dry_run_asks_the_cluster_and_starts_no_actor(tmp_path):
    """On the tests' cluster of 8 CPUs, of which four are asked for; five times two are too many."""
    import ray

    address = f"cluster.address={ray.get_runtime_context().gcs_address}"
    small = ["task.train=16", "task.held_out=4", "rollout.cpus=2"]
    before = len(ray._private.state.actors())
    done = dry_run(tmp_path / "fits", address, *small)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 node(s), 2 GPU, 8 CPU" in done.stdout
    done = dry_run(tmp_path / "too-large", address, *small, "rollout.workers=5")
    assert done.returncode == 2 and "rollout.workers=5" in done.stderr and "8 CPU (8 free)" in done.stderr
    assert len(ray._private.state.actors()) == before
