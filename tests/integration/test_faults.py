"""A run survives the loss of its actors, which are really killed or stopped, by process id, in several phases."""

import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray

from tests.integration.runs import ALL, SMALL, begin, rows, run_here
from tests.processes import Family
from visurf_ray.driver import Driver
from visurf_ray.feed.held_out import HeldOut
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.monitor import Monitor
from visurf_ray.rewards.pool import RewardPool

pytestmark = pytest.mark.usefixtures("ray_cluster")


def process_of(actor) -> int:
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


def engine_of(actor) -> int:
    """The process of vLLM's engine, which the actor has started."""
    (child,) = [each for each in psutil.Process(process_of(actor)).children() if "VLLM" in each.name()]
    return child.pid


@dataclass
class Deed:
    """Something that is done to a run once, before the first call of a method in a step; the first step is 0."""

    step: int
    kind: type
    method: str
    act: Callable[[Driver], None]


def run_with(
    deeds: list[Deed], folder: Path, *overrides: str, own: Collection[str] = ALL, status: int = 0
) -> Counter[str]:
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
        hook(Monitor, "show_samples", lambda _, __, groups: learnt.update(group.example.id for group in groups))
        for kind, method in {(deed.kind, deed.method) for deed in deeds}:
            hook(kind, method, due(kind, method))
        done = run_here("train", *SMALL, f"output_dir={folder}", *overrides, own=own)
    assert done.returncode == status, done.stderr[-5000:]
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


def test_a_run_survives_the_loss_of_its_actors_and_sigterm_saves_the_last_step(tmp_path):
    """One engine dies while it samples, the child of another while it idles, a third hangs in an evaluation.

    A learner that dies goes back to its checkpoint. SIGTERM ends the processes of learner and engines.
    """
    started: list[psutil.Process] = []

    def terminate(driver: Driver) -> None:
        of_actors = map(process_of, [*driver.learner.actors, *driver.rollouts.actors])
        started.extend(map(psutil.Process, [*of_actors, *map(engine_of, driver.rollouts.actors)]))
        os.kill(os.getpid(), signal.SIGTERM)

    deeds = [
        Deed(1, RewardPool, "submit", kill(lambda driver: process_of(driver.rollouts.actors[0]))),
        Deed(1, LearnerGroup, "update", kill(lambda driver: engine_of(driver.rollouts.actors[0]))),
        Deed(2, LearnerGroup, "update", kill(lambda driver: process_of(driver.data._workers[0]))),
        Deed(3, HeldOut, "__iter__", kill(lambda driver: engine_of(driver.rollouts.actors[0]), signal.SIGSTOP)),
        Deed(4, LearnerGroup, "update", kill(lambda driver: process_of(driver.learner.actors[0]))),
        Deed(6, LearnerGroup, "update", terminate),
    ]
    overrides = ["eval.every=4", "rollout.workers=2", "cluster.health_timeout=10", "train.checkpoint_every=2"]
    learnt = run_with(deeds, tmp_path, "train.steps=99", "train.async_checkpoint=false", *overrides, status=143)
    faults = assert_saved(tmp_path)
    print(json.dumps(faults, indent=1))
    assert set(learnt.values()) == {1}
    lost = ["rollout worker 0", "rollout worker 1", "data worker 0", "rollout worker 0", "learner"]
    assert [fault["role"] for fault in faults] == lost
    assert all(fault["replaced"] for fault in faults)
    assert len(started) == 5 and psutil.wait_procs(started, timeout=30)[1] == []


@pytest.mark.slow
def test_an_engine_that_dies_while_it_receives_weights_over_gloo(tmp_path, monkeypatch):
    """With ZeRO-3 the ranks gather the weights together, and none is left behind."""
    call = LearnerGroup._call

    def with_gloo(learner, name, *arguments):
        if name == "connect":
            *others, _, start_timeout = arguments
            arguments = (*others, False, start_timeout)  # as if engines were on other machines
        return call(learner, name, *arguments)

    monkeypatch.setattr(LearnerGroup, "_call", with_gloo)
    deeds = [Deed(1, LearnerGroup, "send_weights", kill(lambda driver: engine_of(driver.rollouts.actors[1])))]
    overrides = ["eval.every=0", "rollout.workers=2", "learner.ranks=2", "learner.zero_stage=3", "train.export=false"]
    learnt = run_with(deeds, tmp_path, "train.steps=3", *overrides)
    assert [(fault["role"], fault["replaced"]) for fault in finished(tmp_path, 3)] == [("rollout worker 1", True)]
    assert set(learnt.values()) == {1}


@pytest.mark.slow
def test_engines_that_die_or_hang_are_replaced_in_every_phase(tmp_path):
    """While sampling, idle, in a weight sync and in an evaluation."""
    deeds = [
        Deed(1, RewardPool, "submit", kill(lambda driver: process_of(driver.rollouts.actors[0]))),
        Deed(2, LearnerGroup, "update", kill(lambda driver: engine_of(driver.rollouts.actors[1]))),
        Deed(3, LearnerGroup, "update", kill(lambda driver: engine_of(driver.rollouts.actors[0]), signal.SIGSTOP)),
        Deed(4, LearnerGroup, "send_weights", kill(lambda driver: process_of(driver.rollouts.actors[1]))),
        Deed(5, HeldOut, "__iter__", kill(lambda driver: process_of(driver.rollouts.actors[0]), signal.SIGSTOP)),
    ]
    overrides = ["eval.every=6", "rollout.workers=2", "cluster.health_timeout=8", "train.export=false"]
    learnt = run_with(deeds, tmp_path, "train.steps=8", *overrides)
    faults = finished(tmp_path, 8)
    assert set(learnt.values()) == {1}
    assert [fault["role"] for fault in faults] == [f"rollout worker {number}" for number in (0, 1, 0, 1, 0)]
    assert all(fault["replaced"] for fault in faults)


def assert_saved(folder: Path) -> list[dict]:
    """The faults of a run that was stopped, which has logged each step once, and saved the last one."""
    found = [row for row in rows(folder) if "train/loss" in row]
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))
    assert all(value is not None and math.isfinite(value) for row in rows(folder) for value in row.values())
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert saved[-1] == f"step_{len(found):06d}" and not (folder / "summary.json").exists()
    faults = json.loads((folder / "checkpoints" / saved[-1] / "state.json").read_text())["faults"]
    assert len(faults) == found[-1].get("faults", 0)
    return faults


@pytest.mark.slow
def test_sigterm_ends_a_process_of_its_own_and_all_that_it_has_started(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = ["train.steps=99", "eval.every=0", "train.checkpoint_every=2"]
    run = begin("train", *SMALL, *overrides, f"output_dir={folder}", log=log)
    family = Family(run.pid)
    deadline = time.monotonic() + 240
    while not list(folder.glob("checkpoints/step_*/state.json")):
        assert run.poll() is None and time.monotonic() < deadline, log.read_text()
        family.living()
        time.sleep(0.1)
    run.terminate()
    assert run.wait(timeout=60) == 143, log.read_text()
    assert family.left(seconds=30) == ([], [])
    assert assert_saved(folder) == []


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_actors_and_engines_along(tmp_path):
    run = begin("train", *SMALL, "train.steps=99", f"output_dir={tmp_path / 'run'}", log=tmp_path / "log")
    family = Family(run.pid)
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len(rows(tmp_path / "run")) < 3:
        assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        family.living()
        time.sleep(0.1)
    assert family.find("VLLM::EngineCore").is_running()
    run.kill()
    run.wait()
    left, shared = family.left(seconds=15)
    # Two processes of Ray itself, which compute nothing: they look for the rest of Ray for a minute.
    assert set(left) <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} and not shared
    assert family.left(seconds=90) == ([], [])


@pytest.mark.slow
def test_a_learner_that_is_lost_goes_back_to_the_start_or_the_newest_checkpoint(tmp_path):
    """One rank dies before the first checkpoint, the other one in a weight sync after it."""
    deeds = [
        Deed(1, LearnerGroup, "update", kill(lambda driver: process_of(driver.learner.actors[1]))),
        Deed(4, LearnerGroup, "send_weights", kill(lambda driver: process_of(driver.learner.actors[0]))),
    ]
    overrides = ["eval.every=0", "learner.ranks=2", "train.export=false", "train.checkpoint_every=3"]
    run_with(deeds, tmp_path, "train.steps=5", *overrides)
    assert [(fault["role"], fault["replaced"]) for fault in finished(tmp_path, 5)] == [("learner", True)] * 2


@pytest.mark.slow
def test_ctrl_c_drops_a_batch_that_is_sampled(tmp_path):
    deeds = [Deed(2, RewardPool, "submit", lambda driver: os.kill(os.getpid(), signal.SIGINT))]
    overrides = ["train.steps=9", "eval.every=0", "train.checkpoint_every=9", "pipeline=one_step_off"]
    run_with(deeds, tmp_path, *overrides, status=130)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert saved.name in ("step_000001", "step_000002")
