"""Packing: what one forward pass computes.

`pack_prefix`: a row is a sequence of whole groups without padding. A group is its prompt, then each response without
its last token, which is predicted but not read. The prompt and its images are computed once for all responses. Each
response sees the prompt and itself, never another response, and its positions continue those of the prompt (see
`cascade`).

`pack_rows`: a batch of one prompt's responses, each after a copy of the prompt, padded on the right. The model computes
masks and positions itself, so that it may attend in any way.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visurf_ray.aliases import Fetch, HFModel
from visurf_ray.groups import Group, Prompt, Response, Source
from visurf_ray.learner.cascade import CascadePlan, GroupLength

Features = Mapping[str, Tensor]  # what a processor makes of a prompt beside its token ids
GRIDS = "image_grid_thw"  # patches of each image in time, height and width; of the families that have them
_MOVED = (Tensor, CascadePlan)
_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")  # features with a value for each token of the prompt


@dataclass(frozen=True)
class PackedGroups:
    """B rows of L input tokens, and the T response tokens that they predict, by group, response and position.

    Attributes:
        position_ids: None if the model computes them itself.
        plan: how the language model attends; None: as it does by itself.
        attention_mask: 0 for padding.
        features: arguments of the model that hold the images. `GRIDS` stays on the CPU, where the vision tower's
            sequences are computed from it.
        anchor: the index in all rows of the last hidden state of a stand-in (see `Prompt.stand_in`); None without one.
        column_T: for each response token, the index in all rows of the hidden state that predicts it.
        target_T: the ids of the response tokens.
        weight_T: weight of each response token in the loss.
        sampler_logprob_T: the sampler's log-probs in nats; NaN for labels, and where they were not requested.
        response_T: the number of each token's response, from 0.
    """

    input_ids: Int[Tensor, "B L"]
    column_T: Int[Tensor, " T"]
    target_T: Int[Tensor, " T"]
    advantage_T: Float[Tensor, " T"]
    weight_T: Float[Tensor, " T"]
    is_label_T: Bool[Tensor, " T"]
    sampler_logprob_T: Float[Tensor, " T"]
    response_T: Int[Tensor, " T"]
    features: dict[str, Tensor] = field(default_factory=dict)
    position_ids: Int[Tensor, "axes 1 L"] | Int[Tensor, "1 L"] | None = None
    plan: CascadePlan | None = None
    attention_mask: Int[Tensor, "B L"] | None = None
    anchor: int | None = None

    def to(self, device: torch.device) -> "PackedGroups":
        held = ((entry.name, getattr(self, entry.name)) for entry in fields(self))
        moved: dict[str, Any] = {name: value.to(device) for name, value in held if isinstance(value, _MOVED)}
        features = {name: value if name == GRIDS else value.to(device) for name, value in self.features.items()}
        return replace(self, **moved, features=features)


class _Tokens:
    """Collects the values of response tokens: those of a part are added in the order of its responses."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.responses = 0

    def add(self, response: Response, target: Tensor, sampler: Any, weight: float, columns: Iterable[int]) -> None:
        size = (len(target),)
        values = {
            "column_T": torch.tensor(list(columns)),
            "target_T": target,
            "advantage_T": torch.full(size, response.advantage),
            "weight_T": torch.full(size, weight),
            "is_label_T": torch.full(size, response.source is Source.LABEL),
            "sampler_logprob_T": torch.full(size, torch.nan) if sampler is None else torch.tensor(sampler),
            "response_T": torch.full(size, self.responses),
        }
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)
        self.responses += 1

    def joined(self) -> dict[str, Any]:
        return {name: torch.cat(values) for name, values in self.values.items()}


def pack_prefix(
    groups: Sequence[Group],
    weights: Sequence[Sequence[float]],
    model: HFModel,
    *,
    fetch: Fetch,
    dtype: torch.dtype,
    all_parameters: bool = False,
) -> PackedGroups:
    """Pack groups into one row.

    Args:
        groups: each with at least one response.
        weights: for each response of each group, the weight of every token of it (see `method.token_weights`).
        model: computes the positions of a prompt.
        fetch: resolves references to features and to `Tokens`; in a cluster, `ray.get`.
        dtype: of the images.
        all_parameters: whether the forward pass must use the vision tower too, if no group has an image.

    Raises:
        ValueError: a group has no responses, or a response has no tokens.
    """
    stored = cache(fetch)  # the rollouts of a group share one store
    input_ids: list[Tensor] = []
    positions: list[Tensor] = []
    lengths: list[GroupLength] = []
    features: list[Features] = []
    tokens = _Tokens()
    begin = 0

    def add_prompt(prompt: Prompt) -> Tensor:
        found = fetch(prompt.features)
        ids = torch.tensor(prompt.expanded_ids)
        features.append(found)
        input_ids.append(ids)
        positions.append(prompt_positions(model, ids, found))
        return positions[-1]

    for group, group_weights in zip(groups, weights, strict=True):
        _check(group)
        of_prompt = add_prompt(group.example.prompt)
        begin += of_prompt.shape[1]
        predicts_first = begin - 1  # the prompt's last token predicts the first token of every response
        pairs = [(response, response.tokens.resolve(stored)) for response in group.responses]
        columns: list[Sequence[int]] = [()] * len(pairs)
        # Responses enter the row by length: equal ones are then neighbours, which attention computes in one call.
        for index in sorted(range(len(pairs)), key=lambda index: pairs[index][0].length):
            ids = torch.tensor(pairs[index][1].ids[:-1], dtype=torch.long)  # the last token is no input
            input_ids.append(ids)
            positions.append(of_prompt[:, -1:] + 1 + torch.arange(len(ids)))
            columns[index] = (predicts_first, *range(begin, begin + len(ids)))
            begin += len(ids)
        for (response, found), weight, where in zip(pairs, group_weights, columns, strict=True):
            target = torch.tensor(found.ids, dtype=torch.long)
            tokens.add(response, target, found.sampler_logprobs, weight, where)
        counts = sorted(response.length - 1 for response in group.responses)
        lengths.append(GroupLength(of_prompt.shape[1], tuple(counts)))
    stand_ins = [group.example.prompt.stand_in for group in groups]
    anchor = None
    if all_parameters and stand_ins[0] and all(stand_ins):
        lengths.append(GroupLength(add_prompt(stand_ins[0]).shape[1], ()))
        anchor = begin + lengths[-1].prompt - 1
    row = torch.cat(input_ids)[None]
    position_ids = torch.cat(positions, dim=1)[:, None]
    one_axis = len(position_ids) == 1
    return PackedGroups(
        input_ids=row,
        position_ids=position_ids[0] if one_axis else position_ids,
        # Without a mask transformers would take positions that begin again for another sequence, and mask it.
        attention_mask=torch.ones_like(row) if one_axis else None,
        plan=CascadePlan.of(lengths),
        features=_join(features, dtype),
        anchor=anchor,
        **tokens.joined(),
    )


def pack_rows(
    group: Group,
    weights: Sequence[float],
    *,
    fetch: Fetch,
    dtype: torch.dtype,
    all_parameters: bool = False,
) -> PackedGroups:
    """Pack the responses of a group into a batch of rows; for the arguments see `pack_prefix`. Raises like it."""
    _check(group)
    stored = cache(fetch)
    prompt = group.example.prompt
    features = fetch(prompt.features)
    found = [response.tokens.resolve(stored) for response in group.responses]
    rows = [[*prompt.expanded_ids, *held.ids[:-1].tolist()] for held in found]
    types = [_types(features)] * len(rows)
    images = [features] * len(rows)
    end = None
    if all_parameters and prompt.stand_in:  # after the shortest response, which does not see it
        end = min(range(len(rows)), key=lambda number: len(rows[number]))
        blank = fetch(prompt.stand_in.features)
        images.append(blank)
        before = {name: _filled(value, 0, len(rows[end])) for name, value in types[end].items()}
        types[end] = {name: [*before[name], *value] for name, value in _types(blank).items()}
        rows[end] = [*rows[end], *prompt.stand_in.expanded_ids]
    length = max(map(len, rows))
    tokens = _Tokens()
    for number, (response, held, weight) in enumerate(zip(group.responses, found, weights, strict=True)):
        first = number * length + len(prompt.expanded_ids) - 1
        target = torch.tensor(held.ids, dtype=torch.long)
        tokens.add(response, target, held.sampler_logprobs, weight, range(first, first + len(target)))
    padding = prompt.expanded_ids[-1]  # any token that is no placeholder
    return PackedGroups(
        input_ids=_padded(rows, padding, length),
        attention_mask=_padded([[1] * len(row) for row in rows], 0, length),
        features=_join(images, dtype) | {name: _padded([t[name] for t in types], 0, length) for name in types[0]},
        anchor=None if end is None else end * length + len(rows[end]) - 1,
        **tokens.joined(),
    )


def _check(group: Group) -> None:
    if not group.responses or any(not response.length for response in group.responses):
        raise ValueError(f"example {group.example.id!r}: a group needs responses, and a response needs tokens")


def prompt_positions(model: HFModel, ids: Int[Tensor, " P"], features: Features) -> Int[Tensor, "axes P"]:
    """Return the positions of a prompt: three axes for a model with M-RoPE (time, height, width), else one."""
    rope_index: Callable[..., tuple[Tensor, Tensor]] | None = getattr(model.model, "get_rope_index", None)
    if rope_index is None:
        return torch.arange(len(ids))[None]
    found, _ = rope_index(
        ids[None],
        mm_token_type_ids=features["mm_token_type_ids"],
        image_grid_thw=features.get(GRIDS),
        attention_mask=torch.ones_like(ids)[None],
    )
    return found[:, 0]


def _types(features: Features) -> dict[str, list[int]]:
    """Return the features that have a value for each token of the prompt."""
    return {name: features[name][0].tolist() for name in _TOKEN_TYPES if name in features}


def _padded(rows: Sequence[Sequence[int]], value: int, length: int) -> Int[Tensor, "B L"]:
    return torch.tensor([_filled(row, value, length) for row in rows])


def _filled(row: Sequence[int], value: int, length: int) -> list[int]:
    return [*row, *[value] * (length - len(row))]


def _join(features: Sequence[Features], dtype: torch.dtype) -> dict[str, Tensor]:
    """Concatenate the images of several prompts, as a processor does with a batch of them.

    Images of some families are tensors of parts, whose number differs: they are padded with zeros, which the models
    leave out.
    """
    found: dict[str, list[Tensor]] = {}
    for of_prompt in features:
        for name, value in of_prompt.items():
            if name not in _TOKEN_TYPES:
                found.setdefault(name, []).append(value.to(dtype) if value.is_floating_point() else value)
    return {name: _concatenate(values) for name, values in found.items()}


def _concatenate(values: Sequence[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    if all(list(value.shape[1:]) == shape for value in values):
        return torch.cat(list(values))
    padded = [value.new_zeros(len(value), *shape) for value in values]
    for target, value in zip(padded, values, strict=True):
        target[tuple(slice(size) for size in value.shape)] = value
    return torch.cat(padded)
