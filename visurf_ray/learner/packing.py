"""Packing of groups: one row for each group, [prompt][response 1]…[response G+1].

The prompt and its image are computed once for all responses. Each response sees the prompt and itself, never another
response, and its positions start anew after the prompt. Padding sees only itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visurf_ray.groups import Group, Source


@dataclass(frozen=True)
class PackedGroups:
    """B rows of length L; T response tokens in the order of groups, responses and tokens.

    attention_mask: additive, 0 where a query (third axis) sees a key (fourth) and the dtype's minimum elsewhere.
    position_ids: Qwen's M-RoPE positions (temporal, height, width). row_T, column_T: where the hidden state that
    predicts each response token lies. target_T: the token ids. weight_T: of each token in the loss.
    sampler_logprob_T: NaN where there is none.
    """

    input_ids: Int[Tensor, "B L"]
    position_ids: Int[Tensor, "3 B L"]
    attention_mask: Float[Tensor, "B 1 L L"]
    pixel_values: Float[Tensor, "patches channels"]
    image_grid_thw: Int[Tensor, "B 3"]
    row_T: Int[Tensor, " T"]
    column_T: Int[Tensor, " T"]
    target_T: Int[Tensor, " T"]
    advantage_T: Float[Tensor, " T"]
    weight_T: Float[Tensor, " T"]
    is_label_T: Bool[Tensor, " T"]
    sampler_logprob_T: Float[Tensor, " T"]

    def to(self, device: torch.device) -> "PackedGroups":
        return PackedGroups(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def pack(
    groups: Sequence[Group],
    weights: Sequence[Sequence[float]],
    features: Sequence[dict[str, Tensor]],
    rope_index,
    *,
    image_token_id: int,
    dtype: torch.dtype,
) -> PackedGroups:
    """Pack groups into rows.

    weights: of each token of each response (see `method.token_weights`). features: each group's `pixel_values` and
    `image_grid_thw`. rope_index: the model's `get_rope_index`.
    Raises ValueError for a group without responses or a response without tokens.
    """
    lengths = [
        len(group.example.prompt.expanded_ids) + sum(len(response.token_ids) - 1 for response in group.responses)
        for group in groups
    ]
    rows, longest = len(groups), max(lengths)
    input_ids = torch.zeros(rows, longest, dtype=torch.long)
    positions = torch.zeros(3, rows, longest, dtype=torch.long)
    visible = torch.eye(longest, dtype=torch.bool).repeat(rows, 1, 1)
    per_token: dict[str, list[Tensor]] = {name: [] for name in _PER_TOKEN}
    for row, (group, group_weights, feature) in enumerate(zip(groups, weights, features, strict=True)):
        if not group.responses or any(not response.token_ids for response in group.responses):
            raise ValueError(f"example {group.example.id!r}: a group needs responses, and a response needs tokens")
        prompt = torch.tensor(group.example.prompt.expanded_ids)
        size = len(prompt)
        prompt_positions = rope_index(
            prompt[None],
            mm_token_type_ids=(prompt == image_token_id).int()[None],
            image_grid_thw=feature["image_grid_thw"],
            attention_mask=torch.ones(1, size, dtype=torch.long),
        )[0][:, 0]
        input_ids[row, :size] = prompt
        positions[:, row, :size] = prompt_positions
        visible[row, :size, :size] = torch.ones(size, size, dtype=torch.bool).tril()
        next_position = prompt_positions[:, -1:] + 1
        begin = size
        for response, weight in zip(group.responses, group_weights, strict=True):
            tokens = torch.tensor(response.token_ids)
            count = len(tokens) - 1  # the last token is predicted, never read
            end = begin + count
            input_ids[row, begin:end] = tokens[:-1]
            positions[:, row, begin:end] = next_position + torch.arange(count)
            visible[row, begin:end, :size] = True
            visible[row, begin:end, begin:end] = torch.ones(count, count, dtype=torch.bool).tril()
            # The first token is predicted by the prompt's last hidden state, not by what lies before it in the row.
            columns = torch.cat([torch.tensor([size - 1]), torch.arange(begin, end)])
            sampler = response.sampler_logprobs
            values = {
                "row_T": torch.full_like(tokens, row),
                "column_T": columns,
                "target_T": tokens,
                "advantage_T": torch.full((len(tokens),), response.advantage),
                "weight_T": torch.full((len(tokens),), weight),
                "is_label_T": torch.full((len(tokens),), response.source is Source.LABEL),
                "sampler_logprob_T": torch.full((len(tokens),), torch.nan)
                if sampler is None
                else torch.tensor(sampler),
            }
            for name, value in values.items():
                per_token[name].append(value)
            begin = end
    return PackedGroups(
        input_ids=input_ids,
        position_ids=positions,
        attention_mask=torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)[:, None],
        pixel_values=torch.cat([feature["pixel_values"] for feature in features]).to(dtype),
        image_grid_thw=torch.cat([feature["image_grid_thw"] for feature in features]),
        **{name: torch.cat(values) for name, values in per_token.items()},
    )


_PER_TOKEN = ("row_T", "column_T", "target_T", "advantage_T", "weight_T", "is_label_T", "sampler_logprob_T")
