"""Cascade attention: a packed row at the cost of its tokens, without padding, masks or copies of keys.

Each prompt and each response attends to itself, and all responses of a group attend to their prompt in one call. The
two outputs of a response token are merged by their log-sum-exp. Inference engines call this cascade attention; DualKV
(arXiv 2605.15422) uses it in training.

Flash attention recomputes probabilities in its backward pass as exp(score - log-sum-exp). With the merged output and
log-sum-exp each call therefore returns its exact share of the gradients, and the shares add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from visurf_ray.learner import flash
from visurf_ray.learner.sequences import Sequences


@dataclass(frozen=True)
class GroupLength:
    """Tokens that one group has in a row.

    Attributes:
        responses: for each response one less than its tokens: the last is predicted, but is no input.
    """

    prompt: int
    responses: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.prompt + sum(self.responses)


@dataclass(frozen=True)
class Shared:
    """Where a prompt's keys are in the row, and the queries of its responses."""

    keys: slice
    queries: slice

    @property
    def ends(self) -> list[list[int]]:
        return [[0, span.stop - span.start] for span in (self.queries, self.keys)]


@dataclass(frozen=True)
class CascadePlan:
    """Which calls of flash attention compute the attention of a row of groups.

    Attributes:
        groups: the groups of the row, in its order.
        alone: the sequences that attend to themselves: prompts and responses. A prompt with a single response is one
            sequence with it.
        shared: the M prompts with several responses.
        ends: `Shared.ends` of each, on the device of the row.
    """

    groups: tuple[GroupLength, ...]
    alone: Sequences
    shared: tuple[Shared, ...]
    ends: Int[Tensor, "M 2 2"]

    @classmethod
    def of(cls, groups: Sequence[GroupLength]) -> "CascadePlan":
        alone: list[int] = []
        shared: list[Shared] = []
        for begin, group in zip(accumulate((group.total for group in groups), initial=0), groups, strict=False):
            responses = [count for count in group.responses if count]
            if len(responses) < 2:
                alone.append(group.total)
                continue
            alone += [group.prompt, *responses]
            middle = begin + group.prompt
            shared.append(Shared(slice(begin, middle), slice(middle, begin + group.total)))
        ends = torch.tensor([part.ends for part in shared], dtype=torch.int32).reshape(-1, 2, 2)
        return cls(tuple(groups), Sequences.of(alone), tuple(shared), ends)

    def to(self, device: torch.device) -> "CascadePlan":
        return replace(self, alone=self.alone.to(device), ends=self.ends.to(device))


def cascade(
    query: Float[Tensor, "L heads D"],
    key: Float[Tensor, "L kv_heads D"],
    value: Float[Tensor, "L kv_heads D"],
    plan: CascadePlan,
    scale: float,
) -> Float[Tensor, "L heads D"]:
    """Return the attention outputs of a row; see `flash.has_flash` for what it can compute."""
    return _Cascade.apply(query.contiguous(), key.contiguous(), value.contiguous(), plan, scale)


class _Cascade(torch.autograd.Function):
    """Saves queries, keys, values, outputs and their log-sum-exps: as much as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: CascadePlan, scale: float) -> Tensor:
        out, lse = flash.causal(query, key, value, plan.alone, scale)
        for part, ends in zip(plan.shared, plan.ends, strict=True):
            prompt_out, prompt_lse = flash.full(query[part.queries], key[part.keys], value[part.keys], ends, scale)
            own_out, own_lse = out[part.queries], lse[:, part.queries]
            share = torch.sigmoid(prompt_lse - own_lse).T[..., None]  # of the prompt in the softmax's denominator
            own_out.copy_(torch.lerp(own_out.to(share.dtype), prompt_out.to(share.dtype), share))
            own_lse.copy_(torch.logaddexp(own_lse, prompt_lse))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        gradients = flash.causal_backward(grad, query, key, value, out, lse, ctx.plan.alone, ctx.scale)
        for part, ends in zip(ctx.plan.shared, ctx.plan.ends, strict=True):
            keys, queries = part.keys, part.queries
            shares = flash.full_backward(
                grad[queries],
                query[queries],
                key[keys],
                value[keys],
                out[queries],
                lse[:, queries],
                ends,
                ctx.scale,
            )
            for gradient, span, share in zip(gradients, (queries, keys, keys), shares, strict=True):
                gradient[span] += share
        return *gradients, None, None
