"""The driver's own time for a step, as batches grow to 1,024 prompts × 16 rollouts × 2,000 tokens.

    python -m tests.benchmarks.driver_scale [--quick]

Generators of random tokens replace rollout workers and learner ranks, so that the driver alone limits the step. Data,
labels, rewards, advantages, balancing and transport are the job's own, and ranks fetch all tokens. The data actor
prepares batches ahead, as in a job. Workers answer all their prompts at once; the texts are short.

`seconds_per_step` is the CPU time of the driver's process at the largest size, all threads together. `exponent` is the
slope of log seconds over log prompts. `rss_slope` is the growth of the process in MiB per step, and `own_slope` the
same without pages of Ray's object store.
"""

import tempfile
import time
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import ray

from tests.benchmarks.harness import arguments, finish, start, table
from tests.benchmarks.job import Job
from visurf_ray.actors import rank_config, start_data
from visurf_ray.cluster.resources import connected
from visurf_ray.config.load import load_config
from visurf_ray.groups import Example, Response, Source, Tokens, TokenSpan
from visurf_ray.learner.balance import Shard
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.metrics import StepReport, UpdateSums
from visurf_ray.method import LossConfig
from visurf_ray.models import load_processor
from visurf_ray.rollout.actor import Sampled, Sampling, in_one_store
from visurf_ray.rollout.pool import RolloutPool, WeightLink

TOKENS, ROLLOUTS = 2000, 16


@ray.remote(num_cpus=0.1)
class RandomRollouts:
    """Answers as `RolloutActor` does, with random tokens."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.token_ids = rng.integers(0, 150_000, (64, TOKENS), dtype=np.int32)
        self.logprobs = -rng.exponential(size=(64, TOKENS)).astype(np.float32)

    @ray.method(num_returns=2)
    def sample(self, examples: list[tuple[int, Example]], sampling: Sampling) -> tuple[list[Sampled], Tokens]:
        return in_one_store([self.respond(number, example, sampling) for number, example in examples])

    def respond(self, number: int, example: Example, sampling: Sampling) -> Sampled:
        text = "<think>a 7 no [1, 2, 3, 4]</think><answer>[]</answer>"
        rows = np.random.default_rng(zlib.crc32(example.id.encode())).integers(0, 64, sampling.n)
        store = Tokens(self.token_ids[rows].ravel(), self.logprobs[rows].ravel())
        spans = [TokenSpan(store, begin, begin + TOKENS) for begin in range(0, sampling.n * TOKENS, TOKENS)]
        texts = [text if row % 2 else text[:20] for row in rows]
        return Sampled(number, [Response(Source.ROLLOUT, *pair) for pair in zip(texts, spans, strict=True)])


@ray.remote(num_cpus=0.1)
class RandomLearner:
    """Takes groups as `LearnerActor` does, and learns nothing."""

    def address(self) -> tuple[str, int]:
        return "", 0

    def start(self, *_: Any) -> None:
        pass

    def send_weights(self) -> None:
        pass

    def update(
        self, minibatches: Sequence[Shard], loss: LossConfig, learning_rate: float | None, step: int
    ) -> list[StepReport]:
        for shard in minibatches:
            fetch = cache(ray.get)
            for part in shard:
                for response in part.group.responses:
                    response.tokens.resolve(fetch)
        return [StepReport(UpdateSums(), grad_norm=1.0, learning_rate=0.0) for _ in minibatches]


def resident() -> tuple[float, float]:
    """MiB of this process: all, and without what it shares with others."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return resident * 4096 / 2**20, (resident - shared) * 4096 / 2**20


def measure(job: Job, prompts: int, steps: int) -> dict[str, float]:
    driver = job.driver(f"train.batch_size={prompts}")
    cpu, wall, memory = [], [], []
    for number in range(steps):
        if ahead := job.data.ahead:
            ray.wait(ahead, num_returns=len(ahead))
        begin, computed = time.perf_counter(), time.process_time()
        driver.step(driver.collect(number))
        cpu.append(time.process_time() - computed)
        wall.append(time.perf_counter() - begin)
        memory.append(resident())
    late = np.arange(steps // 2, steps)
    slopes = dict(zip(("rss_slope", "own_slope"), np.polyfit(late, np.array(memory)[late], 1)[0].tolist(), strict=True))
    return {"driver": min(cpu[1:]), "wall": min(wall[1:]), "rss": memory[-1][0]} | slopes


def main() -> None:
    options = arguments(__doc__, devices=["cpu"]).parse_args()
    start(options)
    sizes, steps = ((16, 64), 4) if options.quick else ((16, 64, 256, 1024), 16)
    overrides = [f"rollout.n={ROLLOUTS}", f"task.train={max(sizes)}", "eval.examples=1", "monitor.wandb=disabled"]
    overrides += ["monitor.samples_every=0", f"learner.max_tokens_per_micro_batch={2 * TOKENS}"]
    config = load_config(overrides)
    with connected("local"), tempfile.TemporaryDirectory() as folder:
        processor = load_processor(config.model)
        data = start_data(config)
        rollouts = RolloutPool(
            lambda: [RandomRollouts.remote() for _ in range(2)],  # type: ignore[attr-defined]
            sampling=Sampling(ROLLOUTS, 1.0, TOKENS),
            max_in_flight=config.rollout.max_in_flight,
            timeout=config.cluster.timeout,
        )
        ranks = [RandomLearner.remote() for _ in range(2)]  # type: ignore[attr-defined]
        learner = LearnerGroup(ranks, rank_config(config, processor), seed=0, minibatches=1, cores=[[], []])
        rollouts.connect(WeightLink(lambda engines: None, learner.send_weights, lambda: None))
        job = Job(data, rollouts, learner, processor, overrides, Path(folder))
        results = {prompts: measure(job, prompts, steps) for prompts in sizes}
    table(
        ["prompts", "driver s", "wall s", "RSS MiB", "MiB a step", "of its own"],
        [[prompts, *result.values()] for prompts, result in results.items()],
    )
    slope = np.polyfit(np.log(sizes), np.log([result["driver"] for result in results.values()]), 1)[0]
    finish(
        {
            "seconds_per_step": results[max(sizes)]["driver"],
            "exponent": float(slope),
            "rss_slope": results[max(sizes)]["rss_slope"],
            "own_slope": results[max(sizes)]["own_slope"],
        }
    )


if __name__ == "__main__":
    main()
