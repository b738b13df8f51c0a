"""Distribution of groups over ranks and minibatches, and the metrics of the ranks' reports."""

import random

import pytest

from tests.unit.groups import group
from visurf_ray.learner.balance import balance, fill
from visurf_ray.learner.group import split_evenly
from visurf_ray.learner.metrics import (
    SourceTallies,
    StepReport,
    UpdateSums,
    sizes,
    summarise,
)
from visurf_ray.learner.sums import Tally


def test_balance_by_hand():
    assert sorted(balance([5, 9, 4, 6], 2)) == [[0, 3], [1, 2]]
    assert balance([7, 3], 1) == [[0, 1]]


@pytest.mark.parametrize("seed", range(20))
def test_every_group_goes_to_one_rank_and_no_rank_is_idle_or_overloaded(seed):
    rng = random.Random(seed)
    ranks = rng.randint(1, 8)
    costs = [rng.choice([1, 2, rng.randint(1, 500)]) for _ in range(rng.randint(ranks, 40))]
    chosen = balance(costs, ranks)
    assert sorted(index for indices in chosen for index in indices) == list(range(len(costs)))
    assert len(chosen) == ranks and all(chosen)
    loads = [sum(costs[index] for index in indices) for indices in chosen]
    assert max(loads) <= sum(costs) / ranks + max(costs), "the bound of the greedy rule"
    assert chosen == balance(costs, ranks), "deterministic"


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_filled_to_the_budget_and_no_further(seed):
    rng = random.Random(seed)
    costs = [rng.randint(1, 120) for _ in range(rng.randint(1, 30))]
    budget = rng.randint(20, 400)
    rows = fill(costs, budget)
    assert sorted(index for row in rows for index in row) == list(range(len(costs))) and all(rows)
    for row in rows:
        assert len(row) == 1 or sum(costs[index] for index in row) <= budget
    assert len(rows) <= 1 + 2 * sum(costs) // budget + sum(cost > budget / 2 for cost in costs)


def test_rows_by_hand():
    assert fill([5, 5, 5, 5], 10) in ([[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]])
    assert fill([5, 5], 100) == [[0, 1]]
    assert fill([50, 5], 10) == [[0], [1]], "a group above the budget has a row of its own"
    assert fill([3], 10) == [[0]]


def test_fewer_groups_than_ranks_are_refused():
    with pytest.raises(ValueError, match=r"2 groups cannot keep 3 learner ranks busy: raise train\.batch_size"):
        balance([1, 2], 3)


@pytest.mark.parametrize("count", range(1, 34))
def test_minibatches_keep_the_order_and_differ_by_one_group_at_most(count):
    groups = [group([float(number)]) for number in range(count)]
    for parts in range(1, count + 1):
        cut = split_evenly(groups, parts)
        assert [one for part in cut for one in part] == groups
        lengths = [len(part) for part in cut]
        assert len(cut) == parts and max(lengths) - min(lengths) <= 1 and min(lengths) >= 1


def test_fewer_groups_than_minibatches_are_refused():
    with pytest.raises(ValueError, match=r"1 groups cannot make 2 minibatches: lower learner\.minibatches"):
        split_evenly([group([1.0])], 2)


# Metrics


def tallies(tokens: int, mean: float) -> SourceTallies:
    tally = Tally(mean * tokens, tokens)
    return SourceTallies(entropy=tally, logprob=tally, ratio=tally, clip_share=tally)


def report(grad_norm: float = 1.0, **sums) -> StepReport:
    return StepReport(UpdateSums(**sums), grad_norm, learning_rate=1e-4)


def test_means_are_over_all_tokens_of_all_ranks_and_minibatches():
    results = [
        [
            report(2.0, loss=0.5, rollout=tallies(10, 1.0), label=tallies(4, 3.0)),
            report(4.0, loss=0.25, rollout=tallies(20, 2.0)),
        ],
        [
            report(2.0, loss=0.125, rollout=tallies(30, 3.0)),
            report(4.0, loss=-0.5, rollout=tallies(40, 4.0), label=tallies(1, 8.0)),
        ],
    ]
    metrics = summarise(results)
    assert metrics == pytest.approx(
        {"train/loss": 0.375 / 2, "train/grad_norm": 3.0, "train/learning_rate": 1e-4}
        | {f"train/{name}/rollout": 3.0 for name in ("entropy", "logprob", "ratio", "clip_share")}
        | {f"train/{name}/label": 4.0 for name in ("entropy", "logprob", "ratio", "clip_share")}
    )


def test_a_source_or_a_comparison_without_tokens_is_left_out():
    metrics = summarise([[report(loss=1.0, label=tallies(5, 2.0))]])
    assert metrics["train/entropy/label"] == 2.0
    assert not [name for name in metrics if "rollout" in name or "kl" in name]


def test_a_divergence_is_a_mean_over_rollout_tokens():
    metrics = summarise(
        [[report(rollout=SourceTallies(kl=Tally(3.0, 6)))], [report(rollout=SourceTallies(kl=Tally(1.0, 2)))]]
    )
    assert metrics["train/kl/rollout"] == 0.5


def test_sizes_count_a_prompt_once_and_the_length_of_rollouts():
    groups = [group([1.0, 2.0], 6.0, tokens=[3, 5, 9]), group([1.0], tokens=[4])]
    assert sizes(groups, seconds=2.0) == {
        "train/groups": 2.0,
        "train/tokens_per_second": (4 + 3 + 5 + 9 + 4 + 4) / 2.0,
        "train/response_length": 4.0,
    }
