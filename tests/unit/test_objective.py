"""The combined objective: the loss of each token, denominators that are global, and the paper's gradient identity."""

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.groups import group, ids
from visurf_ray.config.schema import Aggregation, LabelTerm
from visurf_ray.groups import Group, Source, TokenSpan
from visurf_ray.method import LossConfig, divergences, group_advantages, is_clipped, token_losses, token_weights

PPO = LossConfig(clip_low=0.1, clip_high=0.3)
CE = LossConfig(clip_low=0.1, clip_high=0.3, label_term=LabelTerm.ce)
VOCABULARY = 7


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    """Log-probs, old log-probs, advantages and source of 400 tokens: ratios from 0.5 to 2, advantages of both signs."""
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(400, generator=generator, dtype=torch.float64)
    shift = (torch.rand(400, generator=generator, dtype=torch.float64) - 0.5) * 2 * math.log(2)
    advantages = torch.randn(400, generator=generator, dtype=torch.float64)
    return {
        "logprobs_T": old + shift,
        "old_logprobs_T": old,
        "advantages_T": advantages,
        "is_label_T": (is_label := torch.rand(400, generator=generator) < 0.3),
        "sampler_logprobs_T": torch.where(is_label, torch.nan, old + torch.randn(400, generator=generator) / 2),
        "entropies_T": torch.rand(400, generator=generator, dtype=torch.float64),
        "reference_logprobs_T": old + torch.randn(400, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("config", [PPO, CE], ids=["ppo", "ce"])
def test_the_loss_of_each_token_by_a_plain_loop(tokens, config):
    expected, clipped = [], {"up": 0, "down": 0}
    for new, old, advantage, is_label, *_ in zip(*(values.tolist() for values in tokens.values()), strict=True):
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
        token_losses(**tokens, config=config), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_dual_clip_bounds_the_loss_of_bad_tokens_by_a_plain_loop(tokens):
    """Ye et al. 2020, eq. 5: max(min(ρA, clip(ρ)A), cA) where A < 0; where it binds there is no gradient."""
    config = replace(PPO, dual_clip=1.5)
    logprobs = tokens["logprobs_T"].requires_grad_()
    found = token_losses(**tokens, config=config)
    (gradient,) = torch.autograd.grad(found.sum(), logprobs)
    expected, bound = [], []
    for new, old, advantage in zip(*(tokens[n].tolist() for n in list(tokens)[:3]), strict=True):
        ratio = math.exp(new - old)
        objective = min(ratio * advantage, min(max(ratio, 0.9), 1.3) * advantage)
        bound.append(advantage < 0 and ratio > 1.5)
        expected.append(-max(objective, 1.5 * advantage) if advantage < 0 else -objective)
    assert sum(bound) > 20, "the cases must be there"
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert not gradient[torch.tensor(bound)].any()


def test_shaped_labels_have_the_gradient_of_luffy(tokens):
    """d/dlogp of -A p / (p + γ) is -A p γ / (p + γ)²; no clipping, and rollouts as ever."""
    logprobs, label = tokens["logprobs_T"].requires_grad_(), tokens["is_label_T"]
    found = token_losses(**tokens, config=replace(PPO, label_term=LabelTerm.shaped, shaping=0.2))
    (gradient,) = torch.autograd.grad(found.sum(), logprobs)
    p, advantages = logprobs.detach().exp(), tokens["advantages_T"]
    torch.testing.assert_close(found[label], (-advantages * p / (p + 0.2))[label], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient[label], (-advantages * p * 0.2 / (p + 0.2) ** 2)[label], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[~label], token_losses(**tokens, config=PPO)[~label], rtol=0, atol=0)


def test_the_entropy_of_rollout_tokens_is_taken_off(tokens):
    taken = token_losses(**tokens, config=PPO) - token_losses(**tokens, config=replace(PPO, entropy_coef=0.3))
    expected = torch.where(tokens["is_label_T"], 0.0, 0.3 * tokens["entropies_T"])
    torch.testing.assert_close(taken, expected, rtol=1e-9, atol=1e-12)


def test_the_divergence_from_the_reference_by_hand(tokens):
    """k3 is q/p - 1 - log(q/p), and on the average the KL divergence itself."""
    added = token_losses(**tokens, config=replace(PPO, kl_coef=0.3)) - token_losses(**tokens, config=PPO)
    expected = []
    for new, reference, is_label in zip(
        *(tokens[name].tolist() for name in ("logprobs_T", "reference_logprobs_T", "is_label_T")), strict=True
    ):
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
    found = token_losses(new, old, torch.tensor([advantage]), torch.tensor([False]), old, old, None, PPO)
    assert found.item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    "config",
    [PPO, CE, replace(PPO, label_term=LabelTerm.shaped), replace(PPO, dual_clip=1.5)],
    ids=["ppo", "ce", "shaped", "dual"],
)
def test_is_clipped_is_where_the_gradient_vanishes(tokens, config):
    logprobs = tokens["logprobs_T"].clone().requires_grad_()
    losses = token_losses(**tokens | {"logprobs_T": logprobs}, config=config)
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    clipped = is_clipped(**{name: tokens[name] for name in list(tokens)[:4]}, config=config)
    assert torch.equal(clipped, gradient == 0)
    assert 0 < clipped.sum() < len(clipped)


@pytest.mark.parametrize("config", [PPO, CE], ids=["ppo", "ce"])
def test_importance_weights_by_a_plain_loop(tokens, config):
    """min(π_old / π_sampler, cap) for each rollout token; label tokens count once, and no gradient flows through."""
    logprobs, old = tokens["logprobs_T"].requires_grad_(), tokens["old_logprobs_T"].requires_grad_()
    capped = token_losses(**tokens, config=replace(config, importance_cap=1.5))
    plain = token_losses(**tokens, config=config)
    sampler, is_label = tokens["sampler_logprobs_T"].tolist(), tokens["is_label_T"].tolist()
    weights = [
        1.0 if label else min(math.exp(o - s), 1.5) for o, s, label in zip(old.tolist(), sampler, is_label, strict=True)
    ]
    assert 20 < sum(weight == 1.5 for weight in weights) < 380, "both sides of the cap must be there"
    weights = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(capped, plain * weights, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(capped.sum(), [logprobs, old], retain_graph=True, allow_unused=True)
    expected = torch.autograd.grad((plain * weights).sum(), [logprobs, old], allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


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
    """Each loss's sums, spelled out; `ce` makes rollouts and labels two losses, and labels count half here."""
    config = LossConfig(aggregation=aggregation, longest=12, label_term=term, label_scale=0.5)
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
                    scale = 0.5 if response.source is Source.LABEL else 1.0
                    assert weight == pytest.approx(scale * expected, rel=1e-12)


def test_weights_of_all_tokens_sum_to_one(batch):
    total = sum(
        weight * response.length
        for one, weights in zip(batch, token_weights(batch, PPO), strict=True)
        for response, weight in zip(one.responses, weights, strict=True)
    )
    assert total == pytest.approx(1.0, rel=1e-12)


class SoftmaxPolicy:
    """The next token given the one before: a table of logits, in float64."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()

    def logprobs(self, token_ids: list[int]) -> Tensor:
        before = torch.tensor([0, *token_ids[:-1]])
        return self.logits.log_softmax(-1)[before, torch.tensor(token_ids)]

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.logits)[0]


def weighted_loss(policy, groups, weights, config=PPO, old: SoftmaxPolicy | None = None) -> Tensor:
    """The sum that a learner computes for a part of the batch, as rank.py does."""
    total = torch.zeros((), dtype=torch.float64)
    for one, of_group in zip(groups, weights, strict=True):
        for response, weight in zip(one.responses, of_group, strict=True):
            new = policy.logprobs(ids(response))
            losses = token_losses(
                new,
                (old.logprobs(ids(response)) if old else new).detach(),
                torch.full_like(new, response.advantage),
                torch.full(new.shape, response.source is Source.LABEL),
                torch.full_like(new, torch.nan),
                torch.zeros_like(new),
                None,
                config,
            )
            total = total + weight * losses.sum()
    return total


@pytest.mark.parametrize("config", [PPO, CE], ids=["ppo", "ce"])
def test_neither_partition_nor_order_changes_loss_or_gradient(batch, config):
    policy, old = SoftmaxPolicy(0), SoftmaxPolicy(1)  # ratios far from 1, so that clipping takes part
    whole = weighted_loss(policy, batch, token_weights(batch, config), config, old)
    gradient = policy.gradient(whole)
    assert gradient.abs().max() > 1e-3
    rng = random.Random(1)
    for parts in (1, 2, 3, 6):
        order = rng.sample(range(len(batch)), len(batch))
        shuffled = [batch[index] for index in order]
        weights = token_weights(shuffled, config)
        losses = [
            weighted_loss(policy, shuffled[part::parts], weights[part::parts], config, old) for part in range(parts)
        ]
        torch.testing.assert_close(sum(losses), whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sum(map(policy.gradient, losses)), gradient, rtol=1e-12, atol=1e-12)


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
    found = weighted_loss(policy, batch, token_weights(batch, PPO), PPO, old)
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

    found = policy.gradient(weighted_loss(policy, [one], token_weights([one], PPO)))

    spelled_out = -sum(
        response.advantage * policy.gradient(policy.logprobs(ids(response)).mean()) for response in one.responses
    ) / (rollouts + 1)
    torch.testing.assert_close(found, spelled_out, rtol=0, atol=1e-6)

    rlvr_group, sft_group = Group(one.example, one.rollouts), Group(one.example, [label])
    rlvr = policy.gradient(weighted_loss(policy, [rlvr_group], token_weights([rlvr_group], PPO)))
    sft = policy.gradient(weighted_loss(policy, [sft_group], token_weights([sft_group], CE), CE))
    combined = rollouts / (rollouts + 1) * rlvr + label.advantage / (rollouts + 1) * sft
    torch.testing.assert_close(found, combined, rtol=0, atol=1e-6)
    assert found.abs().max() > 1e-3 and (label.advantage * sft).abs().max() > 1e-3
