"""What a method must know of the task and the reward of an example."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """A part of the training data: a mixture has several, every other run one.

    Attributes:
        styles: the label styles in which its task writes labels.
        thinking_parts: the names of the parts of its reward that reward thinking.
        solved: the least value of parts of its reward with which a rollout is right; empty if its reward does not say.
    """

    styles: Sequence[str]
    thinking_parts: Collection[str] = ()
    solved: Mapping[str, float] = field(default_factory=dict)
