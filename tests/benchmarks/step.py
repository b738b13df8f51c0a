"""A whole step of the job, compared with its two computations alone.

    python -m tests.benchmarks.step [--quick]

The limit is vLLM's time to generate for the same prompts, submitted all at once, plus the model's time for forward
pass, backward pass and optimiser step on the same responses, which are packed beforehand. The step adds data, labels,
rewards, advantages, packing, transport, metrics and the weight sync.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

import ray

from tests.benchmarks.harness import arguments, finish, start, table
from tests.benchmarks.job import Job, started
from visurf_ray.groups import Example, Group
from visurf_ray.learner.balance import cut
from visurf_ray.method import token_weights
from visurf_ray.rollout.actor import Sampling


async def generate(actor: Any, examples: Sequence[Example], sampling: Sampling) -> float:
    """Seconds of the engine alone; runs in the rollout actor."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    images = await asyncio.gather(*[example.prompt.images[0] for example in examples])
    parameters = SamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

    async def one(example: Example, image: Any) -> None:
        prompt = TokensPrompt(prompt_token_ids=example.prompt.token_ids, multi_modal_data={"image": image})
        async for _ in actor.engine.generate(prompt, parameters, request_id=f"{example.id}-{time.monotonic()}"):
            pass

    begin = time.perf_counter()
    await asyncio.gather(*map(one, examples, images))
    seconds = time.perf_counter() - begin
    # So that the step's own sampling computes prompts and pictures anew, as in a run.
    await actor.engine.reset_prefix_cache()
    await actor.engine.reset_mm_cache()
    await actor.engine.reset_encoder_cache()
    return seconds


def generate_in(actor: Any, examples: Sequence[Example], sampling: Sampling) -> float:
    """`generate` on the engine's own event loop; runs in another thread of the rollout actor."""
    loop = actor.engine.output_handler.get_loop()
    return asyncio.run_coroutine_threadsafe(generate(actor, examples, sampling), loop).result()


def learn(actor: Any, groups: Sequence[Group], weights: Sequence[list[float]]) -> float:
    """Seconds of the model alone; runs in the learner actor."""
    rank = actor.rank
    shard = cut(groups, weights, rank.config.max_tokens_per_micro_batch, rank.cost)
    rows = rank._pack(rank._rows(shard), ray.get)
    begin = time.perf_counter()
    for packed in rows:
        logprobs, _ = rank.engine(packed)
        rank.engine.backward(-(logprobs * packed.advantage_T * packed.weight_T).sum())
    rank.engine.step()
    return time.perf_counter() - begin


def measure(job: Job, steps: int) -> tuple[list[float], list[float], list[float]]:
    driver = job.driver()
    size = driver.config.train.batch_size
    driver.collect(0)  # the engine's event loop begins with its first request
    whole, sampling, learning = [], [], []
    for number in range(1, steps + 2):
        begin_of_batch = job.data.position
        examples = job.data.take(size)
        bare_sampling = ray.get(
            job.rollouts.actors[0].__ray_call__.remote(generate_in, examples, job.rollouts.sampling)
        )
        job.data.seek(begin_of_batch - size, {}, {})
        job.data.take(size)
        ray.get(job.data.ahead)  # as always a step finds its batch read ahead, and has the next one read
        begin = time.perf_counter()
        batch = driver.collect(number)
        driver.step(batch)
        seconds = time.perf_counter() - begin
        bare_learning = ray.get(
            job.learner.actors[0].__ray_call__.remote(
                learn, batch.groups, token_weights(batch.groups, driver.stage(number).method.loss(number))
            )
        )
        if number > 1:  # the first warms up
            whole.append(seconds)
            sampling.append(bare_sampling)
            learning.append(bare_learning)
    return whole, sampling, learning


def main() -> None:
    options = arguments(__doc__).parse_args()
    start(options)
    with started("learner.learning_rate=1e-9", device=options.device) as job:  # the policy stays what it is
        whole, sampling, learning = measure(job, 3 if options.quick else 25)
    means = [statistics.mean(values) for values in (whole, sampling, learning)]
    table(["step s", "vLLM alone s", "model alone s"], [means])
    ratios = [w / (s + t) for w, s, t in zip(whole, sampling, learning, strict=True)]
    finish(
        {
            "overhead": means[0] / (means[1] + means[2]),
            "spread": statistics.stdev(ratios) / len(ratios) ** 0.5,
        }
    )


if __name__ == "__main__":
    main()
