"""A run survives the loss of its actors, which are really killed or stopped, by process id, in several phases."""

import json
import math
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray

from tests.integration.runs import SMALL, rows, run_here
from visurf_ray.driver import Driver
from visurf_ray.feed.held_out import HeldOut
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.rewards.pool import RewardPool

pytestmark = pytest.mark.usefixtures("ray_cluster")


def process_of(actor) -> int:
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


def engine_of(actor) -> int:
    """The process of vLLM's engine, which the actor has started."""
    (child,) = [each for each in psutil.Process(process_of(actor)).children() if "EngineCore" in each.name()]
    return child.pid


@dataclass
class Deed:
    """Something that is done to a run once, before the first call of a method in a step; the first step is 0."""

    step: int
    kind: type
    method: str
    act: Callable[[Driver], None]


def run_with(deeds: list[Deed], folder: Path, *overrides: str) -> Counter[str]:
    """Train with faults; returns how often each example was learnt."""
    running: dict[str, Driver] = {}
    now = {"step": -1}
    learnt: Counter[str] = Counter()
    left = list(deeds)
    with pytest.MonkeyPatch.context() as patch:

        def hook(kind: type, method: str, before: Callable[..., None]) -> None:
            original = getattr(kind, method)

            def called(this, *arguments, **named):
                before(this, *arguments)
                return original(this, *arguments, **named)

            patch.setattr(kind, method, called)

        def due(kind: type, method: str) -> Callable[..., None]:
            def act(*_) -> None:
                for deed in [
                    each for each in left if (each.kind, each.method, each.step) == (kind, method, now["step"])
                ]:
                    left.remove(deed)
                    deed.act(running["driver"])

            return act

        hook(Driver, "run", lambda driver, _: running.update(driver=driver))
        hook(Driver, "collect", lambda _, number, *__: now.update(step=number))
        hook(Driver, "step", lambda _, batch: learnt.update(group.example.id for group in batch.groups))
        for kind, method in {(deed.kind, deed.method) for deed in deeds}:
            hook(kind, method, due(kind, method))
        done = run_here("train", *SMALL, f"output_dir={folder}", *overrides)
    assert done.returncode == 0, done.stderr[-5000:]
    print(done.stderr)
    assert left == []
    return learnt


def kill(find: Callable[[Driver], int], how: signal.Signals = signal.SIGKILL) -> Callable[[Driver], None]:
    return lambda driver: os.kill(find(driver), how)


def finished(folder: Path, steps: int) -> list[dict]:
    """The faults of a run, which has logged every step once, and finite numbers."""
    steps_of = [row["step"] for row in rows(folder) if "train/loss" in row]
    assert steps_of == list(range(1, steps + 1))
    assert all(value is not None and math.isfinite(value) for row in rows(folder) for value in row.values())
    return json.loads((folder / "summary.json").read_text())["faults"]


def test_engines_that_die_or_hang_are_replaced_in_every_phase(tmp_path):
    """While sampling, idle, in a weight sync and in an evaluation."""
    deeds = [
        Deed(1, RewardPool, "submit", kill(lambda driver: process_of(driver.rollouts.actors[0]))),
        Deed(2, LearnerGroup, "update", kill(lambda driver: engine_of(driver.rollouts.actors[1]))),
        Deed(3, LearnerGroup, "update", kill(lambda driver: engine_of(driver.rollouts.actors[0]), signal.SIGSTOP)),
        Deed(4, LearnerGroup, "send_weights", kill(lambda driver: process_of(driver.rollouts.actors[1]))),
        Deed(5, HeldOut, "__iter__", kill(lambda driver: process_of(driver.rollouts.actors[0]), signal.SIGSTOP)),
    ]
    learnt = run_with(
        deeds,
        tmp_path,
        "train.steps=8",
        "eval.every=6",
        "rollout.workers=2",
        "cluster.health_timeout=8",
        "train.export=false",
    )
    faults = finished(tmp_path, 8)
    print(json.dumps(faults, indent=1))
    assert set(learnt.values()) == {1}
    assert [fault["role"] for fault in faults] == [f"rollout worker {number}" for number in (0, 1, 0, 1, 0)]
    assert all(fault["replaced"] for fault in faults)
