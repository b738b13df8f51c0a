"""Importance weights by token and by response, clipped and masked, against loops; and what is logged of them."""

import math
from dataclasses import replace

import pytest
import torch

from tests.unit.token_values import gradient_of, some_tokens, spans
from visurf_ray.config.choices import ImportanceLevel, LabelTerm, OnExcess
from visurf_ray.learner.mismatch import ImportanceSums
from visurf_ray.method import Importance, LossConfig, TokenValues, importance_ratios, importance_weights, token_losses

PPO = LossConfig(clip_low=0.1, clip_high=0.3)
CE = replace(PPO, label_term=LabelTerm.ce)


@pytest.fixture
def tokens() -> TokenValues:
    return some_tokens()


def raw_weights(tokens: TokenValues, level: str) -> list[float]:
    """π_old / π_sampler of each token, or the product over its response; 1 for labels."""
    old, sampler = tokens.old_logprob_T.tolist(), tokens.sampler_logprob_T.tolist()
    found = []
    for span in spans(tokens):
        own = [math.exp(old[index] - sampler[index]) for index in span]
        if tokens.is_label_T[span[0]]:
            found += [1.0] * len(span)
        else:
            found += own if level == "token" else [math.prod(own)] * len(span)
    return found


def bounded(weight: float, is_label: bool, on_excess: str) -> float:
    if is_label or 0.7 <= weight <= 1.5:
        return weight
    return 0.0 if on_excess == "mask" else min(max(weight, 0.7), 1.5)


@pytest.mark.parametrize("config", [PPO, CE], ids=["ppo", "ce"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("on_excess", list(OnExcess))
def test_weights_by_a_plain_loop(tokens, config, level, on_excess):
    """Each rollout token's loss is multiplied; label tokens count once, and no gradient flows through the weight."""
    importance = Importance(ImportanceLevel(level), 0.7, 1.5, on_excess)
    labels = tokens.is_label_T.tolist()
    raw = raw_weights(tokens, level)
    expected = [bounded(weight, label, on_excess) for weight, label in zip(raw, labels, strict=True)]
    for case in (sum(w < 0.7 for w in raw), sum(w > 1.5 for w in raw), sum(0.7 <= w <= 1.5 for w in raw)):
        assert case > 20, "below, above and between the bounds must be there"
    weights = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(importance_weights(tokens, importance), weights, rtol=1e-10, atol=1e-12)
    losses, gradient = gradient_of(tokens, replace(config, importance=importance))
    plain_losses, plain_gradient = gradient_of(tokens, config)
    torch.testing.assert_close(losses, plain_losses * weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, plain_gradient * weights, rtol=1e-10, atol=1e-12)


def test_no_gradient_flows_into_the_old_policy_by_the_weights(tokens):
    """On-policy, the old log-probs are those of the forward pass: a weight must not differentiate them."""
    old = tokens.old_logprob_T.clone().requires_grad_()
    importance = Importance(ImportanceLevel.sequence, 0.0, 2.0, OnExcess.clip)
    assert not importance_weights(replace(tokens, old_logprob_T=old), importance).requires_grad


def test_todays_cap_is_a_clip_without_a_lower_bound(tokens):
    """min(π_old / π_sampler, 2), which pipeline=one_step_off asks for."""
    from tests.unit.conftest import composed

    importance = Importance.of(composed("pipeline=one_step_off").pipeline)
    found = importance_weights(tokens, importance)
    expected = torch.exp(tokens.old_logprob_T - tokens.sampler_logprob_T).clamp(max=2.0)
    torch.testing.assert_close(found, torch.where(tokens.is_label_T, 1.0, expected), rtol=1e-12, atol=0)
    assert Importance.of(composed("pipeline=sync").pipeline) is None


def test_products_over_long_responses_stay_finite():
    size = torch.Size([5000])
    zeros = torch.zeros(size)
    tokens = TokenValues(zeros, zeros, zeros, zeros.bool(), zeros - 1.0, zeros, zeros.long())
    assert importance_ratios(tokens, ImportanceLevel.sequence).unique().tolist() == pytest.approx([math.exp(20)])
    assert importance_ratios(tokens, ImportanceLevel.token).unique().tolist() == pytest.approx([math.e])


def test_a_rollout_whose_log_probs_were_not_requested_does_not_pass_unweighted(tokens):
    """All are requested where weights are on; one that is missing makes the loss NaN, which ends the run."""
    missing = replace(tokens, sampler_logprob_T=torch.full_like(tokens.sampler_logprob_T, torch.nan))
    importance = Importance(ImportanceLevel.token, 0.7, 1.5, OnExcess.mask)
    losses = token_losses(missing, replace(PPO, importance=importance))
    assert torch.equal(losses.isnan(), ~tokens.is_label_T)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("on_excess", list(OnExcess))
def test_the_mean_weight_and_the_share_beyond_the_bounds_are_logged(tokens, level, on_excess):
    """Over rollout tokens, or over rollouts; added up over two micro-batches."""
    importance = Importance(ImportanceLevel(level), 0.7, 1.5, on_excess)
    raw = raw_weights(tokens, level)
    firsts = [span[0] for span in spans(tokens)] if level == "sequence" else range(len(raw))
    chosen = [raw[index] for index in firsts if not tokens.is_label_T[index]]
    applied = [bounded(weight, False, on_excess) for weight in chosen]
    cut = spans(tokens)[20][0]
    halves = [
        TokenValues(*(getattr(tokens, name)[part] for name in tokens.__dataclass_fields__))
        for part in (slice(0, cut), slice(cut, None))
    ]
    metrics = sum((ImportanceSums.of(half, importance) for half in halves), start=ImportanceSums()).metrics()
    assert metrics["train/importance_weight"] == pytest.approx(sum(applied) / len(applied), rel=1e-9)
    excess = sum(not 0.7 <= weight <= 1.5 for weight in chosen) / len(chosen)
    assert metrics["train/importance_excess"] == pytest.approx(excess, rel=1e-6) and 0 < excess < 1
    assert ImportanceSums.of(tokens, None).metrics() == {}
