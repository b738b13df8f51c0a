"""Groups made by hand, as the sampler and the reward actors would leave them."""

from collections.abc import Sequence
from typing import Any

from visurf_ray.groups import Example, Group, Prompt, Response, Source, TokenSpan


def example(ground_truth: str = "[]", identity: str = "a", part: str = "") -> Example:
    return Example(identity, "the 7", ground_truth, Prompt([1, 2, 3], [1, 2, 2, 3]), (84, 84), part=part)


def held(value: Any) -> Any:
    """Fetches a value that is held in memory, as `ray.get` fetches one from the object store."""
    return value


def ids(response: Response) -> list[int]:
    return response.tokens.resolve(held).ids.tolist()


def group(
    rollouts: Sequence[float], label: float | None = None, *, tokens: Sequence[int] = (), thinking: float = 0.0
) -> Group:
    """A group with these rewards, as scored: `thinking` is the part of the label's reward that its thinking earns.

    tokens: how many each response has, two when it is not told.
    """
    rewards = [*rollouts] if label is None else [*rollouts, label]
    responses = []
    for index, reward in enumerate(rewards):
        is_label = index == len(rollouts)
        thought = thinking if is_label else min(1.0, reward)
        responses.append(
            Response(
                Source.LABEL if is_label else Source.ROLLOUT,
                text="",
                tokens=TokenSpan.of(range(tokens[index] if tokens else 2)),
                reward_parts={"thinking_format": thought, "accuracy": reward - thought},
                reward=reward,
            )
        )
    return Group(example(), responses)
