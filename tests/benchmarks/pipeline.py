"""Sampling the next batch during the learning of this one, compared with alternating; each side has its own cores.

    python -m tests.benchmarks.pipeline [--quick]

The limit is the slower side alone: a step cannot be shorter than its sampling, nor than its learning and weight sync.
The first row of the table is the default, in which both sides alternate on all cores.
"""

import statistics
import time
from collections.abc import Iterator

from tests.benchmarks.harness import arguments, finish, start, table
from tests.benchmarks.job import started
from visurf_ray.driver import Driver

QUIET = "learner.learning_rate=1e-9"  # the policy, and thus the length of its responses, stays what it is


def sides(driver: Driver, steps: int) -> Iterator[tuple[float, float]]:
    """Seconds of sampling, and of learning and sync, of steps in turns."""
    for number in range(steps):
        begin = time.perf_counter()
        batch = driver.collect(number)
        middle = time.perf_counter()
        driver.step(batch)
        yield middle - begin, time.perf_counter() - middle


def overlapped(driver: Driver, steps: int) -> float:
    """Seconds of a step when the next batch is sampled meanwhile; the first and the last batch fill and drain."""
    times = []
    for batch in driver.batches(0, steps + 2):
        driver.step(batch)
        times.append(time.perf_counter())
    return (times[-2] - times[0]) / steps


def main() -> None:
    options = arguments(__doc__, devices=["cpu"]).parse_args()
    start(options)
    steps, rounds = (3, 1) if options.quick else (8, 3)
    with started(QUIET) as job:
        driver = job.driver()
        default = [sum(side) for side in sides(driver, 1 + steps)][1:]  # the first warms up
    with started(QUIET, "pipeline=one_step_off") as job:
        turns, ahead = job.driver("pipeline=sync"), job.driver()
        for _ in sides(turns, 1):
            pass
        taken: list[tuple[float, float]] = []
        off = []
        for _ in range(rounds):
            taken += sides(turns, steps)
            off.append(overlapped(ahead, steps))
    sample, learn = (statistics.mean(side) for side in zip(*taken, strict=True))
    step = statistics.mean(off)
    table(
        ["pipeline", "cores", "sample s", "learn s", "step s"],
        [
            ["sync", "all for both", "", "", statistics.mean(default)],
            ["sync", "half each", sample, learn, sample + learn],
            ["one_step_off", "half each", "", "", step],
        ],
    )
    finish(
        {
            "speedup": (sample + learn) / step,
            "over_limit": step / max(sample, learn),
            "speedup_over_default": statistics.mean(default) / step,
        }
    )


if __name__ == "__main__":
    main()
