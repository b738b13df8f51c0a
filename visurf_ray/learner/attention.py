"""Attention over packed groups: each response sees its prompt and itself, never another response.

Two back ends compute the same. `split` (the default) takes the prompts out of the row as one causal batch, and the
responses as another that attends to prompt and self. It needs no L×L mask: its cost is that of the prompts and of the
responses, each padded to the longest of the row. `dense` is the reference: one additive L×L mask, for any attention
function that takes a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SPLIT = "prefix_split"  # the name under which transformers knows `split_attention`


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
class SplitPlan:
    """How split attention takes N prompts and M responses out of a row of L tokens, and puts the outputs back.

    Attributes:
        prompts: index into the row of each prompt token, padded to the longest prompt, P tokens.
        responses: index into the row of each response token, padded to the longest response, R tokens.
        prompt_of: the prompt of each response.
        mask: additive, for responses over the keys of their padded prompt and themselves.
        order: index of each row token among the N·P outputs of prompts followed by the M·R outputs of responses.
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
    spans: list[tuple[int, int, int]] = []  # group, begin and count of each response that has tokens in the row
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
    """Return the additive mask of a row: 0 where a query (third axis) sees a key (fourth), else the dtype's minimum."""
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
    **kwargs: object,
) -> tuple[Float[Tensor, "1 L heads D"], None]:
    """Compute attention by a plan, as transformers' `AttentionInterface` calls it; without a plan it is plain SDPA."""
    if split is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)

    def pick(tensor: Tensor, index: Tensor) -> Tensor:  # (heads, L, D) by (rows, S) -> (rows, heads, S, D)
        return tensor[0][:, index].transpose(0, 1)

    prompt_key, prompt_value = pick(key, split.prompts), pick(value, split.prompts)
    # Padding on the right needs no mask here: a causal token never sees what follows it.
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
