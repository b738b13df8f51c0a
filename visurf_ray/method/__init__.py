"""The mathematics of ViSurf and of the methods it is compared with: labels, reward control, advantages, objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from visurf_ray.config.choices import (
    IMITATION,
    SUPERVISED,
    ComparedWith,
    LabelStyle,
    LabelTerm,
    LabelThinking,
    Overlong,
    Route,
)
from visurf_ray.config.schema import MethodConfig
from visurf_ray.errors import UserError
from visurf_ray.groups import Example, Group, Metrics, Response, Source, TokenSpan
from visurf_ray.method.advantages import group_advantages
from visurf_ray.method.control import (
    eliminate_thinking,
    filter_overlong,
    gate,
    label_is_active,
    punish_overlong,
    route,
    smooth,
)
from visurf_ray.method.filling import Filling
from visurf_ray.method.importance import importance_ratios, importance_weights, is_excess
from visurf_ray.method.loss import Importance, LossConfig, TokenValues
from visurf_ray.method.metrics import (
    activity_metrics,
    advantage_metrics,
    instructive_metrics,
    mean,
    reward_metrics,
    solve,
    solved_metrics,
    truncation_metrics,
)
from visurf_ray.method.objective import divergences, scaled, token_losses, token_weights
from visurf_ray.method.part import Part
from visurf_ray.method.schedule import loss_scales, mu
from visurf_ray.method.surrogate import is_clipped, ratios

__all__ = [
    "Importance",
    "LossConfig",
    "Method",
    "Part",
    "TokenValues",
    "divergences",
    "group_advantages",
    "importance_ratios",
    "importance_weights",
    "is_clipped",
    "is_excess",
    "ratios",
    "scaled",
    "sft_stage",
    "token_losses",
    "token_weights",
]


def sft_stage(config: MethodConfig) -> MethodConfig:
    """Return the method of the first `sft_steps` steps: cross-entropy on the labels, with what else `config` says."""
    return replace(
        config,
        rollouts=False,
        label=True,
        label_term=LabelTerm.ce,
        label_coef=1.0,
        label_decay=None,
        mu=replace(config.mu, peak=None),
        kl_coef=0.0,
        route=Route.both,
    )


class Method:
    """A post-training method: what a group consists of, and the advantage of each response."""

    def __init__(
        self,
        config: MethodConfig,
        *,
        render: Callable[[Example, str], str],
        encode: Callable[[str], list[int]],
        parts: Mapping[str, Part],
        longest: int,
        importance: Importance | None,
    ) -> None:
        """Take the method's configuration and what it needs of task, reward and tokenizer.

        Args:
            render: writes an example's ground truth as a response, in one of `styles`.
            encode: returns a response's token ids, with the end-of-turn token that ends a rollout.
            parts: the parts of the training data by name; `Example.part` says to which an example belongs.
            longest: the longest response that can be sampled, in tokens.
            importance: see `LossConfig`.
        """
        self.config = config
        self.render = render
        self.encode = encode
        self.parts = dict(parts)
        self.styles: dict[str, str] = {}  # of each part's labels, as configured or chosen
        if config.style != LabelStyle.auto:
            self.styles = {name: _style(part, config.style) for name, part in parts.items()}
        self.longest = longest
        self.importance = importance

    @property
    def chosen_styles(self) -> dict[str, str]:
        """The styles of labels that `align` has chosen, by part; empty if `method.style` names the style."""
        return dict(self.styles) if self.config.style == LabelStyle.auto else {}

    def restore(self, styles: Mapping[str, str]) -> None:
        """Continue with the styles that were chosen before a checkpoint."""
        if self.config.style == LabelStyle.auto:
            known = {name: style for name, style in styles.items() if name in self.parts}
            self.styles = {name: style for name, style in known.items() if style in self.parts[name].styles}

    @property
    def has_rollouts(self) -> bool:
        """Whether groups hold rollouts."""
        return self.config.rollouts

    @property
    def selects_groups(self) -> bool:
        """Whether it learns from a selection of the groups; see `instructive`."""
        return self.config.dynamic_sampling and not self._labels_have_ce

    @property
    def _labels_have_ce(self) -> bool:
        """Whether labels have a cross-entropy, which teaches whatever the rollouts earn."""
        return self.config.label and self.config.label_term in SUPERVISED

    def has_labels(self, step: int) -> bool:
        """Return whether groups have a label at a step; steps count from 0. They have none where its factor is 0."""
        return self.config.label and loss_scales(self.config, step)[0] > 0.0

    def loss(self, step: int) -> LossConfig:
        """Return the loss of a step; steps count from 0."""
        config = self.config
        label_scale, rollout_scale = loss_scales(config, step)
        return LossConfig(
            ratio=config.ratio,
            clip=config.clip,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            tau_positive=config.tau_positive,
            tau_negative=config.tau_negative,
            aggregation=config.aggregation,
            longest=self.longest,
            label_term=config.label_term,
            # A routed group has one source: its loss is the one or the other, and the mean is over all groups.
            labels_apart=config.label_term in SUPERVISED and config.route == Route.both,
            label_scale=label_scale,
            rollout_scale=rollout_scale,
            shaping=config.shaping,
            entropy_coef=config.entropy_coef,
            kl_coef=config.kl_coef,
            importance=self.importance,
        )

    def append_label(self, group: Group, step: int) -> None:
        """Append the ground truth in the aligned style to the group, if groups have labels at the step."""
        if self.has_labels(step):
            part = group.example.part
            # A part that a refill was the first to draw is aligned at the next step only.
            style = self.styles.get(part, self.parts[part].styles[0])
            group.responses.append(self._label(group.example, style))

    def _label(self, example: Example, style: str) -> Response:
        if self.config.label_thinking == LabelThinking.empty and example.thinking is None:
            example = replace(example, thinking="")
        text = self.render(example, style)
        return Response(Source.LABEL, text, TokenSpan.of(self.encode(text)))

    def aligns(self, step: int, examples: Sequence[Example]) -> bool:
        """Return whether styles of labels are chosen anew at a step (§4.2.4, align); steps count from 0.

        That is so every `style_every` steps, and where examples are of a part that has no style yet.
        """
        due = step % self.config.style_every == 0 or any(example.part not in self.styles for example in examples)
        return due and self.config.style == LabelStyle.auto and self.has_labels(step)

    def in_each_style(self, examples: Sequence[Example]) -> list[Group]:
        """Return, for each example, a group of its label in each style: the input of `LearnerGroup.mean_logprobs`."""
        return [
            Group(example, [self._label(example, style) for style in self.parts[example.part].styles])
            for example in examples
        ]

    def align(self, examples: Sequence[Example], logprobs: Sequence[Sequence[float]]) -> Metrics:
        """Choose the style of further labels of each part that has examples: the one most likely under the policy.

        Args:
            logprobs: the mean log-prob of a token, in nats, for each response of each group of `in_each_style`.

        Returns:
            Each style's mean over the examples, and the difference between the two highest; by part in a mixture.
        """
        metrics: Metrics = {}
        for part in dict.fromkeys(example.part for example in examples):
            styles, end = self.parts[part].styles, f"/{part}" if part else ""
            own = [values for example, values in zip(examples, logprobs, strict=True) if example.part == part]
            means = [mean(values) for values in zip(*own, strict=True)]
            order = sorted(range(len(means)), key=lambda index: -means[index])
            self.styles[part] = styles[order[0]]
            margin = means[order[0]] - means[order[1]] if len(order) > 1 else 0.0
            metrics |= {f"align/logprob/{style}{end}": value for style, value in zip(styles, means, strict=True)}
            metrics[f"align/margin{end}"] = margin
        return metrics

    def instructive(self, groups: Sequence[Group], at_least: int) -> list[Group]:
        """Return the groups to learn from: with dynamic sampling, those with an advantage other than 0 (DAPO).

        Call it after `assign_advantages`. Returns all groups without dynamic sampling, and if labels are learnt by
        cross-entropy, but none that `overlong=filter` has left without responses.

        Args:
            at_least: groups without an advantage are appended until there are so many.

        Raises:
            UserError: so many responses were cut at the length limit that fewer than `at_least` groups are left.
        """
        filled = [group for group in groups if group.responses]
        if len(filled) < min(at_least, len(groups)):
            raise UserError(
                f"method.overlong=filter left {len(filled)} of {len(groups)} groups, and learner.minibatches "
                f"needs {at_least}: raise rollout.max_tokens, or set method.overlong=punish"
            )
        if not self.selects_groups:
            return filled
        kept: list[Group] = []
        others: list[Group] = []
        for group in filled:
            (kept if any(response.advantage for response in group.responses) else others).append(group)
        return kept + others[: max(0, at_least - len(kept))]

    def solved(self, groups: Sequence[Group]) -> list[Example]:
        """Return the examples that every rollout has solved, of those whose reward says what that is."""
        rules = {name: part.solved for name, part in self.parts.items() if part.solved}
        scored = [group for group in groups if group.rollouts and group.example.part in rules]
        return [group.example for group in scored if all(solve(group, rules[group.example.part]))]

    def filling(self, size: int, *, prompts: int) -> Filling:
        """Begin a batch: return what says how many prompts to draw, and again with dynamic sampling.

        Args:
            size: groups of a full batch.
            prompts: how many to draw at first.
        """
        return Filling(size, first=prompts, max_refills=self.config.max_refills, dynamic=self.selects_groups)

    def count_instructive(self, groups: Sequence[Group], step: int) -> int:
        """Return how many of the scored groups `instructive` would choose after `assign_advantages`.

        It leaves the groups as they are.
        """
        if not self.selects_groups:
            return len(groups)
        copies = [Group(group.example, [_copy(response) for response in group.responses]) for group in groups]
        self.assign_advantages(copies, step)
        return len(self.instructive(copies, at_least=0))

    def assign_advantages(self, groups: Sequence[Group], step: int = 0) -> Metrics:
        """Control rewards and groups, then set every response's advantage; returns what to log.

        If labels are learnt by imitation, rollouts are compared among themselves.
        """
        config = self.config
        for group in groups:
            if config.overlong == Overlong.punish:
                buffer = config.overlong_buffer * self.longest
                punish_overlong(group, longest=self.longest, buffer=buffer, penalty=config.overlong_penalty)
        # Before control of rewards and groups.
        metrics = truncation_metrics(groups) | reward_metrics(groups) | solved_metrics(groups, self.parts)
        for group in groups:
            if config.overlong == Overlong.filter:
                filter_overlong(group)
            if config.eliminate:
                eliminate_thinking(group, self.parts[group.example.part].thinking_parts)
        metrics |= activity_metrics(groups)
        active = [group for group in groups if group.rollouts and label_is_active(group)]
        if config.route == Route.hpt:
            metrics["train/sft_share"] = mean([float(route(group, config.route_share)) for group in groups])
        if (mixed := mu(config.mu, step)) is not None:
            metrics["train/mu"] = mixed
        for group in groups:
            self._compare(group)
        if not self._labels_have_ce:
            metrics |= instructive_metrics(groups)
        return metrics | advantage_metrics(active)

    def _compare(self, group: Group) -> None:
        """Set the advantages of a group's responses, after the last controls of its label."""
        config = self.config
        if config.label_gate:
            gate(group)
        smoothed = config.smooth and smooth(group)
        compared = (group.rollouts if config.label_term in IMITATION else None) or group.responses
        if not compared:
            return
        advantages = group_advantages(
            torch.tensor([response.reward for response in compared], dtype=torch.float64),
            compared_with=len(group.rollouts) or None if config.advantage_from == ComparedWith.rollouts else None,
            divide_by_std=config.advantage_std,
            ddof=config.advantage_ddof,
            eps=config.advantage_eps,
        )
        for response, advantage in zip(compared, advantages.tolist(), strict=True):
            response.advantage = advantage
        if smoothed and group.label:
            group.label.advantage = 0.0  # exactly: its reward is the mean up to rounding


def _style(part: Part, style: str) -> str:
    """Return the configured style, or the only one of a part whose labels look the same in all."""
    return part.styles[0] if len(part.styles) == 1 else style


def _copy(response: Response) -> Response:
    """Copy what reward control and advantages change."""
    return replace(response, reward_parts=dict(response.reward_parts))
