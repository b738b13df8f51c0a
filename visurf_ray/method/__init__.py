"""The mathematics of ViSurf and of the methods it is compared with: labels, reward control, advantages, objective."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from visurf_ray.config.schema import ComparedWith, LabelStyle, LabelTerm, LabelThinking, MethodConfig
from visurf_ray.groups import Example, Group, Metrics, Response, Source, TokenSpan
from visurf_ray.method.advantages import group_advantages
from visurf_ray.method.control import eliminate_thinking, gate, label_is_active, smooth
from visurf_ray.method.objective import LossConfig, divergences, is_clipped, token_losses, token_weights

__all__ = ["LossConfig", "Method", "divergences", "group_advantages", "is_clipped", "token_losses", "token_weights"]


class Method:
    """A post-training method: what a group consists of, and the advantage of each response."""

    def __init__(
        self,
        config: MethodConfig,
        *,
        render: Callable[[Example, str], str],
        encode: Callable[[str], list[int]],
        styles: Sequence[str],
        longest: int,
        importance_cap: float | None,
    ) -> None:
        """Take the method's configuration and what it needs of task and tokenizer.

        Args:
            render: writes an example's ground truth as a response, in one of `styles`.
            encode: returns a response's token ids, with the end-of-turn token that ends a rollout.
            styles: the label styles that `render` knows.
            longest: the longest response that can be sampled, in tokens.
            importance_cap: see `LossConfig`.
        """
        self.config = config
        self.render = render
        self.encode = encode
        self.styles = list(styles)
        self.style: str | None = None if config.style == LabelStyle.auto else config.style
        self.longest = longest
        self.importance_cap = importance_cap

    @property
    def samples(self) -> bool:
        """Whether groups hold rollouts."""
        return self.config.rollouts

    @property
    def chooses(self) -> bool:
        """Whether it learns from a selection of the groups; see `instructive`."""
        return self.config.dynamic_sampling and self.config.label_term != LabelTerm.ce

    def loss(self, step: int) -> LossConfig:
        """Return the loss of a step; steps count from 0."""
        config = self.config
        decay = 1.0 if config.label_decay is None else max(0.0, 1.0 - step / config.label_decay)
        return LossConfig(
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            aggregation=config.aggregation,
            longest=self.longest,
            label_term=config.label_term,
            label_scale=config.label_coef * decay,
            shaping=config.shaping,
            entropy_coef=config.entropy_coef,
            kl_coef=config.kl_coef,
            importance_cap=self.importance_cap,
        )

    def append_label(self, group: Group) -> None:
        """Append the ground truth in the aligned style to the group, if the method uses labels."""
        if self.config.label:
            assert self.style is not None, "call align before append_label"
            group.responses.append(self._label(group.example, self.style))

    def _label(self, example: Example, style: str) -> Response:
        if self.config.label_thinking == LabelThinking.empty and example.thinking is None:
            example = replace(example, thinking="")
        text = self.render(example, style)
        return Response(Source.LABEL, text, TokenSpan.of(self.encode(text)))

    def aligns(self, step: int) -> bool:
        """Return whether the style of labels is chosen anew at a step (§4.2.4, align); steps count from 0."""
        due = self.style is None or step % self.config.style_every == 0
        return self.config.label and self.config.style == LabelStyle.auto and due

    def in_each_style(self, examples: Sequence[Example]) -> list[Group]:
        """Return, for each example, a group of its label in each style: the input of `LearnerGroup.mean_logprobs`."""
        return [Group(example, [self._label(example, style) for style in self.styles]) for example in examples]

    def align(self, logprobs: Sequence[Sequence[float]]) -> Metrics:
        """Choose the style of further labels: the one most likely under the policy.

        Args:
            logprobs: the mean log-prob of a token, in nats, for each response of each group of `in_each_style`.

        Returns:
            Each style's mean over the examples, and the difference between the two highest.
        """
        means = [_mean(values) for values in zip(*logprobs, strict=True)]
        order = sorted(range(len(means)), key=lambda index: -means[index])
        self.style = self.styles[order[0]]
        margin = means[order[0]] - means[order[1]] if len(order) > 1 else 0.0
        by_style = {f"align/logprob/{style}": mean for style, mean in zip(self.styles, means, strict=True)}
        return by_style | {"align/margin": margin}

    def instructive(self, groups: Sequence[Group], at_least: int) -> list[Group]:
        """Return the groups to learn from: with dynamic sampling, those with an advantage other than 0 (DAPO).

        Call it after `assign_advantages`. Returns all groups without dynamic sampling, and if labels are learnt by
        cross-entropy.

        Args:
            at_least: groups without an advantage are appended until there are so many.
        """
        if not self.chooses:
            return list(groups)
        kept: list[Group] = []
        others: list[Group] = []
        for group in groups:
            (kept if any(response.advantage for response in group.responses) else others).append(group)
        return kept + others[: max(0, at_least - len(kept))]

    def assign_advantages(self, groups: Sequence[Group], step: int = 0) -> Metrics:
        """Control the labels' rewards, then set every response's advantage; returns what to log.

        If labels are learnt by cross-entropy, or their loss has decayed to 0, rollouts are compared among themselves.
        """
        loss = self.loss(step)
        apart = loss.label_term == LabelTerm.ce or not loss.label_scale
        metrics = _reward_metrics(groups)
        for group in groups:
            if self.config.eliminate:
                eliminate_thinking(group)
        metrics |= _activity_metrics(groups)
        active = [group for group in groups if group.rollouts and label_is_active(group)]
        for group in groups:
            if self.config.label_gate:
                gate(group)
            smoothed = self.config.smooth and smooth(group)
            compared = (group.rollouts if apart else None) or group.responses
            rewards = torch.tensor([response.reward for response in compared], dtype=torch.float64)
            advantages = group_advantages(
                rewards,
                compared_with=len(group.rollouts) or None
                if self.config.advantage_from == ComparedWith.rollouts
                else None,
                divide_by_std=self.config.advantage_std,
                ddof=self.config.advantage_ddof,
                eps=self.config.advantage_eps,
            )
            for response, advantage in zip(compared, advantages.tolist(), strict=True):
                response.advantage = advantage
            if smoothed and group.label:
                group.label.advantage = 0.0  # exactly: its reward is the mean up to rounding
        return metrics | _advantage_metrics(active)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _reward_metrics(groups: Sequence[Group]) -> Metrics:
    """Return mean rewards by source and part, before reward control."""
    metrics: Metrics = {}
    for source in Source:
        responses = [response for group in groups for response in group.responses if response.source is source]
        if responses:
            metrics[f"reward/{source}/total"] = _mean([response.reward for response in responses])
            for part in dict.fromkeys(part for response in responses for part in response.reward_parts):
                earned = [response.reward_parts.get(part, 0.0) for response in responses]
                metrics[f"reward/{source}/{part}"] = _mean(earned)
    return metrics


def _activity_metrics(groups: Sequence[Group]) -> Metrics:
    """Return, over groups of rollouts and a label, the share of active labels and the best rollout's mean lead."""
    found = [
        (float(label_is_active(group)), max(rollout.reward for rollout in group.rollouts) - group.label.reward)
        for group in groups
        if group.label is not None and group.rollouts
    ]
    if not found:
        return {}
    active, leads = zip(*found, strict=True)
    return {"train/label_active": _mean(active), "reward/margin": _mean(leads)}


def _advantage_metrics(active: Sequence[Group]) -> Metrics:
    """Return the mean advantage by source.

    Args:
        active: the groups whose label is active.
    """
    if not active:
        return {}
    return {
        f"advantage/{source}": _mean([r.advantage for group in active for r in group.responses if r.source is source])
        for source in Source
    }
