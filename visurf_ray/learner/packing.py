"""Packing of groups: a row is a sequence of whole groups without padding.

A group is its prompt, then each response without its last token, which is predicted but not read. The prompt and its
image are computed once for all responses. Each response sees the prompt and itself, never another response, and its
positions continue those of the prompt (see `cascade`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visurf_ray.aliases import Fetch
from visurf_ray.groups import Group, Source
from visurf_ray.learner.cascade import CascadePlan, GroupLength

RopeIndex = Callable[..., tuple[Tensor, Tensor]]  # M-RoPE positions (3, batch, length), and an offset for generation


@dataclass(frozen=True)
class PackedGroups:
    """A row of L input tokens, and the T response tokens that it predicts, by group, response and position.

    Attributes:
        position_ids: Qwen's M-RoPE positions (temporal, height, width).
        plan: how the language model attends.
        image_grid_thw: on the CPU, where the vision tower's sequences are computed from it.
        column_T: for each response token, the index in the row of the hidden state that predicts it.
        target_T: the ids of the response tokens.
        weight_T: weight of each response token in the loss.
        sampler_logprob_T: the sampler's log-probs in nats; NaN for labels, and where they were not requested.
        response_T: the number of each token's response in the row, from 0.
    """

    input_ids: Int[Tensor, "1 L"]
    position_ids: Int[Tensor, "3 1 L"]
    plan: CascadePlan
    pixel_values: Float[Tensor, "patches channels"]
    image_grid_thw: Int[Tensor, "images 3"]
    column_T: Int[Tensor, " T"]
    target_T: Int[Tensor, " T"]
    advantage_T: Float[Tensor, " T"]
    weight_T: Float[Tensor, " T"]
    is_label_T: Bool[Tensor, " T"]
    sampler_logprob_T: Float[Tensor, " T"]
    response_T: Int[Tensor, " T"]

    def to(self, device: torch.device) -> "PackedGroups":
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return PackedGroups(**moved | {"image_grid_thw": self.image_grid_thw})


def pack(
    groups: Sequence[Group],
    weights: Sequence[Sequence[float]],
    rope_index: RopeIndex,
    *,
    fetch: Fetch,
    image_token_id: int,
    dtype: torch.dtype,
) -> PackedGroups:
    """Pack groups into one row.

    Args:
        groups: each with at least one response.
        weights: for each response of each group, the weight of every token of it (see `method.token_weights`).
        rope_index: the model's `get_rope_index`.
        fetch: resolves references to features and to `Tokens`; in a cluster, `ray.get`.
        image_token_id: the id of the visual tokens in a prompt.
        dtype: of the pixel values.

    Raises:
        ValueError: a group has no responses, or a response has no tokens.
    """
    features = [fetch(group.example.prompt.features) for group in groups]
    stored = cache(fetch)  # the rollouts of a group share one store
    input_ids: list[Tensor] = []
    positions: list[Tensor] = []
    lengths: list[GroupLength] = []
    per_token: dict[str, list[Tensor]] = {name: [] for name in _PER_TOKEN}
    begin = 0
    for group, group_weights, feature in zip(groups, weights, features, strict=True):
        if not group.responses or any(not response.length for response in group.responses):
            raise ValueError(f"example {group.example.id!r}: a group needs responses, and a response needs tokens")
        prompt = torch.tensor(group.example.prompt.expanded_ids)
        prompt_positions = rope_index(
            prompt[None],
            mm_token_type_ids=(prompt == image_token_id).int()[None],
            image_grid_thw=feature["image_grid_thw"],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )[0][:, 0]
        input_ids.append(prompt)
        positions.append(prompt_positions)
        begin += len(prompt)
        predicts_first = begin - 1  # the prompt's last token predicts the first token of every response
        pairs = list(zip(group.responses, group_weights, strict=True))
        values: list[dict[str, Tensor]] = [{} for _ in pairs]
        # Responses enter the row by length: equal ones are then neighbours, which attention computes in one call.
        for index in sorted(range(len(pairs)), key=lambda index: pairs[index][0].length):
            response, weight = pairs[index]
            tokens = response.tokens.resolve(stored)
            target = torch.tensor(tokens.ids, dtype=torch.long)
            count = len(target) - 1  # the last token is predicted, but is no input
            input_ids.append(target[:-1])
            positions.append(prompt_positions[:, -1:] + 1 + torch.arange(count))
            size, sampler = (len(target),), tokens.sampler_logprobs
            values[index] = {
                "column_T": torch.tensor([predicts_first, *range(begin, begin + count)]),
                "target_T": target,
                "advantage_T": torch.full(size, response.advantage),
                "weight_T": torch.full(size, weight),
                "is_label_T": torch.full(size, response.source is Source.LABEL),
                "sampler_logprob_T": torch.full(size, torch.nan) if sampler is None else torch.tensor(sampler),
                "response_T": torch.full(size, len(per_token["target_T"]) + index),
            }
            begin += count
        for name, found in per_token.items():
            found += [value[name] for value in values]
        lengths.append(GroupLength(len(prompt), tuple(sorted(response.length - 1 for response in group.responses))))
    return PackedGroups(
        input_ids=torch.cat(input_ids)[None],
        position_ids=torch.cat(positions, dim=1)[:, None],
        plan=CascadePlan.of(lengths),
        pixel_values=torch.cat([feature["pixel_values"] for feature in features]).to(dtype),
        image_grid_thw=torch.cat([feature["image_grid_thw"] for feature in features]),
        **{name: torch.cat(values) for name, values in per_token.items()},
    )


_PER_TOKEN = ("column_T", "target_T", "advantage_T", "weight_T", "is_label_T", "sampler_logprob_T", "response_T")
