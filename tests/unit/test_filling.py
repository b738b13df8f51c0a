"""How many prompts a batch draws: once, or until dynamic sampling has filled it."""

import random

import pytest

from tests.unit.conftest import composed
from tests.unit.groups import group
from visurf_ray.method import Method, Part
from visurf_ray.method.filling import Filling


def draw(filling: Filling, kept_of) -> list[int]:
    """Draw what the batch asks for; `kept_of` tells how many groups of a draw have an advantage."""
    asked = []
    for number, prompts in enumerate(filling):
        asked.append(prompts)
        filling.add(drawn=prompts, kept=kept_of(number, prompts))
    return asked


def test_a_batch_that_is_full_at_once_is_not_refilled():
    filling = Filling(4, first=6, max_refills=3, dynamic=True)
    assert draw(filling, lambda number, prompts: 5) == [6]
    assert filling.missing == 0
    assert filling.metrics == {"train/refills": 0.0, "train/kept_share": 5 / 6}


def test_refills_draw_what_the_share_kept_so_far_makes_likely():
    """Half of 8 are kept: 4 more need 8. Then 2 of 8: the last two groups need ceil(2 · 16 / 6) = 6 prompts."""
    filling = Filling(8, first=8, max_refills=5, dynamic=True)
    assert draw(filling, lambda number, prompts: [4, 2, 2][number]) == [8, 8, 6]
    assert filling.metrics == {"train/refills": 2.0, "train/kept_share": 8 / 22}


def test_without_a_single_group_kept_the_whole_first_draw_is_repeated_until_the_limit():
    filling = Filling(4, first=6, max_refills=2, dynamic=True)
    assert draw(filling, lambda number, prompts: 0) == [6, 6, 6]
    assert filling.missing == 4
    assert filling.metrics == {"train/refills": 2.0, "train/kept_share": 0.0}


def test_other_methods_draw_once_whatever_is_skipped():
    filling = Filling(4, first=6, max_refills=8, dynamic=False)
    assert draw(filling, lambda number, prompts: 3) == [6]
    assert filling.missing == 0 and filling.metrics == {}
    assert filling.enough == 4, "the two slowest are aborted"
    assert Filling(4, first=6, max_refills=8, dynamic=True).enough == 6, "none is aborted"


@pytest.mark.parametrize("seed", range(20))
def test_a_refill_never_draws_less_than_is_missing_nor_more_than_the_first_draw(seed):
    rng = random.Random(seed)
    size = rng.randint(1, 40)
    filling = Filling(size, first=size + rng.randint(0, 10), max_refills=rng.randint(0, 9), dynamic=True)
    kept = drawn = 0
    for number, prompts in enumerate(filling):
        assert prompts <= filling.first and (number == 0 or prompts >= size - kept > 0)
        new = rng.randint(0, prompts)
        filling.add(drawn=prompts, kept=new)
        kept, drawn = kept + new, drawn + prompts
        assert number <= filling.max_refills
    assert filling.missing == max(0, size - kept)
    assert filling.missing == 0 or filling.metrics["train/refills"] == filling.max_refills


# What the method says of it


def method(*overrides: str) -> Method:
    config = composed(*overrides).method
    encode = lambda text: [1]  # noqa: E731
    return Method(
        config, render=lambda *_: "", encode=encode, parts={"": Part(("spaced",))}, longest=8, importance=None
    )


def test_groups_are_counted_as_they_will_be_kept_and_stay_as_they_are():
    """With a label that smoothing switches off, and one that teaches."""
    visurf = method("method.dynamic_sampling=true")
    groups = [
        group([7.0, 7.0], 6.0),
        group([0.0, 0.0], 6.0, thinking=1.0),
        group([1.0, 2.0], 6.0),
        group([3.0, 3.0], 3.0),
    ]
    before = [[(r.reward, dict(r.reward_parts), r.advantage) for r in one.responses] for one in groups]
    assert visurf.count_instructive(groups, step=0) == 2
    assert [[(r.reward, r.reward_parts, r.advantage) for r in one.responses] for one in groups] == before
    visurf.assign_advantages(groups, 0)
    assert visurf.instructive(groups, at_least=0) == groups[1:3]


def test_a_method_that_keeps_all_groups_counts_all_and_never_refills():
    assert method().count_instructive([group([1.0, 1.0], 1.0)], step=0) == 1
    assert not method().filling(4, prompts=4).dynamic
    filling = method("method=dapo", "method.max_refills=3").filling(4, prompts=6)
    assert (filling.size, filling.first, filling.max_refills, filling.dynamic) == (4, 6, 3, True)


def test_labels_of_sft_bring_no_rewards_to_the_metrics():
    assert method("method=sft").assign_advantages([group([], 0.0)], 0) == {}
