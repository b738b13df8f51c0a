"""The learner group: calls all ranks as one learner."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import ray
from jaxtyping import Float

from visurf_ray.aliases import ActorHandle, Reference
from visurf_ray.cluster.deaths import death_among
from visurf_ray.cluster.waiting import fetch
from visurf_ray.config.choices import Packing
from visurf_ray.errors import LearnerLostError, StalledError, current_phase, writing
from visurf_ray.groups import Group, Metrics, Response
from visurf_ray.learner import stored
from visurf_ray.learner.balance import Shard, balance, cut, spread
from visurf_ray.learner.config import RankConfig
from visurf_ray.learner.metrics import StepReport, sizes, summarise
from visurf_ray.learner.universal import ranks_of
from visurf_ray.method import LossConfig, token_weights


class LearnerGroup:
    """DeepSpeed ranks in Ray actors that train one policy."""

    def __init__(
        self,
        actors: Sequence[ActorHandle],
        config: RankConfig,
        *,
        seed: int,
        minibatches: int,
        cores: Sequence[Sequence[int]],
        claim_gpus: Callable[[], None] | None = None,
        launch: Callable[[], Sequence[ActorHandle]] | None = None,
    ) -> None:
        """Start the ranks.

        Args:
            actors: one `LearnerActor` handle for each rank.
            minibatches: optimiser steps of an update.
            cores: the CPU cores of each rank; an empty list leaves the operating system's choice.
            claim_gpus: called before ranks compute, where they share GPUs with engines: puts the engines to sleep.
            launch: starts the actors again; see `restart`.
        """
        self.actors = list(actors)
        self.config = config
        self.cost = config.cost
        self.minibatches = minibatches
        self._claim_gpus = claim_gpus or (lambda: None)
        self.timeout = config.timeout
        self._turn = Lock()  # ranks run in lockstep: all must receive the calls of several threads in one order
        self._launch = launch
        self._rendezvous: TemporaryDirectory[str] | None = None
        self._begin = partial(self._start, seed, cores)
        self._begin()

    def _start(self, seed: int, cores: Sequence[Sequence[int]]) -> None:
        init_method = self._init_method()
        world = len(self.actors)
        self._fetch(
            [
                actor.start.remote(self.config, rank, world, init_method, seed, list(cores[rank]))
                for rank, actor in enumerate(self.actors)
            ]
        )

    def _init_method(self) -> str:
        """Return the address, in PyTorch's form, where ranks meet."""
        address, port = self._fetch(self.actors[0].address.remote())
        if address.startswith("127."):  # no other machine reaches this Ray, and PyTorch's store would listen to all
            self._rendezvous = TemporaryDirectory(prefix="visurf_ray-")
            return f"file://{self._rendezvous.name}/store"
        return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"  # brackets: IPv6

    def restart(self, folder: Path | None, scratch: Path | None = None) -> None:
        """Start the ranks anew, after a LearnerLostError; the weight transfer is closed then.

        Args:
            folder: a training state for `load`; None: the state is that of the start.
            scratch: as for `load`.
        """
        assert self._launch, "the group has been told how"
        self.shut_down()
        self._claim_gpus()
        self.actors = list(self._launch())
        self._begin()
        if self.cost.packing is not self.config.cost.packing:
            self.set_packing(self.cost.packing)
        if folder:
            self.load(folder, scratch)

    @property
    def least_groups(self) -> int:
        """How many groups an update needs: one for each minibatch. Ranks share its responses."""
        return self.minibatches

    def connect(
        self, engines: Sequence[ActorHandle], *, engine_gpus: int, colocated: bool, start_timeout: float
    ) -> None:
        """Open the weight transfer to the rollout workers; arguments as for `WeightSender`.

        Args:
            engine_gpus: of each.
        """
        address, port = self._fetch(self.actors[0].address.remote())
        machines = self._fetch([engine.join.remote(number) for number, engine in enumerate(engines)])
        one_machine = all(machine == address for machine in machines)
        gpu_workers = engine_gpus * len(engines)
        self._call("connect", list(engines), gpu_workers, colocated, address, port, one_machine, start_timeout)

    def disconnect(self) -> None:
        """Close the weight transfer, before the rollout workers end."""
        self._call("disconnect")

    def send_weights(self) -> None:
        """Send the policy's weights to all rollout workers; call `connect` before."""
        self._call("send_weights")

    def update(
        self, groups: Sequence[Group], loss: LossConfig, learning_rate: float | None = None, *, step: int = 0
    ) -> Metrics:
        """Train on all groups, in `minibatches` optimiser steps; returns what to log: see `summarise` and `sizes`.

        With `RankConfig.epochs` above 1, these steps are repeated so many times. A step whose loss or gradient is not
        finite is not taken, and counted in `train/skipped_steps`; see `RankConfig.skip_nan`.

        Args:
            learning_rate: of all these steps; None keeps the one before, at first `RankConfig.learning_rate`.
            step: of the run. It decides, with the seed and the rank, which inputs of adapters drop out.

        Raises:
            ConfigError: a response and its prompt have more tokens than a row may hold.
            ValueError: there are fewer groups than minibatches.
        """
        begin = time.monotonic()
        reports = self.reports(groups, loss, learning_rate, step=step)
        return summarise(reports) | sizes(groups, time.monotonic() - begin)

    def reports(
        self,
        groups: Sequence[Group],
        loss: LossConfig,
        learning_rate: float | None = None,
        *,
        step: int = 0,
        minibatches: int | None = None,
    ) -> list[list[StepReport]]:
        """Train like `update`; returns what each rank reports of each optimiser step.

        Args:
            minibatches: optimiser steps of this update; None: as of every update.
        """
        split = split_evenly(groups, minibatches or self.minibatches)
        of_minibatches = [self._shards(minibatch, token_weights(minibatch, loss)) for minibatch in split]
        shards = list(zip(*of_minibatches, strict=True))  # of each rank
        with self._turn:
            self._claim_gpus()
            calls = [a.update.remote(s, loss, learning_rate, step) for a, s in zip(self.actors, shards, strict=True)]
            return self._fetch(calls)

    def write_groups(self, groups: Sequence[Group], folder: Path) -> None:
        """Have rank 0 write all that the learner gets of the groups into a folder; see `read_groups`."""
        with self._turn:
            self._fetch(self.actors[0].write_groups.remote(list(groups), folder))

    def mean_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """Return, for each response of each group, the mean log-prob of its tokens in nats under the current policy."""
        shards = self._shards(groups, [[1.0] * len(group.responses) for group in groups])
        with self._turn:
            self._claim_gpus()
            calls = [actor.mean_logprobs.remote(shard) for actor, shard in zip(self.actors, shards, strict=True)]
            found = self._fetch(calls)
        means: dict[Response, float] = {}
        for shard, of_rank in zip(shards, found, strict=True):
            for part, of_part in zip(shard, of_rank, strict=True):
                means |= zip(part.group.responses, of_part, strict=True)
        return [[means[response] for response in group.responses] for group in groups]

    def _shards(self, groups: Sequence[Group], weights: Sequence[Sequence[float]]) -> list[Shard]:
        """Return the parts that each rank computes, with nearly equal cost."""
        parts = cut(groups, weights, self.config.max_tokens_per_micro_batch, self.cost)
        parts = spread(parts, len(self.actors), self.cost.of)
        chosen = balance([self.cost.of(part.group) for part in parts], len(self.actors))
        return [[parts[index] for index in indices] for indices in chosen]

    def logprobs(self, group: Group, packing: Packing) -> Float[np.ndarray, "2 T"]:
        """Return the log-probs of the group's response tokens in nats: the learner's, and the sampler's or NaN.

        They are computed in one forward pass.
        """
        with self._turn:
            self._claim_gpus()
            return self._fetch([actor.logprobs.remote(group, packing) for actor in self.actors])[0]

    def set_packing(self, packing: Packing) -> None:
        """Pack in this way from now on."""
        self.cost = replace(self.cost, packing=packing)
        self._call("set_packing", packing)

    def take_reference(self) -> None:
        """Make the current policy the reference of the KL term, if the loss has one; at first it is the initial one."""
        self._call("take_reference")

    def save(self, folder: Path) -> None:
        """Write the training state: trained parameters, optimizer, and the reference if `take_reference` has set it.

        With train.async_checkpoint it is copied, and begins to be written: `written` tells when it is. Training may go
        on, and the next `save` may come when it is written.
        """
        self._call("save", folder)

    def written(self, wait: bool) -> bool:
        """Return whether all ranks have written what `save` was called for.

        Args:
            wait: whether to wait for it.

        Raises:
            OSError: a rank could not write a file.
        """
        return all(self._call("written", wait))

    def load(self, folder: Path, scratch: Path | None = None) -> None:
        """Read a training state that `save` wrote with the same ZeRO stage.

        Args:
            scratch: a folder that all machines see, in which the state is converted if another number of ranks has
                written it; None: the one in which `folder` is.

        Raises:
            WriteError: it cannot be converted for want of space, or the like.
        """
        if ranks_of(folder) in (0, len(self.actors)):  # without any, DeepSpeed says what is wrong
            self._call("load", folder, None)
            return
        scratch = scratch or folder.parent
        with writing("the training state for another learner.ranks", scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=scratch, prefix=".ranks-") as converted:
                self._fetch(self.actors[0].convert.remote(folder, Path(converted)))
                self._call("load", folder, Path(converted))

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face model, without a processor."""
        with self._turn:
            self._claim_gpus()  # to gather layers
            self._fetch([actor.export.remote(folder) for actor in self.actors])

    def shut_down(self) -> None:
        """End the ranks' processes."""
        for actor in self.actors:
            ray.kill(actor)
        if self._rendezvous:
            self._rendezvous.cleanup()

    def _fetch(self, references: Reference | Sequence[Reference]) -> Any:
        """Return what references refer to.

        Raises:
            LearnerLostError: a rank has died, or does not answer in time.
        """
        try:
            return fetch(references, self.timeout)
        except StalledError as error:
            raise LearnerLostError(str(error)) from error
        except ray.exceptions.RayError as error:
            if death := death_among(self.actors, current_phase()):
                raise LearnerLostError(death) from error
            raise

    def _call(self, name: str, *arguments: object) -> list[Any]:
        with self._turn:
            return self._fetch([getattr(actor, name).remote(*arguments) for actor in self.actors])


def read_groups(folder: Path) -> list[Group]:
    """Return the groups that `LearnerGroup.write_groups` has written, with their features in Ray's object store."""
    return stored.read_groups(folder, ray.put)


def split_evenly(groups: Sequence[Group], parts: int) -> list[list[Group]]:
    """Split the groups, in order, into `parts` lists whose lengths differ by at most one.

    Raises:
        ValueError: there are fewer groups than parts.
    """
    if len(groups) < parts:
        raise ValueError(f"{len(groups)} groups cannot make {parts} minibatches: lower learner.minibatches")
    bounds = [round(index * len(groups) / parts) for index in range(parts + 1)]
    return [list(groups[begin:end]) for begin, end in pairwise(bounds)]
