"""What the learner's computation of a group costs: tokens that a row holds, and floating-point operations."""

from dataclasses import dataclass

from visurf_ray.groups import Group


def row_tokens(group: Group) -> int:
    """Return the tokens that a group has in a row: its prompt, and each response without its last token."""
    return len(group.example.prompt.expanded_ids) + sum(response.length - 1 for response in group.responses)


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of a forward pass, up to a factor that all groups share.

    A backward pass and recomputation multiply all of it alike. `TOKENS` counts the tokens of a row instead.

    Attributes:
        token: of the language model's linear layers, for each token of a row.
        pair: of its attention, for each pair of a token and one that it attends to.
        predicted: of the output head, for each response token.
        patch: of the vision tower's linear layers, for each patch of an image.
        patch_pair: of its attention over whole images, for each pair of patches of one image.
        patches: patches for each visual token.
    """

    token: float = 1.0
    pair: float = 0.0
    predicted: float = 0.0
    patch: float = 0.0
    patch_pair: float = 0.0
    patches: int = 4

    def of(self, group: Group) -> float:
        """Return the cost of a group whose prompt and image are computed once."""
        prompt = group.example.prompt
        length = len(prompt.expanded_ids)
        visual = length - len(prompt.token_ids) + 1 if length > len(prompt.token_ids) else 0
        patches = self.patches * visual
        responses = [response.length - 1 for response in group.responses]
        pairs = length**2 / 2 + sum(own * length + own**2 / 2 for own in responses)
        return (
            self.token * (length + sum(responses))
            + self.pair * pairs
            + self.predicted * sum(response.length for response in group.responses)
            + self.patch * patches
            + self.patch_pair * patches**2
        )


TOKENS = Cost()
