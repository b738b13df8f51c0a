"""Which group goes where: to ranks, and on a rank into rows of a bounded number of tokens."""

from collections.abc import Sequence

from numberpartitioning import karmarkar_karp

from visurf_ray.groups import Group


def cost(group: Group) -> int:
    """Tokens that are computed: the prompt once, each response once."""
    return len(group.example.prompt.expanded_ids) + sum(response.length for response in group.responses)


def balance(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Indices for each of `parts`, of nearly equal total cost (Karmarkar and Karp's differencing); none is empty.

    Raises ValueError for fewer items than parts.
    """
    if len(costs) < parts:
        raise ValueError(f"{len(costs)} groups cannot keep {parts} learner ranks busy: raise train.batch_size")
    return [sorted(indices) for indices in karmarkar_karp(list(costs), num_parts=parts, return_indices=True).partition]


def fill(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Indices for as few rows as keep every row within `budget`; an item that is above it has a row of its own."""
    for rows in range(-(-sum(costs) // budget), len(costs)):
        chosen = balance(costs, rows)
        if all(len(indices) == 1 or sum(costs[index] for index in indices) <= budget for indices in chosen):
            return sorted(chosen)
    return [[index] for index in range(len(costs))]
