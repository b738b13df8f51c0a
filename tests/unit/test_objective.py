"""The combined objective: the loss of each token, denominators that are global, and the paper's gradient identity."""

import math
import random
from dataclasses import replace

import pytest
import torch

from tests.unit.groups import group, ids
from tests.unit.token_values import VOCABULARY, SoftmaxPolicy, gradient_of, some_tokens, weighted_loss, whole_loss
from visurf_ray.config.choices import Aggregation, Clip, ImportanceLevel, LabelTerm, OnExcess, RatioLevel
from visurf_ray.groups import Group, Source, TokenSpan
from visurf_ray.method import (
    Importance,
    LossConfig,
    TokenValues,
    divergences,
    group_advantages,
    is_clipped,
    scaled,
    token_losses,
    token_weights,
)

PPO = LossConfig(clip_low=0.1, clip_high=0.3)
CE = LossConfig(clip_low=0.1, clip_high=0.3, label_term=LabelTerm.ce, labels_apart=True)


@pytest.fixture
def tokens() -> TokenValues:
    return some_tokens()


@pytest.mark.parametrize("config", [PPO, CE], ids=["ppo", "ce"])
def test_the_loss_of_each_token_by_a_plain_loop(tokens, config):
    expected, clipped = [], {"up": 0, "down": 0}
    values = (tokens.logprob_T, tokens.old_logprob_T, tokens.advantage_T, tokens.is_label_T)
    for new, old, advantage, is_label in zip(*(value.tolist() for value in values), strict=True):
        ratio = math.exp(new - old)
        bounded = min(max(ratio, 0.9), 1.3)
        clipped["up"] += advantage > 0 and ratio > 1.3
        clipped["down"] += advantage < 0 and ratio < 0.9
        if config.label_term == "ce" and is_label:
            expected.append(-new)
        else:
            expected.append(-min(ratio * advantage, bounded * advantage))
    assert min(clipped.values()) > 20, "the cases must be there"
    torch.testing.assert_close(
        token_losses(tokens, config), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_dual_clip_bounds_the_loss_of_bad_tokens_by_a_plain_loop(tokens):
    """Ye et al. 2020, eq. 5: max(min(ρA, clip(ρ)A), cA) where A < 0; where it binds there is no gradient."""
    config = replace(PPO, dual_clip=1.5)
    found, gradient = gradient_of(tokens, config)
    expected, bound = [], []
    values = (tokens.logprob_T, tokens.old_logprob_T, tokens.advantage_T)
    for new, old, advantage in zip(*(value.tolist() for value in values), strict=True):
        ratio = math.exp(new - old)
        objective = min(ratio * advantage, min(max(ratio, 0.9), 1.3) * advantage)
        bound.append(advantage < 0 and ratio > 1.5)
        expected.append(-max(objective, 1.5 * advantage) if advantage < 0 else -objective)
    assert sum(bound) > 20, "the cases must be there"
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert not gradient[torch.tensor(bound)].any()


def test_the_entropy_of_rollout_tokens_is_taken_off(tokens):
    taken = token_losses(tokens, PPO) - token_losses(tokens, replace(PPO, entropy_coef=0.3))
    expected = torch.where(tokens.is_label_T, 0.0, 0.3 * tokens.entropy_T)
    torch.testing.assert_close(taken, expected, rtol=1e-9, atol=1e-12)


def test_the_divergence_from_the_reference_by_hand(tokens):
    """k3 is q/p - 1 - log(q/p), and on the average the KL divergence itself."""
    added = token_losses(tokens, replace(PPO, kl_coef=0.3)) - token_losses(tokens, PPO)
    expected = []
    values = (tokens.logprob_T, tokens.reference_logprob_T, tokens.is_label_T)
    for new, reference, is_label in zip(*(value.tolist() for value in values), strict=True):
        expected.append(0.0 if is_label else 0.3 * (math.exp(reference - new) - 1 - (reference - new)))
    torch.testing.assert_close(added, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    p, q = (torch.randn(7, generator=torch.Generator().manual_seed(s)).double().softmax(-1) for s in (0, 1))
    mean = (p * divergences(p.log(), q.log())).sum()
    torch.testing.assert_close(mean, (p * (p / q).log()).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.0, 2.0, -2.0), (2.0, 1.0, -1.3), (2.0, -1.0, 2.0), (0.5, 1.0, -0.5), (0.5, -1.0, 0.9), (0.5, 0.0, 0.0)],
)
def test_clipping_by_hand(ratio, advantage, loss):
    new, old = torch.tensor([math.log(ratio) - 1.0]), torch.tensor([-1.0])
    one = TokenValues(new, old, torch.tensor([advantage]), torch.tensor([False]), old, old, torch.tensor([0]))
    found = token_losses(one, PPO)
    assert found.item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    "config",
    [PPO, CE, replace(PPO, label_term=LabelTerm.shaped), replace(PPO, dual_clip=1.5)],
    ids=["ppo", "ce", "shaped", "dual"],
)
def test_is_clipped_is_where_the_gradient_vanishes(tokens, config):
    _, gradient = gradient_of(tokens, config)
    clipped = is_clipped(tokens, config)
    assert torch.equal(clipped, gradient == 0)
    assert 0 < clipped.sum() < len(clipped)


# Weights


@pytest.fixture
def batch() -> list[Group]:
    """Six groups of two to five responses of one to nine tokens, some with a label, with advantages."""
    rng = random.Random(0)
    groups = []
    for number in range(6):
        rollouts = rng.randint(2, 4)
        lengths = [rng.randint(1, 9) for _ in range(rollouts + 1)]
        label = 6.0 if number % 3 else None
        one = group([rng.uniform(0, 7) for _ in range(rollouts)], label, tokens=lengths)
        values = group_advantages(torch.tensor([response.reward for response in one.responses], dtype=torch.float64))
        for response, advantage in zip(one.responses, values.tolist(), strict=True):
            response.advantage = advantage
            response.tokens = TokenSpan.of([rng.randrange(VOCABULARY) for _ in range(response.length)])
        groups.append(one)
    return groups


def test_weights_are_one_over_examples_responses_and_tokens():
    groups = [group([1.0, 2.0], 6.0, tokens=[1, 4, 5]), group([1.0], tokens=[10])]
    weights = token_weights(groups, PPO)
    assert weights[0] == pytest.approx([1 / 6, 1 / 24, 1 / 30])
    assert weights[1] == pytest.approx([1 / 20])


@pytest.mark.parametrize("term", [LabelTerm.ppo, LabelTerm.ce])
@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_aggregation_by_plain_loops(batch, aggregation, term):
    """Each loss's sums, spelled out; `ce` makes rollouts and labels two losses, and the two count differently."""
    config = LossConfig(
        aggregation=aggregation,
        longest=12,
        label_term=term,
        labels_apart=term == "ce",
        label_scale=0.5,
        rollout_scale=0.3,
    )
    weights = token_weights(batch, config)
    sources = [[Source.ROLLOUT], [Source.LABEL]] if term == "ce" else [[Source.ROLLOUT, Source.LABEL]]
    for chosen in sources:
        members = [[r for r in one.responses if r.source in chosen] for one in batch]
        members = [responses for responses in members if responses]
        for one, of_group in zip(batch, weights, strict=True):
            own = sum(response.source in chosen for response in one.responses)
            for response, weight in zip(one.responses, of_group, strict=True):
                if response.source in chosen:
                    expected = {
                        "sequence": 1 / len(members) / max(own, 1) / response.length,
                        "token": 1 / sum(r.length for responses in members for r in responses),
                        "constant": 1 / len(members) / max(own, 1) / 12,
                    }[aggregation]
                    scale = 0.5 if response.source is Source.LABEL else 0.3
                    assert weight == pytest.approx(scale * expected, rel=1e-12)


def test_weights_of_all_tokens_sum_to_one(batch):
    total = sum(
        weight * response.length
        for one, weights in zip(batch, token_weights(batch, PPO), strict=True)
        for response, weight in zip(one.responses, weights, strict=True)
    )
    assert total == pytest.approx(1.0, rel=1e-12)


EVERYTHING = {
    "importance": Importance(ImportanceLevel.token, 0.5, 2.0, OnExcess.clip),
    "entropy_coef": 0.1,
    "kl_coef": 0.1,
    "rollout_scale": 0.7,
    "label_scale": 0.3,
}
BY_RESPONSE = Importance(ImportanceLevel.sequence, 0.3, 4.0, OnExcess.mask)
CONFIGS = {
    "ppo": PPO,
    "ppo whole": replace(PPO, dual_clip=3.0, **EVERYTHING),
    "gspo": replace(PPO, ratio=RatioLevel.sequence),
    "cispo": replace(PPO, clip=Clip.cispo, aggregation=Aggregation.token),
    "sapo": replace(PPO, clip=Clip.sapo),
    "gspo, importance by response": replace(PPO, ratio=RatioLevel.sequence, importance=BY_RESPONSE),
    **{term: replace(PPO, label_term=term, labels_apart=term != "shaped") for term in LabelTerm if term != "ppo"},
    "routed": replace(CE, labels_apart=False, importance=BY_RESPONSE),
    "chord mixed": replace(CE, label_term=LabelTerm.chord, **EVERYTHING),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_neither_partition_nor_order_changes_loss_or_gradient(batch, config):
    """Whole groups in micro-batches, as `pack` keeps them; and cut between responses, each with its prompt again."""
    policy = SoftmaxPolicy(0)  # ratios far from 1, so that clipping takes part
    others = {"old": SoftmaxPolicy(1), "sampler": SoftmaxPolicy(2), "reference": SoftmaxPolicy(3)}
    whole = whole_loss(policy, batch, config, **others)
    gradient = policy.gradient(whole)
    assert gradient.abs().max() > 1e-3
    rng = random.Random(1)
    for parts in (1, 2, 3, 6):
        order = rng.sample(range(len(batch)), len(batch))
        shuffled = [batch[index] for index in order]
        weights = token_weights(shuffled, config)
        losses = [
            weighted_loss(policy, shuffled[part::parts], weights[part::parts], config, **others)
            for part in range(parts)
        ]
        torch.testing.assert_close(sum(losses), whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sum(map(policy.gradient, losses)), gradient, rtol=1e-12, atol=1e-12)
    cut = [
        weighted_loss(policy, [Group(one.example, [response])], [[weight]], config, **others)
        for one, of_group in zip(batch, token_weights(batch, config), strict=True)
        for response, weight in zip(one.responses, of_group, strict=True)
    ]
    torch.testing.assert_close(sum(cut), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(map(policy.gradient, cut)), gradient, rtol=1e-12, atol=1e-12)


def test_the_loss_is_the_nested_mean_of_the_paper(batch):
    """Eq. 8, spelled out: over examples, over the G+1 responses, over the tokens."""
    policy, old = SoftmaxPolicy(0), SoftmaxPolicy(1)
    means = []
    for one in batch:
        per_response = []
        for response in one.responses:
            ratios = (policy.logprobs(ids(response)) - old.logprobs(ids(response))).exp().tolist()
            terms = [
                min(ratio * response.advantage, min(max(ratio, 0.9), 1.3) * response.advantage) for ratio in ratios
            ]
            per_response.append(sum(terms) / len(terms))
        means.append(sum(per_response) / len(per_response))
    expected = -sum(means) / len(means)
    found = whole_loss(policy, batch, PPO, old=old)
    assert found.item() == pytest.approx(expected, rel=1e-12)


# Eq. 9


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_rlvr_scaled_plus_sft_weighted_by_the_labels_advantage(seed):
    """∇L = -1/(G+1) [Σ Â_j ∇log π(o_j) + Â_y ∇log π(y)] = G/(G+1) · RLVR + Â_y/(G+1) · SFT, where all ratios are 1."""
    rng = random.Random(seed)
    rollouts = 8
    lengths = [rng.randint(1, 12) for _ in range(rollouts + 1)]
    one = group([rng.uniform(0, 7) for _ in range(rollouts)], 6.0, tokens=lengths)
    rewards = torch.tensor([response.reward for response in one.responses], dtype=torch.float64)
    for response, advantage in zip(one.responses, group_advantages(rewards).tolist(), strict=True):
        response.advantage = advantage
        response.tokens = TokenSpan.of([rng.randrange(VOCABULARY) for _ in range(response.length)])
    label = one.label
    assert label is not None and abs(label.advantage) > 0.01
    policy = SoftmaxPolicy(seed)

    found = policy.gradient(whole_loss(policy, [one], PPO))

    spelled_out = -sum(
        response.advantage * policy.gradient(policy.logprobs(ids(response)).mean()) for response in one.responses
    ) / (rollouts + 1)
    torch.testing.assert_close(found, spelled_out, rtol=0, atol=1e-6)

    rlvr_group, sft_group = Group(one.example, one.rollouts), Group(one.example, [label])
    rlvr = policy.gradient(whole_loss(policy, [rlvr_group], PPO))
    sft = policy.gradient(whole_loss(policy, [sft_group], CE))
    combined = rollouts / (rollouts + 1) * rlvr + label.advantage / (rollouts + 1) * sft
    torch.testing.assert_close(found, combined, rtol=0, atol=1e-6)
    assert found.abs().max() > 1e-3 and (label.advantage * sft).abs().max() > 1e-3


def test_a_loss_that_is_not_finite_has_no_finite_gradient():
    for excess, expected in ((0.0, 3.0), (math.inf, math.nan), (-math.inf, math.nan), (math.nan, math.nan)):
        weight = torch.tensor(0.1, requires_grad=True)
        loss = scaled(weight + excess, 3)
        loss.backward()
        assert weight.grad is not None and weight.grad.item() == pytest.approx(expected, nan_ok=True)
        assert math.isfinite(loss.item()) == (excess == 0.0)
