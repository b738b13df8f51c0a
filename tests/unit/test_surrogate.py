"""Ratios by response, and the bounds of CISPO and SAPO, against loops over tokens."""

import math
from dataclasses import replace

import pytest
import torch

from tests.unit.token_values import SoftmaxPolicy, gradient_of, some_tokens, spans
from visurf_ray.config.choices import Clip, RatioLevel
from visurf_ray.method import LossConfig, TokenValues, is_clipped, ratios

GSPO = LossConfig(clip_low=0.1, clip_high=0.3, ratio=RatioLevel.sequence)


@pytest.fixture
def tokens() -> TokenValues:
    return some_tokens()


def expect(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def response_ratios(tokens: TokenValues) -> list[float]:
    """Each token's response's (π(y) / π_old(y))^(1/|y|), spelled out."""
    new, old = tokens.logprob_T.tolist(), tokens.old_logprob_T.tolist()
    found = []
    for span in spans(tokens):
        likelihood = math.prod(math.exp(new[index]) for index in span)
        before = math.prod(math.exp(old[index]) for index in span)
        found += [(likelihood / before) ** (1 / len(span))] * len(span)
    return found


def test_a_responses_ratio_is_the_geometric_mean_of_its_tokens(tokens):
    expect(ratios(tokens, RatioLevel.sequence), response_ratios(tokens))
    expect(ratios(tokens, RatioLevel.token), [math.exp(d) for d in (tokens.logprob_T - tokens.old_logprob_T).tolist()])


def test_gspo_by_a_plain_loop(tokens):
    """-min(s A, clip(s) A) for every token; each token's gradient is s A where the bound does not act, else 0."""
    losses, gradient = gradient_of(tokens, GSPO)
    expected, slopes = [], []
    for s, advantage in zip(response_ratios(tokens), tokens.advantage_T.tolist(), strict=True):
        bounded = min(max(s, 0.9), 1.3)
        expected.append(-min(s * advantage, bounded * advantage))
        slopes.append(-s * advantage if s * advantage <= bounded * advantage else 0.0)
    expect(losses, expected)
    expect(gradient, slopes)
    assert 20 < sum(slope == 0 for slope in slopes) < 380, "both cases must be there"
    assert torch.equal(is_clipped(tokens, GSPO), gradient == 0)


@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_the_gradient_by_tokens_is_that_of_gspo(advantage):
    """Of -s(θ) A with s the length-normalised ratio, differentiated as one function of the parameters (eq. 5)."""
    policy, old = SoftmaxPolicy(0), SoftmaxPolicy(1)
    ids = [3, 1, 4, 1, 5]
    new, before = policy.logprobs(ids), old.logprobs(ids).detach()
    whole = -torch.exp((policy.logprobs(ids) - before).mean()) * advantage
    size = torch.Size([len(ids)])
    tokens = TokenValues(
        new,
        before,
        torch.full(size, advantage, dtype=torch.float64),
        torch.zeros(size, dtype=torch.bool),
        before,
        before,
        torch.zeros(size, dtype=torch.long),
    )
    config = replace(GSPO, clip_low=1.0, clip_high=100.0)
    found = -(ratios(tokens, config.ratio) * tokens.advantage_T).mean()
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(policy.gradient(found), policy.gradient(whole), rtol=1e-10, atol=1e-12)


def test_cispo_by_a_plain_loop(tokens):
    """-sg(clip(ρ)) A log p: no token loses its gradient, and no gradient flows through the weight."""
    config = LossConfig(clip=Clip.cispo, clip_low=0.1, clip_high=0.3)
    losses, gradient = gradient_of(tokens, config)
    expected, slopes, bound = [], [], []
    values = (tokens.logprob_T, tokens.old_logprob_T, tokens.advantage_T)
    for new, old, advantage in zip(*(value.tolist() for value in values), strict=True):
        ratio = math.exp(new - old)
        weight = min(max(ratio, 0.9), 1.3)
        expected.append(-weight * advantage * new)
        slopes.append(-weight * advantage)
        bound.append(weight != ratio)
    expect(losses, expected)
    expect(gradient, slopes)
    assert is_clipped(tokens, config).tolist() == bound and 20 < sum(bound) < 380


def test_sapo_by_a_plain_loop(tokens):
    """-4/τ σ(τ (ρ - 1)) A; the slope by log p is -ρ A · 4 σ (1 - σ), which is -ρ A at ρ = 1."""
    config = LossConfig(clip=Clip.sapo, tau_positive=2.0, tau_negative=3.0)
    losses, gradient = gradient_of(tokens, config)
    expected, slopes = [], []
    values = (tokens.logprob_T, tokens.old_logprob_T, tokens.advantage_T)
    for new, old, advantage in zip(*(value.tolist() for value in values), strict=True):
        ratio, tau = math.exp(new - old), 2.0 if advantage > 0 else 3.0
        gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
        expected.append(-4 / tau * gate * advantage)
        slopes.append(-4 * gate * (1 - gate) * ratio * advantage)
    expect(losses, expected)
    expect(gradient, slopes)
    assert not is_clipped(tokens, config).any()


@pytest.mark.parametrize("clip", list(Clip))
@pytest.mark.parametrize("level", list(RatioLevel))
def test_on_policy_all_have_the_gradient_of_reinforce(tokens, clip, level):
    on_policy = replace(tokens, old_logprob_T=tokens.logprob_T)
    _, gradient = gradient_of(on_policy, LossConfig(clip=clip, ratio=level))
    expect(gradient, (-tokens.advantage_T).tolist())
