"""The learner group: the public face of the learner's ranks."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import ray

from visurf_ray.groups import Group, Metrics
from visurf_ray.learner.balance import balance, cost
from visurf_ray.learner.config import RankConfig, Shard
from visurf_ray.learner.metrics import summarise
from visurf_ray.method import LossConfig, token_weights


class LearnerGroup:
    """DeepSpeed ranks in Ray actors, which update the policy together."""

    def __init__(
        self, actors: Sequence[Any], config: RankConfig, *, seed: int, minibatches: int, cores: Sequence[Sequence[int]]
    ) -> None:
        """actors: one for each rank. cores: the CPU cores of each; none leaves them as they are."""
        self.actors = list(actors)
        self.minibatches = minibatches
        self._turn = Lock()  # ranks must hear of all calls in one order, from whatever thread: they run in lockstep
        address, port = ray.get(self.actors[0].address.remote())
        ray.get(
            [
                actor.start.remote(config, rank, len(self.actors), address, port, seed, list(cores[rank]))
                for rank, actor in enumerate(self.actors)
            ]
        )

    def connect(self, engines: Sequence[Any], *, gpu_workers: int, colocated: bool) -> None:
        """Open the weight transfer to the rollout workers; `gpu_workers`, `colocated` as in `weights.WeightSender`."""
        address, port = ray.get(self.actors[0].address.remote())
        self._call("connect", list(engines), gpu_workers, colocated, address, port)

    def send_weights(self) -> None:
        self._call("send_weights")

    def update(self, groups: Sequence[Group], loss: LossConfig) -> Metrics:
        """Update the policy with all groups, in `minibatches` optimiser steps; returns means over all tokens.

        Raises ValueError when there are fewer groups in a minibatch than ranks.
        """
        shards: list[list[Shard]] = [[] for _ in self.actors]
        for part in split_evenly(groups, self.minibatches):
            weights = token_weights(part, loss)
            for rank, chosen in enumerate(balance([cost(group) for group in part], len(self.actors))):
                shards[rank].append([(part[index], weights[index]) for index in chosen])
        with self._turn:
            results = ray.get([a.update.remote(s, loss) for a, s in zip(self.actors, shards, strict=True)])
        return summarise(results)

    def mean_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """The mean log-prob (nats) of a token of each response of each group, under the policy as it is."""
        shards = balance([cost(group) for group in groups], len(self.actors))
        with self._turn:
            found = ray.get(
                [
                    actor.mean_logprobs.remote([groups[index] for index in chosen])
                    for actor, chosen in zip(self.actors, shards, strict=True)
                ]
            )
        by_index = {
            index: values
            for chosen, of_rank in zip(shards, found, strict=True)
            for index, values in zip(chosen, of_rank, strict=True)
        }
        return [by_index[index] for index in range(len(groups))]

    def save(self, folder: Path) -> None:
        self._call("save", folder)

    def load(self, folder: Path) -> None:
        self._call("load", folder)

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face model (without its processor)."""
        self._call("export", folder)

    def _call(self, name: str, *arguments: Any) -> None:
        with self._turn:
            ray.get([getattr(actor, name).remote(*arguments) for actor in self.actors])


def split_evenly(groups: Sequence[Group], parts: int) -> list[list[Group]]:
    """Cut into `parts` runs whose lengths differ by one at most. Raises ValueError for fewer groups than parts."""
    if len(groups) < parts:
        raise ValueError(f"{len(groups)} groups cannot make {parts} minibatches: lower learner.minibatches")
    bounds = [round(index * len(groups) / parts) for index in range(parts + 1)]
    return [list(groups[begin:end]) for begin, end in pairwise(bounds)]
