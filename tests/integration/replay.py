"""Trains the default job on all machines of a cluster, then once more on one of them with the same rollouts.

    python -m tests.integration.replay HEAD:PORT [OVERRIDE ...]

Prints a line of JSON: the machines of engines and ranks, and the metrics of the steps, there and here.
"""

import json
import sys
from typing import Any

import ray

from tests.benchmarks.job import started
from tests.integration.runs import SMALL
from visurf_ray.actors import start_learner
from visurf_ray.cluster.resources import connected
from visurf_ray.config.load import load_config

STEPS = 2


def main() -> None:
    both = ["rollout.workers=2", "learner.ranks=2", "rollout.logprobs_every=1", "learner.learning_rate=1e-3"]
    both += sys.argv[2:]
    small = [setting for setting in SMALL if not setting.startswith("monitor.")]
    with connected(sys.argv[1]), started(*small, *both) as job:
        driver = job.driver()
        recorded: list[Any] = []
        update = job.learner.update

        def record(groups, loss, learning_rate, *, step):
            metrics = update(groups, loss, learning_rate, step=step)
            recorded.append((groups, loss, learning_rate, metrics))
            return metrics

        job.learner.update = record  # type: ignore[method-assign]
        for number in range(STEPS):
            driver.step(driver.collect(number))
        found = {
            "engines": ray.get([engine.join.remote(number) for number, engine in enumerate(job.rollouts.actors)]),
            "ranks": [address for address, _ in ray.get([rank.address.remote() for rank in job.learner.actors])],
            "there": [metrics for *_, metrics in recorded],
        }
        alone = start_learner(load_config([*job.overrides, "learner.ranks=1"]), job.processor, [{"num_cpus": 0.5}])
        found["here"] = [alone.update(*arguments) for *arguments, _ in recorded]
        alone.shut_down()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
