"""Sampler and learner are one policy: an update changes the log-probs of both alike, in both dtypes."""

from dataclasses import replace

import numpy as np
import pytest
import ray

from tests.integration import kept
from tests.integration.groups import make_groups
from tests.integration.test_learner import make_learner  # noqa: F401  (a fixture)
from tests.integration.test_rollout import settings
from visurf_ray.config.choices import Dtype
from visurf_ray.learner.balance import GroupPart
from visurf_ray.learner.trained import Trained
from visurf_ray.method import LossConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")

LANGUAGE = Trained(lora_rank=16, lora_alpha=32.0)
EVERYWHERE = replace(LANGUAGE, lora_targets=["q_proj", "v_proj", "up_proj", "visual.qkv", "visual.proj", "merger.0"])
FULL = Trained()


def engine_of(config, dtype: Dtype, *, adapters: bool):
    """The engine of a dtype, for adapters of any targets or for whole weights."""
    rank = 16 if adapters else 0
    return kept.engine(replace(settings(config), dtype=dtype, adapter_rank=rank, adapts_vision=adapters))


def of_sampler(engine, groups) -> np.ndarray:
    found = []
    for group in groups:
        prompt = group.example.prompt
        responses = [list(map(int, response.tokens.resolve(ray.get).ids)) for response in group.responses]
        found += ray.get(engine.read.remote(prompt.token_ids, responses, prompt.images[0]))
    return np.concatenate(found)


def of_learner(learner, groups) -> np.ndarray:
    def logprobs(actor) -> np.ndarray:
        rows = actor.rank._pack([[GroupPart(group, (1.0,) * len(group.responses))] for group in groups], ray.get)
        return np.concatenate([actor.rank._logprobs(row).numpy() for row in rows])

    return ray.get(learner.actors[0].__ray_call__.remote(logprobs))


@pytest.fixture(scope="module")
def groups(loader):
    """Groups whose images and features lie in the object store."""
    groups = make_groups(loader, 4)
    for group in groups:
        prompt = group.example.prompt
        prompt = replace(prompt, features=ray.put(prompt.features), images=(ray.put(prompt.images[0]),))
        group.example = replace(group.example, prompt=prompt)
    return groups


@pytest.mark.parametrize(
    ("dtype", "trained", "rate", "tolerance"),
    [
        # A default test of adapters in float32 is test_lora's run.
        pytest.param(Dtype.float32, LANGUAGE, 1e-4, 1e-3, marks=pytest.mark.slow),
        pytest.param(Dtype.float32, EVERYWHERE, 1e-4, 1e-3, marks=pytest.mark.slow),
        (Dtype.float32, FULL, 1e-4, 1e-3),
        # Merged into bfloat16 weights, a third of this step would be lost. A tenth of it would not stand out from the
        # 0.015 nats by which the kernels of both sides differ.
        (Dtype.bfloat16, LANGUAGE, 1e-3, 0.1),
        (Dtype.bfloat16, EVERYWHERE, 1e-3, 0.1),
        (Dtype.bfloat16, FULL, 1e-4, 0.1),
    ],
)
def test_a_small_step_changes_both_alike(make_learner, config, groups, dtype, trained, rate, tolerance):  # noqa: F811
    engine = engine_of(config, dtype, adapters=bool(trained.lora_rank))
    learner = make_learner(dtype=dtype, trained=trained, learning_rate=rate)
    learner.connect([engine], engine_gpus=0, colocated=False, start_timeout=60)
    learner.send_weights()
    before = of_sampler(engine, groups), of_learner(learner, groups)
    learner.update(groups, LossConfig())
    learner.send_weights()
    after = of_sampler(engine, groups), of_learner(learner, groups)
    sampler, ours = (new - old for new, old in zip(after, before, strict=True))
    assert np.linalg.norm(sampler - ours) < tolerance * np.linalg.norm(ours)
