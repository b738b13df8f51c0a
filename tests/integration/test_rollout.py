"""vLLM engines in Ray actors: what they sample is what the learner computes, before and after weights change."""

import socket
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from tests.integration import kept
from tests.integration.kept import open_transfer
from tests.integration.test_learner import make_learner  # noqa: F401  (a fixture)
from visurf_ray.config.choices import Dtype, HeadDtype
from visurf_ray.groups import Group, Response, Source, Tokens
from visurf_ray.learner.policy import load_model
from visurf_ray.method import LossConfig, Method, Part
from visurf_ray.models import banned_token_ids, load_processor, resolved
from visurf_ray.rewards.pool import RewardPool
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.rollout.actor import RolloutActor, Sampling
from visurf_ray.rollout.pool import RolloutPool
from visurf_ray.rollout.vllm_engine import EngineConfig
from visurf_ray.tasks import load_task

pytestmark = pytest.mark.usefixtures("ray_cluster")


def settings(config) -> EngineConfig:
    return EngineConfig(
        model=resolved(config.model),
        dtype=Dtype.float32,
        max_model_len=512,
        memory=0.25,
        gpus=0,
        enforce_eager=True,
        sleeps=False,
        seed=0,
        head_dtype=HeadDtype.float32,
        banned=tuple(banned_token_ids(load_processor(config.model))),
    )


def make_pool(actors) -> RolloutPool:
    """A pool of engines that run already."""
    pool = RolloutPool(lambda: actors, sampling=Sampling(4, 1.0, 60, logprobs_every=1), max_in_flight=8, timeout=600)
    pool.start()
    return pool


@pytest.fixture(scope="module")
def examples(loader):
    """Examples whose images and features lie in the object store."""
    return [
        replace(
            example,
            prompt=replace(
                example.prompt,
                images=(ray.put(example.prompt.images[0]),),
                features=ray.put(example.prompt.features),
            ),
        )
        for example in loader.train_batch(0, 8)
    ]


@pytest.fixture(scope="module")
def model(config):
    return load_model(resolved(config.model), dtype=torch.float32, gradient_checkpointing=False)


@pytest.fixture(scope="module")
def pool(config, model):
    """An engine, with the base model's weights."""
    pool = make_pool([kept.engine(settings(config))])
    open_transfer(model, pool.actors).send()
    return pool


def all_of(batches) -> dict[int, Group]:
    return {index: group for batch in batches for index, group in batch.items()}


def sampled(pool, examples) -> list[Group]:
    """The groups, in the examples' order."""
    finished = all_of(pool.sample(examples, len(examples)))
    return [finished[index] for index in range(len(examples))]


def tokens_of(response: Response) -> Tokens:
    """A response's tokens as the learner gets them."""
    return response.tokens.resolve(ray.get)


def greedy(pool, examples) -> list[tuple[list[int], list[float]]]:
    """The tokens and log-probs of greedy answers to two examples."""
    answers = RolloutPool(
        lambda: pool.actors, sampling=Sampling(1, 0.0, 20, logprobs_every=1), max_in_flight=8, timeout=600
    )
    responses = [group.responses[0] for group in sampled(answers, examples[:2])]
    return [(list(tokens.ids), list(tokens.sampler_logprobs)) for tokens in map(tokens_of, responses)]


def train_step(config, processor, groups, learner) -> dict[str, float]:
    task = load_task(config.task, seed=0)
    tokenizer = processor.tokenizer
    method = Method(
        config.method,
        render=task.render,
        encode=lambda text: [*tokenizer(text).input_ids, tokenizer.eos_token_id],
        parts={"": Part(task.styles, ("thinking_format",))},
        longest=60,
        importance=None,
    )
    for group in groups:
        method.append_label(group, 0)
    rewards = RewardPool(config.reward, {"": RewardSpec("vision_reasoner")}, cluster_timeout=60)
    rewards.submit(groups)
    rewards.wait()
    metrics = method.assign_advantages(groups)
    return metrics | learner.update(groups, LossConfig())


def test_groups_come_back_in_order_with_sampled_tokens(pool, examples, processor):
    groups = sampled(pool, examples)
    assert [group.example.id for group in groups] == [example.id for example in examples]
    for group in groups:
        assert len(group.rollouts) == len(group.responses) == 4
        for response in group.responses:
            assert response.source is Source.ROLLOUT
            tokens = tokens_of(response)
            assert len(tokens.ids) == len(tokens.sampler_logprobs) == response.length > 0
            assert response.text == processor.tokenizer.decode(tokens.ids, skip_special_tokens=True)
        assert len({response.tokens.store for response in group.responses}) == 1, "one store for a group"


def test_one_prompt_of_so_many_brings_log_probs(pool, examples):
    some = RolloutPool(
        lambda: pool.actors, sampling=replace(pool.sampling, logprobs_every=2), max_in_flight=8, timeout=600
    )
    groups = sampled(some, examples)
    for number, group in enumerate(groups):
        for response in group.responses:
            logprobs = tokens_of(response).sampler_logprobs
            known = np.zeros(1) if logprobs is None else ~np.isnan(logprobs)
            assert known.all() if number % 2 == 0 else not known.any()


def test_sampler_and_learner_agree_and_still_do_after_an_update(
    config,
    processor,
    pool,
    examples,
    make_learner,  # noqa: F811
):
    """A head tied to the embedding keeps a packed copy of old weights on a CPU unless the sync renews it."""
    learner = make_learner(learning_rate=5e-3)
    learner.connect(pool.actors, engine_gpus=0, colocated=False, start_timeout=60)
    for _ in range(3):
        learner.send_weights()
        metrics = train_step(config, processor, sampled(pool, examples), learner)
        assert metrics["train/rollout_logprob_diff_max"] < 1e-4


def unfinished(pool) -> int:
    """Requests in the engines."""
    count = lambda actor: len(actor.engine.output_processor.request_states)  # noqa: E731
    return sum(ray.get([actor.__ray_call__.remote(count) for actor in pool.actors]))


def test_the_slowest_prompts_are_aborted_and_new_weights_find_an_idle_engine(pool, examples, model):
    sender = open_transfer(model, pool.actors)
    sender.send()  # the base model: what another test has trained may answer in one token
    hot = Sampling(4, temperature=2.0, max_tokens=400)  # its samples hardly ever end
    generated = pool._generate(examples, hot, len(examples))
    next(generated)
    assert unfinished(pool)
    generated.close()
    assert not unfinished(pool)
    finished = all_of(pool.sample(examples, 3))
    assert len(finished) == 3 < len(examples)
    assert all(group.example is examples[index] and len(group.rollouts) == 4 for index, group in finished.items())
    sender.send()  # raises while a request is in the engine
    assert len(sampled(pool, examples)) == len(examples)


def test_a_changed_vision_tower_changes_a_cached_image(pool, examples, model):
    """Without a reset of the encoder cache a cached image would keep the old tower's features (vllm#44910)."""
    sender = open_transfer(model, pool.actors)
    sender.send()
    before = greedy(pool, examples)
    assert greedy(pool, examples) == before  # cached now
    originals = [parameter.detach().clone() for parameter in model.model.visual.parameters()]
    with torch.no_grad():
        for parameter in model.model.visual.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    sender.send()
    changed = greedy(pool, examples)
    assert all(now[1] != then[1] for now, then in zip(changed, before, strict=True))
    with torch.no_grad():
        for parameter, original in zip(model.model.visual.parameters(), originals, strict=True):
            parameter.copy_(original)
    sender.send()
    assert greedy(pool, examples) == before


def test_a_broadcast_brings_the_same_weights_as_shared_memory(pool, examples, model):
    """And an engine that has taken part in one takes part in the next learner's transfer."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    answers = []
    for transport in ({}, {"address": ray.util.get_node_ip_address(), "port": port, "one_machine": False}):
        sender = open_transfer(model, pool.actors, **transport)
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(base[name] + 0.01 * torch.randn(parameter.shape, generator=generator))
            sender.send()
            answers.append(greedy(pool, examples))
        sender.close()
    assert answers[0] != answers[1] and answers[:2] == answers[2:]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(base[name])


def test_vision_placeholders_are_never_sampled(config, pool, examples, processor):
    """At the highest temperature that vLLM takes."""
    banned = set(banned_token_ids(processor))
    hot = RolloutPool(
        lambda: pool.actors, sampling=Sampling(n=8, temperature=2.0, max_tokens=100), max_in_flight=8, timeout=600
    )
    groups = sampled(hot, examples)
    tokens = [token for group in groups for response in group.responses for token in tokens_of(response).ids]
    assert len(tokens) > 500 and not banned & set(tokens)


def test_what_is_drawn_depends_on_seed_row_epoch_and_number_alone(pool, examples):
    """And not on what is sampled at the same time, or was before."""

    def drawn(examples, seed=0) -> list[list[list[int]]]:
        sampling = Sampling(3, temperature=2.0, max_tokens=12, seed=seed)
        asked = RolloutPool(lambda: pool.actors, sampling=sampling, max_in_flight=8, timeout=600)
        return [[list(tokens_of(each).ids) for each in group.responses] for group in sampled(asked, examples)]

    found = drawn(examples[:4])
    assert len({tuple(tokens) for responses in found for tokens in responses}) == 12
    assert drawn(examples[3::-1])[::-1] == found and drawn(examples[1:2]) == found[1:2]
    assert drawn(examples[:1], seed=1) != found[:1] != drawn([replace(examples[0], epoch=1)])


def test_prompts_that_one_batch_does_not_hold_are_sampled_with_seeds(pool, loader):
    """The engine for CPUs ends if it cuts a prompt whose request has a seed; see `RolloutActor`."""
    many = []
    for number, example in enumerate(loader.train_batch(0, 128)):  # other first tokens: no prompt shares a prefix
        prompt = example.prompt
        ids = {"token_ids": [number, *prompt.token_ids], "expanded_ids": [number, *prompt.expanded_ids]}
        many.append(replace(example, prompt=replace(prompt, **ids)))
    assert sum(len(example.prompt.expanded_ids) for example in many) > 8192
    one = RolloutPool(lambda: pool.actors, sampling=Sampling(1, 1.0, 2), max_in_flight=len(many), timeout=600)
    assert len(sampled(one, many)) == len(many)


_CURVES = (
    "reward/rollout/total",
    "train/loss",
    "train/grad_norm",
    "train/entropy/rollout",
    "train/logprob/rollout",
    "train/logprob/label",
)


def test_two_workers_and_two_ranks_follow_the_curve_of_one_of_each(
    config,
    processor,
    pool,
    examples,
    make_learner,  # noqa: F811
):
    """The same rollouts, replayed: the same losses and rewards, and the same answers of the samplers at the end."""
    learner = make_learner()
    learner.connect(pool.actors, engine_gpus=0, colocated=False, start_timeout=60)
    recorded, expected = [], []
    for _ in range(3):
        learner.send_weights()
        groups = sampled(pool, examples)
        recorded.append([replace(group, responses=list(group.responses)) for group in groups])
        expected.append(train_step(config, processor, groups, learner))
    learner.send_weights()
    answers = pool.answer(examples, max_tokens=60)

    second = RolloutActor.options(num_cpus=0.5).remote(settings(config), kept.all_cores())
    ray.get(second.ready.remote())
    pair = make_pool([*pool.actors, second])
    ranks = make_learner(ranks=2, zero_stage=2, max_tokens_per_micro_batch=160)  # which cuts the groups
    ranks.connect(pair.actors, engine_gpus=0, colocated=False, start_timeout=60)
    for groups, metrics in zip(recorded, expected, strict=True):
        ranks.send_weights()
        found = train_step(config, processor, groups, ranks)
        for name in _CURVES:
            assert found[name] == pytest.approx(metrics[name], rel=1e-3, abs=1e-4), name
    ranks.send_weights()
    assert [p.response for p in pair.answer(examples, max_tokens=60)] == [p.response for p in answers]

    ray.get(second.shut_down.remote())
    with pytest.raises(
        ray.exceptions.RayTaskError, match="EngineDeadError"
    ):  # Ray would tell of an actor that ends itself
        ray.get(second.ready.remote())
    make_pool([second]).shut_down()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(second.ready.remote())
