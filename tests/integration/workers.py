"""An actor in place of those of a run. Its process imports this file, which therefore imports little."""

import os
import time

import ray

from visurf_ray.cluster.resources import computing_threads
from visurf_ray.cluster.waiting import fetch

LIMIT = 2.0  # seconds


@ray.remote(num_cpus=0)
class Worker:
    """Also has the methods of `RolloutActor` that a pool calls to sample."""

    def process(self) -> int:
        return os.getpid()

    def wait_for(self, others: list) -> None:
        fetch(others, LIMIT)

    def threads(self, cores: int) -> int:
        return computing_threads(cores)

    @ray.method(num_returns=2)
    def sample(self, examples, sampling):
        time.sleep(3600)

    def abort(self):
        pass

    def shut_down(self):
        pass

    def ready(self):
        pass
