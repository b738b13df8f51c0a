"""Labels and the control of their reward: eliminate, smooth, and what is logged of them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.conftest import composed
from tests.unit.groups import example, group, ids
from visurf_ray.config.choices import LabelTerm
from visurf_ray.groups import Group, Response, Source, TokenSpan
from visurf_ray.method import LossConfig, Method, Part, group_advantages
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.tasks import load_task

TRUTH = '[{"bbox_2d": [100, 100, 300, 300], "point_2d": [200, 200]}]'


@pytest.fixture
def make_method() -> Callable[..., Method]:
    def make(*overrides: str) -> Method:
        return Method(
            composed(*overrides).method,
            render=lambda example, style: f"<answer>{style} {example.ground_truth}</answer>",
            encode=lambda text: [*text.encode(), 0],
            parts={"": Part(["spaced", "compact"], ("thinking_format",))},
            longest=100,
            importance=None,
        )

    return make


@pytest.fixture
def visurf(make_method) -> Method:
    return make_method("method=visurf")


def advantages(group: Group) -> list[float]:
    return [response.advantage for response in group.responses]


def some_rewards(seed: int) -> list[float]:
    """Eight rewards as VisionReasoner's: sums of a mean over one to six objects and whole parts."""
    rng = np.random.default_rng(seed)
    return [float(rng.integers(0, 3) + 3 * rng.integers(0, 7) / rng.integers(1, 7)) for _ in range(8)]


# Appending labels


def test_the_label_is_the_last_response_and_ends_as_a_rollout_ends(visurf):
    groups = [Group(example("[]"), group([1.0, 2.0]).responses), Group(example(TRUTH), [])]
    for one in groups:
        visurf.append_label(one, 0)
    assert [len(one.responses) for one in groups] == [3, 1]
    for one, truth in zip(groups, ("[]", TRUTH), strict=True):
        text = f"<answer>spaced {truth}</answer>"
        assert one.responses[-1] is one.label
        assert one.label is not None and one.label.text == text and one.label.tokens.store.sampler_logprobs is None
        assert ids(one.label) == [*text.encode(), 0]


def test_the_label_is_rendered_in_the_configured_style(make_method):
    groups = [Group(example(), [])]
    for one in groups:
        make_method("method=visurf", "method.style=compact").append_label(one, 0)
    assert groups[0].responses[0].text == "<answer>compact []</answer>"


def test_the_policy_chooses_the_labels_style_again_and_again(make_method):
    method = make_method("method.style=auto", "method.style_every=5")
    assert [step for step in range(11) if method.aligns(step, [example()])] == list(range(11)), "it has not chosen yet"
    asked = method.in_each_style([example(), example()])
    assert [r.text for one in asked for r in one.responses] == [
        "<answer>spaced []</answer>",
        "<answer>compact []</answer>",
    ] * 2
    metrics = method.align([example(), example()], [[-2.0, -0.5], [-1.0, -1.5]])
    assert metrics == {"align/logprob/spaced": -1.5, "align/logprob/compact": -1.0, "align/margin": 0.5}
    assert [step for step in range(11) if method.aligns(step, [example()])] == [0, 5, 10]
    one = Group(example(), [])
    method.append_label(one, 0)
    assert one.responses[0].text == "<answer>compact []</answer>"
    assert not make_method("method=rlvr", "method.style=auto").aligns(0, [example()])


def test_rlvr_appends_no_label_and_rollouts_are_compared_alone(make_method):
    groups = [group([1.0, 2.0, 6.0])]
    rlvr = make_method("method=rlvr")
    for one in groups:
        rlvr.append_label(one, 0)
    metrics = rlvr.assign_advantages(groups)
    expected = group_advantages(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)).tolist()
    assert advantages(groups[0]) == pytest.approx(expected)
    parts = {"reward/rollout/total", "reward/rollout/thinking_format", "reward/rollout/accuracy"}
    assert set(metrics) == parts | {"train/truncated_share", "train/instructive_share"}
    assert metrics["reward/rollout/total"] == 3.0


def test_sft_trains_on_labels_alone_by_cross_entropy(make_method):
    sft = make_method("method=sft")
    assert sft.config.rollouts is False and sft.loss(0).label_term == "ce"
    groups = [group([], 6.0), group([], 7.0, thinking=1.0)]
    metrics = sft.assign_advantages(groups)
    assert [advantages(one) for one in groups] == [[0.0], [0.0]]
    assert all(name.startswith("reward/label/") for name in metrics), "nothing competes with the labels"


@pytest.mark.parametrize("name", ["visurf", "rlvr"])
def test_the_learner_is_told_the_clip_range_and_the_label_term(make_method, name):
    method = make_method(f"method={name}", "method.clip_low=0.1", "method.clip_high=0.3")
    assert method.loss(0) == LossConfig(clip_low=0.1, clip_high=0.3, label_term=LabelTerm.ppo, longest=100)


# Eliminate


@pytest.mark.parametrize(
    "thinking", ["", "<think></think>", "<think>It is here.</think>"], ids=["none", "empty", "some"]
)
def test_a_right_label_is_worth_six_whatever_it_thinks(visurf, thinking):
    reward = load_reward("vision_reasoner")(f"{thinking}<answer>{TRUTH}</answer>", TRUTH)
    label = Response(Source.LABEL, "", TokenSpan.of([1]), reward_parts=dict(reward.parts), reward=reward.total)
    one = Group(example(TRUTH), [*group([0.0, 1.0]).responses, label])
    visurf.assign_advantages([one])
    assert label.reward == 6.0
    assert label.reward_parts == {"thinking_format": 0.0, "answer_format": 2.0, "accuracy": 3.0, "non_repeat": 1.0}


def test_eliminate_leaves_rollouts_alone_and_can_be_switched_off(make_method):
    one = group([1.0, 2.0], 7.0, thinking=1.0)
    make_method("method=visurf", "method.eliminate=false").assign_advantages([one])
    assert [r.reward for r in one.responses] == [1.0, 2.0, 7.0]
    make_method("method=visurf").assign_advantages([one])
    assert [r.reward for r in one.responses] == [1.0, 2.0, 6.0]
    assert [r.reward_parts["thinking_format"] for r in one.responses] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(("eliminate", "worth"), [("true", 6.0), ("false", 7.0)])
@pytest.mark.parametrize("task", ["non_object", "math"])
def test_elimination_is_for_labels_with_an_empty_thinking(make_method, task, eliminate, worth):
    """As the task renders them and its reward scores them: a bare answer earns nothing for thinking anyway."""
    config = composed(f"task={task}", "task.train=a", "task.held_out=a")
    truth = TRUTH if task == "non_object" else json.dumps({"answer": "5"})
    method = make_method(f"method.eliminate={eliminate}", "method.label_thinking=empty")
    method.render = load_task(config.task, 0).render
    one = Group(example(truth), group([0.0, 0.5]).responses)
    method.append_label(one, 0)
    assert one.label.text.startswith("<think></think>")
    reward = RewardSpec.of(config.reward).load()(one.label.text, truth)
    one.label.reward_parts, one.label.reward = dict(reward.parts), reward.total
    method.assign_advantages([one])
    assert one.label.reward == worth - (5.0 if task == "math" else 0.0)
    example_with_thinking = replace(example(truth), thinking="It is here.")
    assert "<think>It is here.</think>" in method._label(example_with_thinking, "spaced").text


def test_elimination_takes_the_parts_that_the_reward_declares(make_method):
    """Visual-RFT's rewards call it format; the sum is of what is left."""
    method = make_method("method=visurf")
    method.parts = {"": Part(["spaced"], ("format", "reasons"))}
    one = group([1.0, 2.0], 6.0)
    one.label.reward_parts = {"format": 1.0, "thinking_format": 1.0, "reasons": 2.0, "iou": 2.0}
    method.assign_advantages([one])
    assert one.label.reward_parts == {"format": 0.0, "thinking_format": 1.0, "reasons": 0.0, "iou": 2.0}
    assert one.label.reward == 3.0


def test_a_label_whose_data_carry_reasoning_keeps_what_it_earns(make_method):
    one = group([1.0, 2.0], 7.0, thinking=1.0)
    one.example = replace(one.example, thinking="It is here.")
    make_method("method=visurf").assign_advantages([one])
    assert [r.reward for r in one.responses] == [1.0, 2.0, 7.0]


def test_elimination_decides_whether_the_label_is_needed(make_method):
    """A rollout at 6.5 beats a label at 7 whose thinking does not count, and only then."""
    for eliminate, active in (("true", 0.0), ("false", 1.0)):
        method = make_method("method=visurf", f"method.eliminate={eliminate}")
        assert method.assign_advantages([group([6.5, 1.0], 7.0, thinking=1.0)])["train/label_active"] == active


# Gate, decay, and whom rewards are compared with


@pytest.mark.parametrize(("best", "stays"), [(5.0, True), (6.0, False), (7.0, False)])
def test_the_gate_takes_an_unneeded_label_out_of_the_group(make_method, best, stays):
    one = group([0.0, best], 6.0)
    make_method("method.label_gate=true").assign_advantages([one])
    assert (one.label is not None) is stays and len(one.responses) == 2 + stays
    rewards = torch.tensor([0.0, best, 6.0][: 2 + stays], dtype=torch.float64)
    assert advantages(one) == pytest.approx(group_advantages(rewards).tolist())


def test_labels_alone_pass_the_gate(make_method):
    one = group([], 6.0)
    make_method("method=sft", "method.label_gate=true").assign_advantages([one])
    assert one.label is not None


def test_the_labels_part_of_the_loss_decays_to_nothing(make_method):
    method = make_method("method.label_decay=10", "method.label_coef=2.0")
    assert [method.loss(step).label_scale for step in (0, 5, 10, 20)] == pytest.approx([2.0, 1.0, 0.0, 0.0])
    assert make_method().loss(100).label_scale == 1.0


def test_rewards_can_be_compared_with_rollouts_alone(make_method):
    one = group([1.0, 2.0, 3.0], 6.0)
    make_method("method.advantage_from=rollouts").assign_advantages([one])
    assert advantages(one) == pytest.approx([-1.0, 0.0, 1.0, 4.0], abs=1e-5)


@pytest.mark.parametrize("term", ["ce", "dft", "chord"])
def test_a_label_that_is_imitated_has_no_part_in_the_comparison(make_method, term):
    """Rollouts are worth what they are under RLVR."""
    for rewards in ([4.0] * 8, [4.0, 4.0, 4.0, 5.0]):
        one, alone = group(rewards, 6.0), group(rewards)
        make_method(f"method.label_term={term}").assign_advantages([one])
        make_method("method=rlvr").assign_advantages([alone])
        assert advantages(one) == [*advantages(alone), 0.0]


@pytest.mark.parametrize(
    ("overrides", "step", "there"),
    [
        (["method.label_coef=0"], 0, False),
        (["method.label_decay=10"], 9, True),
        (["method.label_decay=10"], 10, False),
        (["method.label_decay=10"], 11, False),
        (["method=chord", "method.mu.warmup=4"], 0, False),
        (["method=chord", "method.mu.warmup=4"], 1, True),
        (["method=chord", "method.mu.valley=0"], 0, False),
        (["method=rlvr"], 0, False),
    ],
)
def test_a_label_whose_factor_is_0_is_not_there(make_method, overrides, step, there):
    """Neither scored nor learnt from: it is not appended, and its style is not chosen."""
    method = make_method(*overrides, "method.style=auto")
    method.style = "spaced"
    one = group([1.0, 2.0])
    method.append_label(one, step)
    assert (one.label is not None) is there is method.has_labels(step)
    method.style = None
    assert method.aligns(step, [example()]) is there


# Dynamic sampling


def test_dynamic_sampling_leaves_out_groups_without_an_advantage(make_method):
    dapo = make_method("method=dapo")
    groups = [group([1.0, 1.0]), group([1.0, 2.0]), group([7.0, 7.0]), group([0.0, 3.0])]
    dapo.assign_advantages(groups)
    assert dapo.instructive(groups, at_least=1) == [groups[1], groups[3]]
    assert dapo.instructive(groups, at_least=3) == [groups[1], groups[3], groups[0]], "every rank needs a group"
    assert make_method("method=rlvr").instructive(groups, at_least=1) == groups


# Smooth


@pytest.mark.parametrize(
    ("best", "label", "fires"),
    [
        (7.0, 6.0, True),
        (6.0, 6.0, True),
        (6.0 - 5e-7, 6.0, True),
        (6.0 - 2e-6, 6.0, False),
        (5.0, 6.0, False),
        (7.0, 7.000000000000005, True),
        (7.000000000000005, 7.0, True),
    ],
)
def test_smoothing_fires_when_the_best_rollout_earns_as_much(visurf, best, label, fires):
    one = group([best, 1.0, 2.0], label)
    metrics = visurf.assign_advantages([one])
    assert one.label is not None
    assert one.label.reward == pytest.approx((best + 3.0) / 3 if fires else label, rel=1e-12)
    assert metrics["train/label_active"] == (not fires)


def test_smoothing_can_be_switched_off(make_method):
    one = group([7.0, 1.0], 6.0)
    metrics = make_method("method=visurf", "method.smooth=false").assign_advantages([one])
    assert [r.reward for r in one.responses] == [7.0, 1.0, 6.0]
    assert metrics["train/label_active"] == 0.0, "whether the label is needed does not hang on the switch"


@pytest.mark.parametrize("seed", range(12))
def test_a_smoothed_label_has_an_advantage_of_exactly_zero(visurf, seed):
    one = group([*some_rewards(seed), 6.4], 6.0)
    visurf.assign_advantages([one])
    assert one.label is not None and one.label.advantage == 0.0


@pytest.mark.parametrize("value", [6.0, 6.1, 6.4, 19 / 3])
def test_a_smoothed_group_of_equal_rollouts_has_exact_zeros(visurf, value):
    one = group([value] * 8, 6.0)
    visurf.assign_advantages([one])
    assert advantages(one) == [0.0] * 9


@pytest.mark.parametrize("seed", range(5))
def test_a_smoothed_group_is_rlvr_scaled(visurf, seed):
    """RLVR times sqrt(G / (G - 1)): the label adds nothing to the sum of squares, and one to the count."""
    values = [*some_rewards(seed)[:7], 6.4]
    one = group(values, 6.0)
    visurf.assign_advantages([one])
    alone = group_advantages(torch.tensor(values, dtype=torch.float64)) * math.sqrt(8 / 7)
    assert advantages(one)[:8] == pytest.approx(alone.tolist(), rel=1e-5)


def test_an_active_label_is_compared_with_all(visurf):
    one = group([0.0] * 8, 6.0)
    visurf.assign_advantages([one])
    assert advantages(one) == pytest.approx([-1 / 3] * 8 + [8 / 3], rel=1e-5)


@pytest.mark.parametrize(
    ("override", "options"),
    [
        ("method.advantage_std=false", {"divide_by_std": False}),
        ("method.advantage_ddof=0", {"ddof": 0}),
        ("method.advantage_eps=0.5", {"eps": 0.5}),
    ],
)
def test_the_configuration_reaches_the_advantages(make_method, override, options):
    one = group([0.0, 1.0, 3.0], 6.0)
    make_method("method=visurf", override).assign_advantages([one])
    expected = group_advantages(torch.tensor([0.0, 1.0, 3.0, 6.0], dtype=torch.float64), **options)
    assert advantages(one) == pytest.approx(expected.tolist())


def test_a_reward_that_is_not_finite_is_refused(visurf):
    with pytest.raises(ValueError, match="finite"):
        visurf.assign_advantages([group([1.0, math.nan], 6.0)])


# What is logged


def test_rewards_activity_and_margin_are_logged_by_name(visurf):
    groups = [
        group([0.0, 2.0], 6.0),
        group([7.0, 1.0], 6.0),
        group([4.0, 5.0], 7.0, thinking=1.0),
        group([6.0, 6.0], 6.0),
    ]
    metrics = visurf.assign_advantages(groups)
    assert set(metrics) == {
        "train/truncated_share",
        "reward/rollout/total",
        "reward/rollout/thinking_format",
        "reward/rollout/accuracy",
        "reward/label/total",
        "reward/label/thinking_format",
        "reward/label/accuracy",
        "reward/margin",
        "train/label_active",
        "train/instructive_share",
        "advantage/rollout",
        "advantage/label",
    }
    assert metrics["reward/rollout/total"] == pytest.approx(31 / 8)
    assert metrics["reward/label/total"] == pytest.approx(25 / 4), "as scored, before any control"
    assert metrics["train/label_active"] == 0.5
    assert metrics["train/instructive_share"] == sum(any(r.advantage for r in one.responses) for one in groups) / 4
    assert metrics["reward/margin"] == pytest.approx((-4 + 1 - 1 + 0) / 4), "after elimination, before smoothing"


@pytest.mark.parametrize("seed", range(8))
def test_logged_advantages_are_of_groups_with_an_active_label_alone(visurf, seed):
    active = group([0.0] * 8, 6.0)
    metrics = visurf.assign_advantages([active, group([*some_rewards(seed), 6.4], 6.0)])
    assert metrics["advantage/label"] == pytest.approx(8 / 3, rel=1e-5)
    assert metrics["advantage/rollout"] == pytest.approx(-1 / 3, rel=1e-5)


def test_without_an_active_label_there_are_no_advantages_to_log(visurf):
    metrics = visurf.assign_advantages([group([6.0, 7.0], 6.0)])
    assert metrics["train/label_active"] == 0.0
    assert not [name for name in metrics if name.startswith("advantage/")]


def test_groups_of_equal_rewards_are_not_instructive(visurf):
    found = visurf.assign_advantages([group([0.0] * 4, 0.0), group([7.0] * 4, 6.0), group([0.0] * 4, 6.0)])
    assert found["train/instructive_share"] == pytest.approx(1 / 3)
