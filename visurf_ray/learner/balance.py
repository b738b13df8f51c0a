"""Distribution of groups over ranks, and on a rank over rows of a bounded number of tokens."""

from collections.abc import Sequence

from numberpartitioning import karmarkar_karp

from visurf_ray.groups import Group


def cost(group: Group) -> int:
    """Return the number of tokens of a forward pass: the prompt once, each response once."""
    return len(group.example.prompt.expanded_ids) + sum(response.length for response in group.responses)


def balance(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Return the indices of the items of each part, with nearly equal total cost (Karmarkar and Karp's differencing).

    Raises:
        ValueError: there are fewer items than parts; no part may be empty.
    """
    if len(costs) < parts:
        raise ValueError(f"{len(costs)} groups cannot keep {parts} learner ranks busy: raise train.batch_size")
    return [sorted(indices) for indices in karmarkar_karp(list(costs), num_parts=parts, return_indices=True).partition]


def fill(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Return the indices of the items of each row: few rows, each within `budget`.

    An item that costs more than `budget` gets a row of its own, which exceeds it.
    """
    for rows in range(-(-sum(costs) // budget), len(costs)):
        chosen = balance(costs, rows)
        if all(len(indices) == 1 or sum(costs[index] for index in indices) <= budget for indices in chosen):
            return sorted(chosen)
    return [[index] for index in range(len(costs))]
