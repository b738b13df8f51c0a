"""A step of ViSurf compared with a step of RLVR that has as many rollouts: the cost of the label.

    python -m tests.benchmarks.visurf_vs_rlvr [--quick]

The default job on the miniature; steps of both methods alternate, on the same prompts and with the same actors. Memory
is the peak of the learner's process during the steps of each. The limit is the ratio of the learner's tokens, because
the label's tokens must be computed.
"""

import re
import statistics
import time
from pathlib import Path

import ray

from tests.benchmarks.harness import arguments, finish, start, table
from tests.benchmarks.job import Job, started
from visurf_ray.driver import Driver


def take_step(driver: Driver, number: int) -> tuple[float, int]:
    """Seconds of one step, and the tokens that are learnt in it: prompts once, and all responses."""
    begin = time.perf_counter()
    batch = driver.collect(number)
    driver.step(batch)
    seconds = time.perf_counter() - begin
    groups = batch.groups
    responses = [response for group in groups for response in group.responses]
    return seconds, sum(len(g.example.prompt.expanded_ids) for g in groups) + sum(r.length for r in responses)


def reset_peak(_: object) -> None:
    """Linux: writing 5 sets the peak of resident memory to what it is now (man proc_pid_clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak(_: object) -> float:
    """MiB of resident memory at the peak."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 2**10


def measure(job: Job, steps: int) -> list[dict[str, float | str]]:
    learner = job.learner.actors[0]
    methods = ("rlvr", "visurf")
    drivers = {name: job.driver(f"method={name}") for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    tokens: dict[str, list[int]] = {name: [] for name in methods}
    memory: dict[str, float] = {}
    for number in range(steps + 1):  # the first warms up
        for name in methods if number % 2 else reversed(methods):
            ray.get(learner.__ray_call__.remote(reset_peak))
            taken, learnt = take_step(drivers[name], number)
            if number:
                seconds[name].append(taken)
                tokens[name].append(learnt)
                memory[name] = max(memory.get(name, 0.0), ray.get(learner.__ray_call__.remote(peak)))
    return [
        {
            "method": name,
            "seconds": statistics.median(seconds[name]),
            "peak_mib": memory[name],
            "tokens": statistics.mean(tokens[name]),
        }
        for name in methods
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    start(options)
    with started("learner.learning_rate=1e-9", device=options.device) as job:  # the policy stays what it is
        rows = measure(job, 3 if options.quick else 20)
    table(["method", "seconds", "peak MiB", "tokens"], [list(row.values()) for row in rows])
    rlvr, visurf = rows
    finish(
        {
            "time_ratio": float(visurf["seconds"]) / float(rlvr["seconds"]),
            "memory_ratio": float(visurf["peak_mib"]) / float(rlvr["peak_mib"]),
            "token_ratio": float(visurf["tokens"]) / float(rlvr["tokens"]),
        }
    )


if __name__ == "__main__":
    main()
