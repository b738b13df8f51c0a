"""How far sampler and learner are apart: statistics over all compared tokens, whatever the micro-batches and ranks."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.unit.token_values import some_tokens, spans
from visurf_ray.config.choices import ImportanceLevel
from visurf_ray.learner.mismatch import Mismatch
from visurf_ray.method import TokenValues


def part_of(tokens: TokenValues, part: slice) -> TokenValues:
    return TokenValues(*(getattr(tokens, name)[part] for name in tokens.__dataclass_fields__))


def compared(count: int, scale: float, seed: int = 0) -> TokenValues:
    """Rollout tokens whose log-probs differ by a normal deviation, in responses of five."""
    old = torch.zeros(count, dtype=torch.float64) - 1.0
    deviation = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TokenValues(old, old, old, old.bool() & False, old + scale * deviation, -old, torch.arange(count) // 5)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_all_statistics_by_plain_loops(level):
    tokens = some_tokens(2000)
    differences = (tokens.old_logprob_T - tokens.sampler_logprob_T).tolist()
    known = [value for value in differences if not math.isnan(value)]
    weights = [math.exp(value) for value in known]
    if level == "sequence":
        sums = [sum(differences[index] for index in span) for span in spans(tokens)]
        weights = [math.exp(value) for value in sums if not math.isnan(value)]
    edges = [0, *(spans(tokens)[index][0] for index in (7, 50, 120)), 2000]
    parts = [part_of(tokens, slice(begin, end)) for begin, end in pairwise(edges)]
    metrics = sum((Mismatch.of(part, ImportanceLevel(level)) for part in parts), start=Mismatch()).metrics()
    absolute = sorted(map(abs, known))
    expected = {
        "train/rollout_logprob_diff": sum(absolute) / len(absolute),
        "train/rollout_logprob_diff_max": absolute[-1],
        "train/rollout_logprob_diff_over_0.1": sum(value > 0.1 for value in absolute) / len(absolute),
        "train/rollout_kl": sum(math.exp(value) - 1 - value for value in known) / len(known),
        "train/rollout_ess": sum(weights) ** 2 / len(weights) / sum(weight**2 for weight in weights),
    }
    percentile = metrics.pop("train/rollout_logprob_diff_p99")
    assert metrics == pytest.approx(expected, rel=1e-6)
    true = np.quantile(absolute, 0.99, method="inverted_cdf")
    assert true <= percentile <= true * 1.024


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.05, 3.0])
@pytest.mark.parametrize("count", [1, 3, 99, 100, 101, 5000])
def test_the_percentile_is_at_most_a_bin_too_large(scale, count):
    tokens = compared(count, scale)
    differences = (tokens.old_logprob_T - tokens.sampler_logprob_T).abs().numpy()
    true = np.quantile(differences, 0.99, method="inverted_cdf")
    assert true <= Mismatch.of(tokens).quantile(0.99) <= true * 1.024


def test_equal_and_absurd_differences():
    assert Mismatch.of(compared(10, 0.0)).metrics() == pytest.approx(
        {
            "train/rollout_logprob_diff": 0.0,
            "train/rollout_logprob_diff_p99": 0.0,
            "train/rollout_logprob_diff_max": 0.0,
            "train/rollout_logprob_diff_over_0.1": 0.0,
            "train/rollout_kl": 0.0,
            "train/rollout_ess": 1.0,
        }
    )
    tokens = compared(10, 0.0)
    broken = Mismatch.of(replace(tokens, sampler_logprob_T=tokens.old_logprob_T - 1e4))
    assert broken.metrics()["train/rollout_logprob_diff_p99"] == 1e4 and broken.far.mean == 1.0


def test_the_divergence_is_that_of_the_sampler_from_the_learner():
    """Over tokens drawn from the sampler, k3 is KL(sampler || learner) on the average."""
    p, q = (torch.randn(6, generator=torch.Generator().manual_seed(s)).double().softmax(-1) for s in (0, 1))
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(2))
    old = q.log()[drawn]
    tokens = TokenValues(old, old, old, torch.zeros(len(old)).bool(), p.log()[drawn], -old, torch.arange(len(old)))
    found = Mismatch.of(tokens)
    assert found.kl.mean == pytest.approx((p * (p / q).log()).sum().item(), rel=0.02)
    assert found.ratios.effective == pytest.approx(1 / (q**2 / p).sum().item(), rel=0.02)


def test_nothing_is_logged_where_no_token_was_compared():
    tokens = some_tokens()
    labels = part_of(tokens, slice(0, 400))
    labels = replace(labels, sampler_logprob_T=torch.full_like(labels.sampler_logprob_T, torch.nan))
    assert (Mismatch.of(labels) + Mismatch()).metrics() == {}
