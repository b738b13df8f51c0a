"""What a group teaches: over-long rollouts, HPT's choice between rollouts and label, and CHORD's mixture."""

import math
from collections.abc import Callable

import pytest
import torch

from tests.unit.conftest import composed
from tests.unit.groups import group
from tests.unit.token_values import SoftmaxPolicy, whole_loss
from visurf_ray.errors import UserError
from visurf_ray.groups import Group, Source
from visurf_ray.method import Method, Part, group_advantages, sft_stage, token_weights

LONGEST = 50


@pytest.fixture
def make_method() -> Callable[..., Method]:
    def make(*overrides: str) -> Method:
        return Method(
            composed(*overrides).method,
            render=lambda example, style: "[]",
            encode=lambda text: [1, 2],
            parts={"": Part(["spaced"], ("thinking_format",))},
            longest=LONGEST,
            importance=None,
        )

    return make


def cut(one: Group, *indices: int) -> Group:
    """The group, whose rollouts with these numbers were cut at the length limit."""
    for index in indices:
        one.responses[index].truncated = True
    return one


# Over-long rollouts


def test_the_punishment_grows_over_the_buffer(make_method):
    """DAPO eq. 13: 0 up to L_max - L_cache, ((L_max - L_cache) - |y|) / L_cache, and -1 at L_max."""
    method = make_method("method=dapo", "method.overlong_buffer=0.2", "method.overlong_penalty=2.0")
    lengths = [1, 39, 40, 41, 45, 49, 50]
    one = group([3.0] * 7, tokens=lengths)
    metrics = method.assign_advantages([one])
    expected = [2.0 * (0.0 if n <= 40 else (40 - n) / 10) for n in lengths]
    assert [r.reward_parts["overlong"] for r in one.responses] == pytest.approx(expected)
    assert [r.reward for r in one.responses] == pytest.approx([3.0 + cost for cost in expected])
    assert metrics["reward/rollout/overlong"] == pytest.approx(sum(expected) / 7)
    assert [math.copysign(1.0, r.reward_parts["overlong"]) for r in one.responses[:3]] == [1.0] * 3, "no -0"
    assert one.responses[0].advantage > 0 > one.responses[-1].advantage


def test_a_rollout_that_was_cut_where_a_prompt_left_less_room_costs_all(make_method):
    one = group([1.0, 1.0], tokens=[3, 3])
    one.responses[1].truncated = True
    make_method("method=rlvr", "method.overlong=punish").assign_advantages([one])
    assert [rollout.reward for rollout in one.rollouts] == [1.0, 0.0]


def test_labels_are_not_punished(make_method):
    one = group([1.0, 2.0], 6.0, tokens=[50, 1, 50])
    make_method("method=visurf", "method.overlong=punish").assign_advantages([one])
    assert one.label.reward == 6.0 and one.rollouts[0].reward == 0.0


def test_filtered_rollouts_have_no_part_in_loss_or_statistics(make_method):
    """The group is as if they had not been sampled; the rewards that are logged are of all."""
    method = make_method("method=rlvr", "method.overlong=filter")
    one, alone = cut(group([0.0, 4.0, 1.0, 7.0]), 1, 3), group([0.0, 1.0])
    metrics = method.assign_advantages([one])
    method.assign_advantages([alone])
    assert [r.advantage for r in one.responses] == [r.advantage for r in alone.responses]
    assert token_weights([one], method.loss(0)) == token_weights([alone], method.loss(0))
    assert metrics["train/truncated_share"] == 0.5 and metrics["reward/rollout/total"] == 3.0


def test_groups_that_filtering_empties_are_left_out(make_method):
    method = make_method("method=rlvr", "method.overlong=filter")
    groups = [cut(group([0.0, 1.0]), 0, 1), group([0.0, 1.0]), cut(group([2.0, 1.0]), 1)]
    method.assign_advantages(groups)
    assert method.instructive(groups, at_least=2) == groups[1:]
    with pytest.raises(UserError, match=r"method\.overlong=filter left 2 of 3 groups.*raise rollout\.max_tokens"):
        method.instructive(groups, at_least=3)


def test_a_label_stays_when_all_rollouts_were_cut(make_method):
    one = cut(group([0.0, 1.0], 6.0), 0, 1)
    make_method("method=visurf", "method.overlong=filter").assign_advantages([one])
    assert [r.source for r in one.responses] == [Source.LABEL] and one.label.advantage == 0.0


def test_without_it_over_long_rollouts_are_as_others_and_counted(make_method):
    one = cut(group([0.0, 1.0, 2.0]), 2)
    metrics = make_method("method=rlvr").assign_advantages([one])
    assert metrics["train/truncated_share"] == pytest.approx(1 / 3)
    assert len(one.responses) == 3 and "overlong" not in one.responses[2].reward_parts
    assert "train/truncated_share" not in make_method("method=sft").assign_advantages([group([], 6.0)])


# HPT


@pytest.mark.parametrize(
    ("rewards", "share", "kept"),
    [
        ([0.0, 5.9, 3.0, 5.0], 0.0, True),
        ([0.0, 6.0, 3.0, 5.0], 0.0, False),
        ([6.0, 6.5, 7.0, 6.0], 0.0, False),
        ([0.0, 6.0, 3.0, 5.0], 0.25, True),
        ([7.0, 6.0, 3.0, 5.0], 0.25, False),
        ([6.0 - 5e-7, 0.0], 0.0, False),
    ],
)
def test_a_group_teaches_by_its_label_where_few_rollouts_succeed(make_method, rewards, share, kept):
    """Of HPT: SFT where P <= γ, RL where P > γ, P being the share of rollouts that succeed."""
    one = group(rewards, 6.0)
    metrics = make_method("method=hpt", f"method.route_share={share}").assign_advantages([one])
    assert metrics["train/sft_share"] == kept
    if kept:
        assert [r.source for r in one.responses] == [Source.LABEL]
    else:
        expected = group_advantages(torch.tensor(rewards, dtype=torch.float64)).tolist()
        assert [r.advantage for r in one.responses] == expected and one.label is None


def test_the_loss_of_routed_groups_is_the_mean_over_all_groups(make_method):
    """1/N Σ of a group's cross-entropy or of its RLVR loss (HPT: α L_RL + β L_SFT with α, β of 0 or 1)."""
    method = make_method("method=hpt")
    groups = [
        group([0.0, 1.0, 2.0], 6.0, tokens=[3, 1, 2, 4]),
        group([6.0, 1.0, 2.0], 6.0, tokens=[1, 5, 2, 4]),
        group([6.5, 7.0], 6.0, tokens=[2, 2, 1]),
    ]
    method.assign_advantages(groups)
    policy = SoftmaxPolicy(0)
    apart = [whole_loss(policy, [one], method.loss(0)) for one in groups]
    assert apart[0].item() == pytest.approx(-policy.logprobs([0, 1, 2, 3]).mean().item())
    assert whole_loss(policy, groups, method.loss(0)).item() == pytest.approx(sum(x.item() for x in apart) / 3)


def test_a_route_leaves_something_to_log_of_every_group(make_method):
    metrics = make_method("method=hpt").assign_advantages([group([0.0, 1.0], 6.0), group([6.0, 1.0], 6.0)])
    assert metrics["train/label_active"] == 0.5 and metrics["train/sft_share"] == 0.5
    assert "advantage/rollout" not in metrics, "of active groups only labels are left"


# SRFT, LUFFY, CHORD


@pytest.mark.parametrize("name", ["srft", "luffy"])
def test_srft_and_luffy_compare_the_label_with_the_group(make_method, name):
    one = group([0.0, 1.0, 5.0], 6.0)
    make_method(f"method={name}").assign_advantages([one])
    assert one.label.advantage > 0 > one.responses[0].advantage


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method.mu.peak=0.9", "method.mu.valley=0.1", "method.mu.warmup=10", "method.mu.decay=20"], None),
        ([], [0.1] * 5),
        (["method.mu.peak=0.8", "method.mu.valley=0.2", "method.mu.warmup=10"], [0.0, 0.4, 0.2, 0.2, 0.2]),
    ],
)
def test_mu_rises_linearly_and_falls_by_a_cosine(make_method, overrides, expected):
    """At steps 0, 5, 10, 20 and 30: with a warm-up of 10 steps and a decay of 20."""
    expected = expected or [0.0, 0.45, 0.9, 0.1 + 0.8 * 0.5, 0.1]
    method = make_method("method=chord", *overrides)
    losses = [method.loss(step) for step in (0, 5, 10, 20, 30)]
    assert [loss.label_scale for loss in losses] == pytest.approx(expected)
    assert [loss.rollout_scale for loss in losses] == pytest.approx([1 - mu for mu in expected])
    if method.has_labels(5):
        assert method.assign_advantages([group([1.0, 2.0], 6.0)], 5)["train/mu"] == pytest.approx(expected[1])


def test_chords_loss_is_a_mixture_of_two_losses(make_method):
    """(1 - μ) · RLVR's + μ · the label's, each the mean that it is alone (arXiv 2508.11408)."""
    method = make_method("method=chord", "method.mu.peak=0.3", "method.mu.valley=0.3")
    both = group([0.0, 1.0, 5.0], 6.0, tokens=[3, 1, 2, 4])
    method.assign_advantages([both])
    policy, old = SoftmaxPolicy(0), SoftmaxPolicy(1)
    found = whole_loss(policy, [both], method.loss(0), old=old)
    rlvr = whole_loss(policy, [Group(both.example, both.rollouts)], make_method("method=rlvr").loss(0), old=old)
    logprobs = policy.logprobs([0, 1, 2, 3])
    p = logprobs.detach().exp()
    imitation = -(p * (1 - p) * logprobs).mean()
    assert found.item() == pytest.approx((0.7 * rlvr + 0.3 * imitation).item(), rel=1e-9)


@pytest.mark.parametrize("name", ["sft_then_rlvr", "chord", "hpt", "srft", "visurf"])
def test_the_first_stage_is_plain_sft_whatever_follows(make_method, name):
    method = make_method(f"method={name}")
    method.config = sft_stage(method.config)
    one = group([], 6.0, tokens=[4])
    metrics = method.assign_advantages([one])
    sft = make_method("method=sft")
    assert token_weights([one], method.loss(0)) == token_weights([one], sft.loss(0)) == [[0.25]]
    assert method.loss(0).label_term == "ce" and method.has_labels(0) and len(one.responses) == 1
    assert all(name.startswith("reward/label/") for name in metrics)
