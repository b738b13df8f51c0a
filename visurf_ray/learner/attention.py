"""Attention over packed groups: each response sees its prompt and itself, never another response.

Two back ends compute the same. `split` (the default) runs the prompts as one causal batch and the responses as one
batch against prompt and self: no L×L mask, and several groups share a row at no cost. `dense` is the reference: one
additive mask over the whole row, quadratic in it, with any attention that takes a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SPLIT = "prefix_split"  # the name under which transformers knows `split_attention`


@dataclass(frozen=True)
class GroupLength:
    """Row tokens of one group: its prompt's, then each response's (one less than it has: the last is never read)."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.prompt + sum(self.responses)


@dataclass(frozen=True)
class SplitPlan:
    """Where the tokens of a row of length L go for split attention: N prompts, M responses, both padded.

    prompts, responses: indices into the row. prompt_of: of each response. mask: additive. order: where each of the
    row's tokens lies among the N·P prompt outputs followed by the M·R response outputs.
    """

    prompts: Int[Tensor, "N P"]
    responses: Int[Tensor, "M R"]
    prompt_of: Int[Tensor, " M"]
    mask: Float[Tensor, "M 1 R P+R"]
    order: Int[Tensor, " L"]

    def to(self, device: torch.device) -> "SplitPlan":
        return SplitPlan(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def split_plan(lengths: Sequence[GroupLength], dtype: torch.dtype) -> SplitPlan:
    """Plan split attention for a row of groups."""
    starts = [0, *accumulate(length.total for length in lengths)]
    spans: list[tuple[int, int, int]] = []  # of the responses that have row tokens: group, begin, count
    for number, length in enumerate(lengths):
        ends = [starts[number] + length.prompt, *length.responses]
        begins = list(accumulate(ends))
        spans += [(number, begin, count) for begin, count in zip(begins[:-1], length.responses, strict=True) if count]
    longest_prompt = max(length.prompt for length in lengths)
    longest = max((count for *_, count in spans), default=0)
    prompts = torch.zeros(len(lengths), longest_prompt, dtype=torch.long)
    responses = torch.zeros(len(spans), longest, dtype=torch.long)
    visible = torch.zeros(len(spans), longest, longest_prompt + longest, dtype=torch.bool)
    order = torch.empty(starts[-1], dtype=torch.long)
    for number, length in enumerate(lengths):
        own = torch.arange(length.prompt)
        prompts[number, : length.prompt] = starts[number] + own
        order[starts[number] + own] = number * longest_prompt + own
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    for number, (group, begin, count) in enumerate(spans):
        own = torch.arange(count)
        responses[number, :count] = begin + own
        order[begin + own] = len(lengths) * longest_prompt + number * longest + own
        visible[number, :, : lengths[group].prompt] = True
        visible[number, :, longest_prompt:] = causal
    mask = torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
    return SplitPlan(prompts, responses, torch.tensor([group for group, *_ in spans], dtype=torch.long), mask, order)


def dense_mask(lengths: Sequence[GroupLength], dtype: torch.dtype) -> Float[Tensor, "1 1 L L"]:
    """Additive: 0 where a query (third axis) sees a key (fourth), the dtype's minimum elsewhere."""
    total = sum(length.total for length in lengths)
    visible = torch.zeros(total, total, dtype=torch.bool)
    begin = 0
    for length in lengths:
        prompt = slice(begin, begin + length.prompt)
        visible[prompt, prompt] = torch.ones(length.prompt, length.prompt, dtype=torch.bool).tril()
        begin += length.prompt
        for count in length.responses:
            own = slice(begin, begin + count)
            visible[own, prompt] = True
            visible[own, own] = torch.ones(count, count, dtype=torch.bool).tril()
            begin += count
    return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]


def split_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads L D"],
    key: Float[Tensor, "1 kv_heads L D"],
    value: Float[Tensor, "1 kv_heads L D"],
    attention_mask: Tensor | None,
    *,
    split: SplitPlan | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 L heads D"], None]:
    """An attention function of transformers' `AttentionInterface`; without a plan it is plain SDPA."""
    if split is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)

    def pick(tensor: Tensor, index: Tensor) -> Tensor:  # (heads, L, D) by (rows, S) -> (rows, heads, S, D)
        return tensor[0][:, index].transpose(0, 1)

    prompt_key, prompt_value = pick(key, split.prompts), pick(value, split.prompts)
    # Right padding needs no mask here: no token of the prompt sees what comes after it.
    outputs = [
        sdpa_attention_forward(
            module, pick(query, split.prompts), prompt_key, prompt_value, None, is_causal=True, **kwargs
        )[0]
    ]
    if len(split.responses):
        outputs.append(
            sdpa_attention_forward(
                module,
                pick(query, split.responses),
                torch.cat([prompt_key[split.prompt_of], pick(key, split.responses)], dim=2),
                torch.cat([prompt_value[split.prompt_of], pick(value, split.responses)], dim=2),
                split.mask,
                is_causal=False,
                **kwargs,
            )[0]
        )
    return torch.cat([output.flatten(0, 1) for output in outputs])[split.order][None], None


AttentionInterface.register(SPLIT, split_attention)
AttentionMaskInterface.register(SPLIT, sdpa_mask)
