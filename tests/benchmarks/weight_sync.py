"""New weights for vLLM, against a plain copy of as many bytes, with a model of half a billion parameters.

    python -m tests.benchmarks.weight_sync [--quick]

Weights go from the learner's process into shared memory and from there into the engine: two copies, so that 0.5 of
memcpy's speed is the limit of this way. The share is that of the default job's step on the miniature.
"""

import ctypes
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from tests.benchmarks.harness import arguments, finish, interleaved, start, table
from tests.benchmarks.job import started
from tests.benchmarks.models import write_model
from visurf_ray.assembly import start_rollouts, wait_for
from visurf_ray.cluster.resources import connected
from visurf_ray.config.load import load_config
from visurf_ray.config.schema import Packing


@ray.remote(num_cpus=0.5)
class Sender:
    """A learner's end of the transfer, without an optimizer: with one the model would not fit beside its engine."""

    def __init__(self, path: str, engines: list[Any]) -> None:
        import torch

        from visurf_ray.learner.policy import load_model
        from visurf_ray.weights.sender import WeightSender

        self.model = load_model(path, dtype=torch.float32, packing=Packing.split, gradient_checkpointing=False)
        self.sender = WeightSender(self.model, engines, rank=0, gpu_workers=0, colocated=False, address="", port=0)
        size = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        self.source, self.target = (torch.ones(size, dtype=torch.uint8) for _ in range(2))

    def send(self) -> None:
        self.sender.send()

    def memcpy(self) -> None:
        """Copy as many bytes as the weights have."""
        ctypes.memmove(self.target.data_ptr(), self.source.data_ptr(), len(self.source))


def measure_sync(folder: str, repeats: int) -> dict[str, float]:
    """Seconds of a transfer, and of a plain copy, of a model's weights."""
    config = load_config([f"model.path={folder}", "rollout.max_model_len=256", "rollout.memory=0.25"])
    with connected("local"):
        rollouts = start_rollouts(config)
        try:
            wait_for(rollouts, config)
            sender = Sender.remote(folder, rollouts.actors)  # type: ignore[attr-defined]
            runs = {"sync": lambda: ray.get(sender.send.remote()), "memcpy": lambda: ray.get(sender.memcpy.remote())}
            return interleaved(runs, repeats)
        finally:
            rollouts.shut_down()


def measure_share(steps: int) -> float:
    """The share of a step of the default job that the transfer takes."""
    with started("learner.learning_rate=1e-9") as job:
        driver = job.driver()
        shares = []
        for number in range(steps + 1):
            begin = time.perf_counter()
            driver.step(number, driver.collect(number)[0])
            middle = time.perf_counter()
            job.learner.send_weights()
            shares.append((time.perf_counter() - middle) / (middle - begin))
        return statistics.median(shares[1:])


def main() -> None:
    options = arguments(__doc__, devices=["cpu"]).parse_args()
    start(options)
    with tempfile.TemporaryDirectory() as folder:
        size = (
            {"hidden": 512, "layers": 8, "heads": 8} if options.quick else {"hidden": 1536, "layers": 18, "heads": 16}
        )
        parameters = write_model(Path(folder), **size)
        seconds = measure_sync(folder, 2 if options.quick else 5)
    share = measure_share(3 if options.quick else 10)
    table(
        ["parameters", "GiB", "memcpy s", "sync s", "share of a step"],
        [[f"{parameters / 1e6:.0f} M", parameters * 4 / 2**30, seconds["memcpy"], seconds["sync"], share]],
    )
    finish({"of_memcpy": seconds["memcpy"] / seconds["sync"], "share": share})


if __name__ == "__main__":
    main()
