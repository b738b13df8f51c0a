"""Distribution of groups over ranks and minibatches, and the metrics of the ranks' reports."""

import math
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayError

from tests.unit.groups import group, held
from visurf_ray.config.choices import Packing
from visurf_ray.errors import ConfigError, LearnerLostError, LostError, StalledError
from visurf_ray.groups import Group, Prompt
from visurf_ray.learner.balance import GroupPart, balance, cut, fill, spread
from visurf_ray.learner.cost import TOKENS, Cost
from visurf_ray.learner.group import LearnerGroup, split_evenly
from visurf_ray.learner.metrics import (
    SourceTallies,
    StepReport,
    UpdateSums,
    sizes,
    summarise,
)
from visurf_ray.learner.sums import Tally


class Rank:
    """A handle of a rank, whose calls are recorded and return `result`."""

    node = "10.0.0.1"

    def __init__(self, calls: list, result: object = None) -> None:
        self.calls = calls
        self.result = result

    def __getattr__(self, name: str):
        def remote(*arguments):
            self.calls.append((name, *arguments))
            return (self.node, 5) if name == "address" else self.result

        return SimpleNamespace(remote=remote)


@pytest.fixture
def make_group(monkeypatch):
    """Makes a learner of recorded ranks that share GPUs with engines."""
    monkeypatch.setattr("visurf_ray.learner.group.fetch", lambda references, timeout: references)

    def make(calls: list, *results: object) -> LearnerGroup:
        group = LearnerGroup(
            [Rank(calls, result) for result in results],
            SimpleNamespace(cost=TOKENS, timeout=60.0),
            seed=0,
            minibatches=1,
            cores=[[] for _ in results],
            claim_gpus=lambda: calls.append(("engines sleep",)),
        )
        calls.clear()
        return group

    return make


def test_engines_that_share_gpus_sleep_before_the_export(make_group):
    calls = []
    make_group(calls, None, None).export(Path("there"))
    assert calls == [("engines sleep",), ("export", Path("there")), ("export", Path("there"))]


def test_a_checkpoint_is_written_when_all_ranks_have_written_it(make_group):
    for results in ((True, True), (True, False), (False, True)):
        calls = []
        assert make_group(calls, *results).written(wait=False) == all(results)
        assert calls == [("written", False)] * 2


@pytest.mark.parametrize(
    ("error", "death", "expected"),
    [
        (StalledError("no answer from a rank"), None, "no answer from a rank"),
        (RayError("Connection closed by peer"), "LearnerActor (process 7) died", r"LearnerActor \(process 7\) died"),
        (RayError("out of memory"), None, None),
        (LostError("an image"), "LearnerActor (process 7) died", None),
    ],
)
def test_which_errors_tell_that_the_learner_is_lost(make_group, monkeypatch, error, death, expected):
    group = make_group([], None, None)

    def fetch(references, timeout):
        raise error

    monkeypatch.setattr("visurf_ray.learner.group.fetch", fetch)
    monkeypatch.setattr("visurf_ray.learner.group.death_among", lambda actors, phase: death)
    with pytest.raises(LearnerLostError if expected else type(error), match=expected):
        group.take_reference()


@pytest.mark.parametrize(
    ("node", "expected"),
    [("127.0.0.1", r"file:///.+/store"), ("10.0.0.2", r"tcp://10\.0\.0\.2:5"), ("fd00::2", r"tcp://\[fd00::2\]:5")],
)
def test_where_ranks_meet(make_group, monkeypatch, node, expected):
    """In a Ray that no other machine reaches, nothing listens."""
    monkeypatch.setattr(Rank, "node", node)
    calls = []
    make_group(calls, None, None)._begin()
    meetings = [call[4] for call in calls if call[0] == "start"]
    assert len(meetings) == 2 and len(set(meetings)) == 1 and re.fullmatch(expected, meetings[0])


def test_a_learner_that_starts_anew_packs_as_before_and_loads_its_checkpoint(make_group, monkeypatch):
    monkeypatch.setattr("visurf_ray.learner.group.ray", SimpleNamespace(kill=lambda actor: calls.append(("killed",))))
    calls, later = [], []
    group = make_group(calls, None)
    group.set_packing(Packing.rows)
    calls.clear()
    group._launch = lambda: [Rank(later)]
    group.restart(Path("step_000002"))
    assert calls == [("killed",), ("engines sleep",)]
    assert [call[0] for call in later] == ["address", "start", "set_packing", "load"]
    assert later[-1] == ("load", Path("step_000002"), None)


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


def random_groups(rng: random.Random, count: int, longest: int = 60) -> list[Group]:
    """Groups with prompts of four tokens."""
    return [
        group([0.0] * size, tokens=[rng.choice([1, 2, rng.randint(1, longest)]) for _ in range(size)])
        for size in (rng.randint(1, 9) for _ in range(count))
    ]


def cut_up(groups: list[Group], budget: int) -> list[GroupPart]:
    return cut(groups, [[float(number)] * len(one.responses) for number, one in enumerate(groups)], budget)


def same_responses(parts: list[GroupPart], groups: list[Group]) -> bool:
    found = [response for part in parts for response in part.group.responses]
    expected = [response for one in groups for response in one.responses]
    return len(found) == len(expected) and all(ours is theirs for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_no_part_and_no_row_exceeds_the_budget_and_no_response_is_lost(seed):
    rng = random.Random(seed)
    groups = random_groups(rng, rng.randint(1, 12))
    budget = rng.randint(63, 300)
    parts = cut_up(groups, budget)
    assert same_responses(parts, groups)
    for part in parts:
        assert TOKENS.tokens(part.group) <= budget and part.group.example is groups[int(part.weights[0])].example
        assert len(set(part.weights)) == 1 and len(part.weights) == len(part.group.responses)
    rows = fill(parts, budget, TOKENS)
    assert sorted(map(id, parts)) == sorted(id(part) for row in rows for part in row) and all(rows)
    loads = [sum(TOKENS.tokens(part.group) for part in row) for row in rows]
    assert max(loads) <= budget
    assert len(rows) <= 1 + 2 * sum(loads) // budget + sum(TOKENS.tokens(part.group) > budget / 2 for part in parts)


def test_a_group_is_cut_between_responses_where_a_row_is_full():
    one = group([0.0] * 4, tokens=[5, 5, 9, 1])  # 4 tokens of the prompt, and 4, 4, 8, 0 of the responses
    assert [[len(r.tokens.resolve(held).ids) for r in part.group.responses] for part in cut_up([one], 12)] == [
        [5, 5],
        [9, 1],
    ]
    assert len(cut_up([one], 20)) == 1


def test_a_response_that_no_row_can_hold_is_named():
    with pytest.raises(
        ConfigError, match=r"'a': its prompt of 4 tokens and a rollout of 9 do not fit learner\.max_tok"
    ):
        cut_up([group([0.0], tokens=[9])], 11)
    assert len(cut_up([group([0.0], tokens=[9])], 12)) == 1


@pytest.mark.parametrize("seed", range(20))
def test_more_ranks_than_groups_share_their_responses(seed):
    rng = random.Random(seed)
    groups = random_groups(rng, rng.randint(1, 3))
    responses = sum(len(one.responses) for one in groups)
    count = rng.randint(1, responses)
    parts = spread(cut_up(groups, 1000), count, Cost().of)
    assert len(parts) >= count and same_responses(parts, groups)
    idle = spread(parts, responses + 2, Cost().of)
    assert len(idle) == responses + 2 and all(part.weights == (0.0,) for part in idle[responses:] if part not in parts)


def test_a_cost_counts_what_is_computed():
    """Against a loop over all pairs of a token and one before it."""
    prompt = Prompt([1, 2, 3], [1, 2, 2, 2, 3], ("image",))  # three visual tokens of four patches
    one = group([0.0, 0.0], tokens=[4, 7])
    one = Group(replace(one.example, prompt=prompt), one.responses)
    rows = [[True] * (own + 1) for own in range(5)] + [[True] * (5 + own + 1) for n in (3, 6) for own in range(n)]
    pairs = sum(map(len, rows)) - len(rows) / 2  # a token and itself are counted by half
    assert Cost(1, 0, 0).of(one) == TOKENS.tokens(one) == 14
    assert Cost(0, 1).of(one) == pairs
    assert Cost(0, 0, 1).of(one) == 11
    assert Cost(0, 0, 0, 1).of(one) == 12 and Cost(0, 0, 0, 0, 1).of(one) == 144
    assert Cost(2, 3, 5, 7, 11).of(one) == 2 * 14 + 3 * pairs + 5 * 11 + 7 * 12 + 11 * 144
    two = Prompt([1, 2, 2, 3], [1, 2, 2, 2, 2, 2, 2, 3], ("image", "image"))  # three visual tokens each
    several = Group(replace(one.example, prompt=two), one.responses)
    assert Cost(0, 0, 0, 1).of(several) == 24 and Cost(0, 0, 0, 0, 1).of(several) == 2 * 144
    none = Group(replace(one.example, prompt=Prompt([1, 2, 3], [1, 2, 3])), one.responses)
    assert Cost(0, 0, 0, 1, 1).of(none) == 0


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


def test_skipped_steps_are_counted_and_leave_no_numbers():
    bad = StepReport(UpdateSums(loss=math.nan), math.inf, learning_rate=1e-4, skipped=True)
    good = report(2.0, loss=3.0)
    assert summarise([[bad]]) == {"train/skipped_steps": 1.0}
    assert summarise([[bad, good], [bad, good]]) == {"train/skipped_steps": 1.0} | summarise([[good], [good]])
