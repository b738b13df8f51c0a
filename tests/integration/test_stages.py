"""What stages ask of the learner: learning rates, epochs over a batch, and the reference of the KL term."""

from dataclasses import replace

import pytest
import torch

from tests.integration.groups import make_groups
from tests.integration.test_learner import LORA, batches, distance, exported, make_learner  # noqa: F401  # fixtures
from tests.integration.test_policy import packed_groups
from visurf_ray.config.choices import Schedule
from visurf_ray.learner.config import REFERENCE_FILE
from visurf_ray.learner.policy import Policy, load_model
from visurf_ray.learner.schedule import learning_rates
from visurf_ray.learner.trained import Trained
from visurf_ray.method import LossConfig, TokenValues, token_losses
from visurf_ray.models import banned_token_ids, resolved

pytestmark = pytest.mark.usefixtures("ray_cluster")

KL = LossConfig(kl_coef=0.1)


@pytest.fixture
def plain_policy(config, processor):
    """A policy on its own, for a plain PyTorch loop."""
    model = load_model(resolved(config.model), dtype=torch.float32, gradient_checkpointing=False)
    return Policy(model, 1.0, banned_token_ids(processor), chunk=64)


# Learning rates


@pytest.mark.parametrize("stage", [1, 3])
def test_a_schedule_is_exact_over_a_resume(make_learner, batches, tmp_path, stage):  # noqa: F811
    """Each update has the rate that it is given: two runs of four steps, one of them resumed after the second."""
    rate = learning_rates(Schedule.cosine, peak=1e-3, steps=4, warmup_steps=1, floor=0.1)

    def update(learner, step: int) -> float:
        return learner.update(batches[step % 2], LossConfig(), rate(step))["train/learning_rate"]

    learner = make_learner(zero_stage=stage)
    logged = [update(learner, step) for step in range(2)]
    learner.save(tmp_path / "state")
    logged += [update(learner, step) for step in range(2, 4)]
    assert logged == [rate(step) for step in range(4)] and len(set(logged)) == 4
    expected = exported(learner, tmp_path / "whole")
    continued = make_learner(zero_stage=stage)
    continued.load(tmp_path / "state")
    assert [update(continued, step) for step in range(2, 4)] == logged[2:]
    assert distance(exported(continued, tmp_path / "continued"), expected) < 1e-5


@pytest.mark.parametrize("stage", [1, 3])
def test_a_rate_of_zero_changes_nothing(make_learner, batches, tmp_path, stage):  # noqa: F811
    learner = make_learner(zero_stage=stage)
    before = exported(learner, tmp_path / "before")
    learner.update(batches[0], LossConfig(), 0.0)
    after = exported(learner, tmp_path / "after")
    assert all(torch.equal(after[name], before[name]) for name in before)


# Epochs


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 2)])
def test_epochs_are_those_of_a_plain_loop_over_the_same_minibatches(
    make_learner,  # noqa: F811
    batches,  # noqa: F811
    plain_policy,
    loader,
    tmp_path,
    ranks,
    stage,
):
    """Old log-probs once, before the first step; then two passes over two minibatches in the same order."""
    loss = LossConfig(clip_low=0.02, clip_high=0.02)
    learner = make_learner(ranks, minibatches=2, epochs=2, zero_stage=stage, learning_rate=1e-4, max_grad_norm=0.0)
    metrics = learner.update(batches[0], loss)
    optimizer = torch.optim.AdamW(plain_policy.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01)
    groups = make_groups(loader, 6)
    parts = [packed_groups(plain_policy.model, groups[:3]), packed_groups(plain_policy.model, groups[3:])]
    with torch.no_grad():
        old = [plain_policy(packed)[0] for packed in parts]
    losses = []
    for index in (0, 1, 0, 1):
        packed = parts[index]
        logprobs, entropy = plain_policy(packed)
        tokens = TokenValues(
            logprob_T=logprobs,
            old_logprob_T=old[index],
            advantage_T=packed.advantage_T,
            is_label_T=packed.is_label_T,
            sampler_logprob_T=packed.sampler_logprob_T,
            entropy_T=entropy,
            response_T=packed.response_T,
        )
        of_tokens = token_losses(tokens, loss)
        total = (of_tokens * packed.weight_T).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert metrics["train/loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert metrics["train/ratio/rollout"] != 1.0 and metrics["train/clip_share/rollout"] > 0.0
    assert distance(exported(learner, tmp_path), dict(plain_policy.model.named_parameters())) < 1e-5


# The KL term's reference


def divergence(learner, groups) -> float:
    """Of the policy before the update, which takes half of the groups: with ZeRO-3 one takes seconds."""
    return learner.update(groups[1:4], KL)["train/kl/rollout"]


CASES = [
    (1, 1, Trained(), "float32"),
    (2, 2, Trained(freeze_vision=True), "float32"),
    (2, 3, Trained(), "float32"),
    (1, 1, LORA, "float32"),
    (2, 2, LORA, "bfloat16"),
    (2, 3, LORA, "float32"),
]


@pytest.mark.parametrize(("ranks", "stage", "trained", "dtype"), CASES)
def test_the_reference_of_a_stage_is_the_policy_at_its_start_also_over_a_resume(
    make_learner,  # noqa: F811
    batches,  # noqa: F811
    tmp_path,
    ranks,
    stage,
    trained,
    dtype,
):
    settings = {"zero_stage": stage, "reference": True, "learning_rate": 1e-2, "trained": trained, "dtype": dtype}
    settings |= {"max_tokens_per_micro_batch": 300}
    learner = make_learner(ranks, **settings)
    none = 1e-9 if dtype == "float32" else 1e-4
    assert divergence(learner, batches[0]) == pytest.approx(0.0, abs=none)
    assert divergence(learner, batches[0]) > 1e-4, "from the initial policy"
    learner.save(tmp_path / "before")
    assert not (tmp_path / "before" / REFERENCE_FILE).exists(), "the initial policy is not stored"
    learner.take_reference()
    assert divergence(learner, batches[0]) == pytest.approx(0.0, abs=none)
    learner.save(tmp_path / "after")
    expected = [divergence(learner, batches[step]) for step in (1, 0)]
    assert min(expected) > 1e-4
    continued = make_learner(ranks, **settings)
    continued.load(tmp_path / "after")
    assert [divergence(continued, batches[step]) for step in (1, 0)] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 2), (2, 3)])
def test_comparing_with_earlier_adapters_leaves_the_policy_as_it_is(make_learner, batches, tmp_path, ranks, stage):  # noqa: F811
    """A KL term of coefficient 0+ costs passes with other adapters; the weights are those of a run without it."""
    weights = []
    for loss in (LossConfig(), replace(KL, kl_coef=1e-12)):
        learner = make_learner(ranks, zero_stage=stage, reference=True, trained=LORA)
        learner.update(batches[0][1:4], LossConfig())
        learner.take_reference()
        for groups in batches:
            learner.update(groups[1:4], loss)
        weights.append(exported(learner, tmp_path / str(loss.kl_coef)))
    assert distance(*weights) < 1e-6
