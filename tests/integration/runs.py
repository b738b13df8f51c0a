"""Runs of the entry points: in a process of their own, or in this one, on the tests' Ray cluster."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import ray

from tests.integration.watching import Seen, watched

SMALL = [
    "train.batch_size=4",
    "rollout.n=3",
    "rollout.max_tokens=70",
    "rollout.memory=0.25",
    "task.train=32",
    "task.held_out=12",
    "monitor.samples_every=1",
]

_OFFLINE = {"WANDB_MODE": "offline", "WANDB_API_KEY": ""}


def run(module: str, *arguments: str, **environment: str) -> CompletedProcess[str]:
    """Run `python -m visurf_ray.<module>` with a Ray of its own."""
    variables = os.environ | _OFFLINE | environment
    return subprocess.run(_command(module, *arguments), capture_output=True, text=True, timeout=500, env=variables)


def begin(module: str, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """Begin `python -m visurf_ray.<module>` with a Ray of its own; what it prints goes to a file."""
    with log.open("wb") as file:
        return subprocess.Popen(_command(module, *arguments), stdout=file, stderr=file, env=os.environ | _OFFLINE)


def run_watched(
    module: str, *arguments: str, **environment: str
) -> AbstractContextManager[tuple[CompletedProcess[str], Seen]]:
    """Run as `run` does, with canaries for keys in the environment, and look at the processes; see `watching`."""
    return watched(_command(module, *arguments), _OFFLINE | environment)


def _command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"visurf_ray.{module}", "cluster.address=local", *arguments]


ALL = ("data", "learners", "engines")  # the kinds of actors that `run_here` lends to a run


def run_here(module: str, *arguments: str, own: Collection[str] = ()) -> CompletedProcess[str]:
    """Run `python -m visurf_ray.<module>` in this process, on the Ray cluster that it is connected to if it is.

    It starts in a fraction of the time that `run` takes: neither Ray nor the imports of this process start again, and
    the run borrows actors that have started, see `kept`.

    Args:
        own: the kinds of actors that the run starts and ends itself nevertheless; see `ALL`.
    """
    command = [f"visurf_ray.{module}", "cluster.address=local", *arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, _lent(module, own), redirect_stdout(stdout), redirect_stderr(stderr):
        for name, value in _OFFLINE.items():
            patch.setenv(name, value)
        patch.setattr("sys.argv", command)
        status = import_module(f"visurf_ray.{module}").main()
    return CompletedProcess(command, status, stdout.getvalue(), stderr.getvalue())


def _lent(module: str, own: Collection[str]) -> AbstractContextManager[None]:
    if not ray.is_initialized():
        return nullcontext()
    from tests.integration import kept  # imports what a run imports

    return kept.lent(set(ALL) - set(own), learns=module == "train")


def rows(folder: Path) -> list[dict]:
    """Return the lines of a run's metrics file."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def is_refused(done: CompletedProcess[str], expected: list[str]) -> bool:
    """Whether a run ended with one message, which has all of `expected` in it: a line, and maybe a list below it."""
    line, *below = done.stderr.splitlines()
    one = line.startswith("error: ") and all(each.startswith("  ") for each in below)
    return done.returncode == 2 and one and all(part in done.stderr for part in expected)
