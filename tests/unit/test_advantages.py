"""Group-relative advantages: the facts of the method, and agreement with independent implementations."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import zscore

from visurf_ray.method import group_advantages


def rewards(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ddof", "label", "rollout"), [(1, 8 / 3, -1 / 3), (0, 8 / math.sqrt(8), -1 / math.sqrt(8))], ids=["sample", "all"]
)
def test_a_label_that_alone_succeeds(ddof, label, rollout):
    found = group_advantages(rewards(*[0.0] * 8, 1.0), ddof=ddof)
    assert found[:8].tolist() == pytest.approx([rollout] * 8, rel=1e-5)
    assert found[8].item() == pytest.approx(label, rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 0.01, -5.0, 1000.0])
@pytest.mark.parametrize("rollouts", [2, 8, 15])
def test_a_lone_outlier_gets_the_same_whatever_its_size(rollouts, size):
    found = group_advantages(rewards(*[3.0] * rollouts, 3.0 + size))
    assert found[-1].item() == pytest.approx(math.copysign(rollouts / math.sqrt(rollouts + 1), size), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, 7.000000000000005, -1e9])
@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("options", [{}, {"ddof": 0}, {"divide_by_std": False}], ids=["std", "population", "no std"])
def test_equal_rewards_give_exact_zeros(count, value, options):
    assert group_advantages(rewards(*[value] * count), **options).tolist() == [0.0] * count


def test_rewards_that_differ_by_rounding_alone_are_worth_nothing():
    found = group_advantages(rewards(7.0, 7.0, 7.000000000000005))
    assert found.abs().max() < 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [(), (1.0, 2.0)], ids=["alone", "among others"])
def test_rewards_that_are_not_finite_are_refused(value, others):
    with pytest.raises(ValueError, match=r"finite.*(nan|inf)"):
        group_advantages(rewards(*others, value))


@pytest.mark.parametrize("ddof", [0, 1])
def test_agrees_with_scipy_and_numpy(ddof):
    rng = np.random.default_rng(ddof)
    for count in range(2, 17):
        values = rng.uniform(0, 7, count)
        found = group_advantages(torch.from_numpy(values), ddof=ddof, eps=0.0).numpy()
        np.testing.assert_allclose(found, zscore(values, ddof=ddof), rtol=1e-12)
        offset = group_advantages(torch.from_numpy(values), ddof=ddof, eps=0.5).numpy()
        np.testing.assert_allclose(offset, (values - values.mean()) / (values.std(ddof=ddof) + 0.5), rtol=1e-12)


def test_without_std_rewards_are_centred_alone():
    found = group_advantages(rewards(1.0, 2.0, 6.0), divide_by_std=False)
    assert found.tolist() == [-2.0, -1.0, 3.0]


def test_large_rewards_in_single_precision_keep_their_differences():
    """A float32 mean of these would be off by more than the rewards differ."""
    found = group_advantages(torch.tensor([1e6, 1e6 + 1, 1e6 + 1], dtype=torch.float32), divide_by_std=False)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3], rel=1e-6)


def test_statistics_can_leave_the_label_out():
    """Against numpy; where the rollouts are all equal there is no deviation but the whole group's."""
    found = group_advantages(rewards(1.0, 4.0, 7.0, 6.0), compared_with=3, eps=0.0)
    others = np.array([1.0, 4.0, 7.0])
    expected = (np.array([1.0, 4.0, 7.0, 6.0]) - others.mean()) / others.std(ddof=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    equal = group_advantages(rewards(2.0, 2.0, 2.0, 6.0), compared_with=3, eps=0.0)
    np.testing.assert_allclose(equal.numpy(), [0.0, 0.0, 0.0, 4.0 / np.std([2, 2, 2, 6], ddof=1)], rtol=1e-12)
