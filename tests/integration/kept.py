"""Actors that stay for later tests: to start one, with its imports, takes far longer than what a test asks of it.

`run_here` lends them to one run after the other. A run finds them as it would find new ones: data actors have read
nothing, learner actors hold no learner, and an engine has the settings that the run asks for, and takes the learner's
weights or has those of its model. An actor may start an engine with other settings in place of its own.
"""

import gc
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch import nn

from tests.integration.reader import Reader
from visurf_ray import actors
from visurf_ray.config.schema import ModelSource
from visurf_ray.feed import feed
from visurf_ray.learner.actor import LearnerActor
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.policy import load_model
from visurf_ray.models import resolved
from visurf_ray.rollout.actor import RolloutActor
from visurf_ray.rollout.pool import RolloutPool
from visurf_ray.rollout.vllm_engine import EngineConfig
from visurf_ray.weights.sender import WeightSender

_engines: dict[str, Any] = {}  # actors by their engine's settings, as text; the least recently used is the first
_MOST_ENGINES = 2  # each takes 2 GiB with its actor
_learners: dict[int, list[Any]] = {}  # by the number of ranks
_data: list[Any] = []


def engine(settings: EngineConfig, *, anew: bool = False) -> Any:
    """Return the engine with these settings.

    If there is none, it is started: in place of the least recently used one if there are too many.

    Args:
        anew: whether it must have the weights of its model. An engine that is kept has those that it has last taken.
    """
    key = repr(settings)
    found = _engines.pop(key, None)
    if found is None and len(_engines) < _MOST_ENGINES:
        found = Reader.options(num_cpus=0).remote(settings, all_cores())
    elif found is None or anew:
        found = found or _engines.pop(next(iter(_engines)))
        ray.get(found.start_another.remote(settings, all_cores()))
    _engines[key] = found
    ray.get(found.abort.remote())  # what a failed test has left
    return found


def all_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def open_transfer(
    model: nn.Module, engines: list[Any], *, address: str = "", port: int = 0, one_machine: bool = True
) -> WeightSender:
    """Open the transfer of a model's weights from this process to engines."""
    return WeightSender(
        model,
        engines,
        rank=0,
        gpu_workers=0,
        colocated=False,
        address=address,
        port=port,
        one_machine=one_machine,
        start_timeout=60,
        timeout=60,
    )


def learners(ranks: int) -> list[Any]:
    """Return so many learner actors as there are ranks, the same ones at every call. They hold no learner.

    They keep their process group, which is why each number of ranks has actors of its own.
    """
    if ranks not in _learners:
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {"DS_ACCELERATOR": "cpu"}}}
        _learners[ranks] = [LearnerActor.options(**options).remote() for _ in range(ranks)]
    ray.get([actor.__ray_call__.remote(_empty) for actor in _learners[ranks]])
    return _learners[ranks]


def end() -> None:
    """End all of them."""
    if ended := [actor.shut_down.remote() for actor in _engines.values()]:
        ray.wait(ended, num_returns=len(ended), timeout=30)
    for actor in [*_engines.values(), *_data, *(actor for ranks in _learners.values() for actor in ranks)]:
        ray.kill(actor)
    for kept in (_engines, _learners, _data):
        kept.clear()


@contextmanager
def lent(kinds: Collection[str], *, learns: bool) -> Iterator[None]:
    """Lend actors to the run inside the context.

    Args:
        kinds: of `runs.ALL`.
        learns: whether the run trains.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "data" in kinds:
            _lend_data(patch)
        if "learners" in kinds:
            _lend_learners(patch)
        if "engines" in kinds:
            _lend_engines(patch, learns)
        yield


def _empty(actor: Any) -> None:
    vars(actor).clear()
    gc.collect()
    gc.freeze()  # what is left belongs to imported modules: to look at it takes the next collection .3 s


def _anew(actor: Any) -> None:
    _empty(actor)
    actor.__init__()


def _lend_data(patch: pytest.MonkeyPatch) -> None:
    start, idle = feed.start_actor, list(_data)

    def take() -> Any:
        if not idle:
            _data.append(start())
            return _data[-1]
        actor = idle.pop()
        ray.get(actor.__ray_call__.remote(_anew))
        return actor

    patch.setattr(feed, "start_actor", take)


def _lend_learners(patch: pytest.MonkeyPatch) -> None:
    start = actors.start_learner

    def start_on_kept(config: Any, processor: Any, places: Sequence[Any], **options: Any) -> LearnerGroup:
        taken = iter(learners(len(places)))
        patch.setattr(actors, "LearnerActor", ActorClass(lambda place: next(taken)))
        return start(config, processor, places, **options)

    patch.setattr(actors, "start_learner", start_on_kept)
    patch.setattr(LearnerGroup, "shut_down", lambda group: None)


def _lend_engines(patch: pytest.MonkeyPatch, learns: bool) -> None:
    """Lend engines, one of each kind. A second one is the run's own.

    A lent engine computes on all cores, also in a run that would give it some of them.
    """
    shut_down, miniature = RolloutPool.shut_down, resolved(ModelSource("miniature"))
    taken: list[EngineConfig] = []

    def take(place: dict[str, Any], settings: EngineConfig, *arguments: Any) -> Any:
        if settings in taken:
            return RolloutActor.options(**place).remote(settings, *arguments)
        taken.append(settings)
        known = settings.model == miniature
        found = engine(settings, anew=not known)
        if known and not (learns or settings.adapter_rank):  # another run may have sent it other weights
            sender = open_transfer(load_model(miniature, dtype=torch.float32, gradient_checkpointing=False), [found])
            sender.send()
            sender.close()
        return found

    def shut_down_own(pool: RolloutPool) -> None:
        if any(actor not in _engines.values() for actor in pool.actors):
            shut_down(pool)

    patch.setattr(actors, "RolloutActor", ActorClass(take))
    patch.setattr(RolloutPool, "shut_down", shut_down_own)


class ActorClass:
    """Stands for one: `.options(**place).remote(*arguments)` calls `make(place, *arguments)`."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def options(self, **place: Any) -> SimpleNamespace:
        return SimpleNamespace(remote=partial(self.make, place))
