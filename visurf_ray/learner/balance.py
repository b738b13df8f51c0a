"""Distribution of groups over ranks, and on a rank over rows of a bounded number of tokens.

The unit is a part: one or more responses of a group, with their prompt. A group that is larger than a row is several
parts, of which each computes the prompt again; they may go to different ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numberpartitioning import karmarkar_karp

from visurf_ray.config.choices import Packing
from visurf_ray.errors import ConfigError
from visurf_ray.groups import Group, Response
from visurf_ray.learner.cost import TOKENS, Cost


@dataclass(frozen=True, eq=False)
class GroupPart:
    """Responses of a group that share a row with their prompt.

    Attributes:
        group: the example with these responses alone.
        weights: for each response, the weight of every token of it in the loss.
    """

    group: Group
    weights: tuple[float, ...]


Shard = Sequence[GroupPart]  # a rank's parts of a minibatch


def cut(
    groups: Sequence[Group], weights: Sequence[Sequence[float]], budget: int, cost: Cost = TOKENS
) -> list[GroupPart]:
    """Cut groups between responses into parts, each with at most `budget` tokens; the order stays.

    Raises:
        ConfigError: a response and its prompt have more tokens than `budget`.
    """
    parts: list[GroupPart] = []
    for group, of_group in zip(groups, weights, strict=True):
        chosen: list[tuple[Response, float]] = []
        for pair in zip(group.responses, of_group, strict=True):
            if cost.tokens(_part(group, [pair]).group) > budget:
                prompt, response = len(group.example.prompt.expanded_ids), pair[0]
                raise ConfigError(
                    f"example {group.example.id!r}: its prompt of {prompt} tokens and a {response.source} of "
                    f"{response.length} do not fit learner.max_tokens_per_micro_batch={budget}: raise it"
                )
            if chosen and cost.tokens(_part(group, [*chosen, pair]).group) > budget:
                parts.append(_part(group, chosen))
                chosen = []
            chosen.append(pair)
        if chosen:
            parts.append(_part(group, chosen))
    return parts


def _part(group: Group, chosen: Sequence[tuple[Response, float]]) -> GroupPart:
    responses, weights = zip(*chosen, strict=True)
    return GroupPart(Group(group.example, list(responses)), weights)


def spread(parts: Sequence[GroupPart], count: int, cost: Callable[[Group], float]) -> list[GroupPart]:
    """Return at least `count` parts: the costliest are cut in two between responses; the order stays.

    If no part has two responses left, copies of weight 0 are appended, so that every rank has something to compute.
    """
    found = list(parts)
    while len(found) < count:
        divisible = [index for index, part in enumerate(found) if len(part.weights) > 1]
        if not divisible:
            cheapest = min(parts, key=lambda part: cost(part.group))
            return found + [_idle(cheapest)] * (count - len(found))
        index = max(divisible, key=lambda index: cost(found[index].group))
        part = found[index]
        pairs = list(zip(part.group.responses, part.weights, strict=True))
        middle = len(pairs) // 2
        found[index : index + 1] = [_part(part.group, half) for half in (pairs[:middle], pairs[middle:])]
    return found


def _idle(part: GroupPart) -> GroupPart:
    shortest = min(part.group.responses, key=lambda response: response.length)
    return _part(part.group, [(shortest, 0.0)])


def balance(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Return the indices of the items of each part, with nearly equal total cost (Karmarkar and Karp's differencing).

    Raises:
        ValueError: there are fewer items than parts; no part may be empty.
    """
    if len(costs) < parts:
        raise ValueError(f"{len(costs)} items cannot fill {parts} parts")
    return [sorted(indices) for indices in karmarkar_karp(list(costs), num_parts=parts, return_indices=True).partition]


def fill(shard: Shard, budget: int, cost: Cost) -> list[list[GroupPart]]:
    """Return the parts of each forward pass: few passes, each of at most `budget` tokens, with nearly equal cost.

    With `Packing.rows` each part has a pass of its own.
    """
    if cost.packing is Packing.rows:
        return [[part] for part in shard]
    tokens = [cost.tokens(part.group) for part in shard]
    costs = [cost.of(part.group) for part in shard]
    for rows in range(-(-sum(tokens) // budget), len(shard)):
        chosen = balance(costs, rows)
        if all(sum(tokens[index] for index in indices) <= budget for indices in chosen):
            return [[shard[index] for index in indices] for indices in sorted(chosen)]
    return [[part] for part in shard]
