"""A run whose driver is killed is submitted again by what local.sh, submit.sh and slurm.sbatch share, launch/job.sh."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.runs import SMALL, rows
from tests.processes import Family, command, title

_ROOT = Path(__file__).parents[2]
_SCRIPT = """
set -euo pipefail
source {root}/launch/job.sh
root={root} address={address} job=run settle_seconds=10 runtime_env+=', "py_executable": "{python}"'
run_job {python} -m visurf_ray.train "$@"
exit "$job_code"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def cluster() -> Iterator[tuple[subprocess.Popen[bytes], str, dict[str, str]]]:
    """A Ray of its own: its process, the address of its job server, and the environment of who uses it."""
    folder = Path("/tmp") / f"vst.{os.getpid()}"  # short: a Unix socket's path has 107 characters at most
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "WANDB_MODE": "offline"}
    environment = os.environ | token | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    dashboard, agent = free_port(), free_port()
    words = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--temp-dir", folder, "--num-cpus=4"]
    words += [f"--port={free_port()}", f"--ray-client-server-port={free_port()}", "--dashboard-host=127.0.0.1"]
    words += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    head = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (listens(dashboard) and listens(agent)):
            assert head.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        yield head, f"http://127.0.0.1:{dashboard}", environment
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_killed_driver_goes_on_from_its_checkpoint_and_its_actors_have_ended(cluster, tmp_path):
    head, address, environment = cluster
    family = Family(head.pid)
    folder, log = tmp_path / "run", tmp_path / "log"
    script = _SCRIPT.format(root=_ROOT, address=address, python=sys.executable)
    overrides = ["train.steps=6", "train.checkpoint_every=1", "eval.every=0", "train.export=false"]
    with log.open("wb") as file:
        words = ["bash", "-c", script, "job.sh", *SMALL, *overrides, f"output_dir={folder}"]
        job = subprocess.Popen(words, stdout=file, stderr=file, env=environment)
    deadline = time.monotonic() + 240
    while not list(folder.glob("checkpoints/step_*/state.json")):
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    actors = tuple(f"ray::{name}Actor" for name in ("Rollout", "Learner", "Data", "Reward"))
    of_run = [each for each in family.living() if title(each).startswith((*actors, "VLLM::"))]
    assert len(of_run) == 5
    (driver,) = [each for each in family.living() if command(each)[1:3] == ["-m", "visurf_ray.train"]]
    driver.kill()
    _, left = psutil.wait_procs(of_run, timeout=30)
    assert not left, [title(each) for each in left]
    assert job.wait(timeout=240) == 0, log.read_text()
    told = "submitting the run again as run-again-1, from its newest checkpoint, if it has one (1 of 2 times)"
    assert told in log.read_text()
    assert [row["step"] for row in rows(folder) if "train/loss" in row] == list(range(1, 7))
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6
