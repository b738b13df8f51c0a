"""The Ray actor of one learner rank.

DeepSpeed and vLLM are imported inside of its methods: the driver imports this module, and needs neither.
"""

import os
import socket
from functools import partial
from pathlib import Path

import numpy as np
import ray
from jaxtyping import Float

from visurf_ray.aliases import ActorHandle, Fetch
from visurf_ray.cluster.cpu import unlink_openmp
from visurf_ray.cluster.resources import computing_threads
from visurf_ray.cluster.waiting import fetch
from visurf_ray.config.choices import Packing
from visurf_ray.groups import Group
from visurf_ray.learner.balance import Shard
from visurf_ray.learner.config import RankConfig
from visurf_ray.learner.metrics import StepReport
from visurf_ray.learner.stored import write_groups
from visurf_ray.method import LossConfig


@ray.remote
class LearnerActor:
    """Holds one rank. The actor is created first; `start` creates the rank when rank 0's address is known."""

    def address(self) -> tuple[str, int]:
        """Return this node's address and a free port on it."""
        return ray.util.get_node_ip_address(), _free_port()

    def start(
        self, config: RankConfig, rank: int, world_size: int, init_method: str, seed: int, cores: list[int]
    ) -> None:
        import torch

        from visurf_ray.learner.rank import Rank
        from visurf_ray.weights.interface import use_interface

        unlink_openmp()
        use_interface(ray.util.get_node_ip_address())
        self.fetch: Fetch = partial(fetch, timeout=config.timeout)
        if cores:
            os.sched_setaffinity(0, cores)
        threads = computing_threads(len(cores))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)  # its library has read the variable when it was loaded
        self.rank = Rank(config, rank=rank, world_size=world_size, init_method=init_method, seed=seed)
        self.rank.release()

    def connect(
        self,
        engines: list[ActorHandle],
        gpu_workers: int,
        colocated: bool,
        address: str,
        port: int,
        one_machine: bool,
        start_timeout: float,
    ) -> None:
        """Open the weight transfer to the rollout workers; arguments as for `WeightSender`.

        A policy with adapters needs none: its base weights do not change, and its adapters are small.
        """
        from visurf_ray.weights.sender import WeightSender

        self.engines = engines
        if self.rank.adapters:
            return
        self.sender = WeightSender(
            self.rank.model,
            engines,
            rank=self.rank.rank,
            gpu_workers=gpu_workers,
            colocated=colocated,
            address=address,
            port=port,
            one_machine=one_machine,
            start_timeout=start_timeout,
            timeout=self.rank.config.timeout,
        )

    def disconnect(self) -> None:
        """Close the weight transfer, and free the memory that it holds."""
        self.engines = []
        if sender := vars(self).pop("sender", None):  # none with adapters, nor if `connect` has failed
            sender.close()
        self.rank.release()

    def send_weights(self) -> None:
        """Send the trained weights to the rollout workers; returns when these have loaded them."""
        if self.rank.adapters:
            files = self.rank.adapter_files()
            if files:
                stored = ray.put(files)
                self.fetch([engine.load_adapters.remote(stored) for engine in self.engines])
        else:
            self.sender.send()
        self.rank.release()

    def update(
        self, minibatches: list[Shard], loss: LossConfig, learning_rate: float | None, step: int
    ) -> list[StepReport]:
        reports = self.rank.update(minibatches, loss, self.fetch, learning_rate, step=step)
        self.rank.release()
        return reports

    def write_groups(self, groups: list[Group], folder: Path) -> None:
        write_groups(groups, folder, self.fetch)

    def mean_logprobs(self, shard: Shard) -> list[list[float]]:
        logprobs = self.rank.mean_logprobs(shard, self.fetch)
        self.rank.release()
        return logprobs

    def logprobs(self, group: Group, packing: Packing) -> Float[np.ndarray, "2 T"]:
        logprobs = self.rank.logprobs(group, packing, self.fetch)
        self.rank.release()
        return logprobs

    def set_packing(self, packing: Packing) -> None:
        self.rank.set_packing(packing)

    def take_reference(self) -> None:
        self.rank.take_reference()
        self.rank.release()

    def save(self, folder: Path) -> None:
        self.rank.save(folder)

    def written(self, wait: bool) -> bool:
        return self.rank.written(wait=wait)

    def convert(self, folder: Path, target: Path) -> None:
        from visurf_ray.learner.universal import convert

        convert(folder, target)

    def load(self, folder: Path, converted: Path | None) -> None:
        self.rank.load(folder, converted)
        self.rank.release()

    def export(self, folder: Path) -> None:
        self.rank.export(folder)
        self.rank.release()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
