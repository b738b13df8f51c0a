"""New weights for vLLM, against a plain copy of as many bytes, with a model of half a billion parameters.

    python -m tests.benchmarks.weight_sync [--quick]

Weights go from the learner's process into shared memory and from there into the engine: two copies, so that 0.5 of
memcpy's speed is the limit of this way. The share is that of one step with 4 prompts × 4 rollouts × 32 tokens.
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


def memcpy(actor: Any) -> float:
    """Seconds to copy the bytes of all weights, once the memory is there; runs in the learner's process."""
    import torch

    size = sum(weight.numel() * weight.element_size() for weight in actor.rank.model.parameters())
    source, target = (torch.ones(size, dtype=torch.uint8) for _ in range(2))
    begin = time.perf_counter()
    ctypes.memmove(target.data_ptr(), source.data_ptr(), size)
    return time.perf_counter() - begin


def main() -> None:
    options = arguments(__doc__).parse_args()
    start(options)
    repeats = 2 if options.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        size = (
            {"hidden": 512, "layers": 8, "heads": 8} if options.quick else {"hidden": 1536, "layers": 18, "heads": 16}
        )
        parameters = write_model(Path(folder), **size)
        small = ["rollout.n=4", "train.batch_size=4", "rollout.max_tokens=32", "task.train=16", "task.held_out=1"]
        with started(f"model.path={folder}", "learner.learning_rate=1e-9", *small) as job:
            driver = job.driver()
            copies: list[float] = []
            seconds = interleaved(
                {
                    "sync": job.learner.send_weights,
                    "memcpy": lambda: copies.append(ray.get(job.learner.actors[0].__ray_call__.remote(memcpy))),
                },
                repeats,
            )
            steps = []
            for number in range(repeats):
                begin = time.perf_counter()
                driver.step(number, driver.collect(number)[0])
                steps.append(time.perf_counter() - begin)
    copy, step = min(copies), statistics.median(steps[1:])
    gibibytes = parameters * 4 / 2**30
    table(
        ["parameters", "GiB", "memcpy s", "sync s", "step s"],
        [[f"{parameters / 1e6:.0f} M", gibibytes, copy, seconds["sync"], step]],
    )
    finish({"of_memcpy": copy / seconds["sync"], "share": seconds["sync"] / step})


if __name__ == "__main__":
    main()
