"""What the learner's computation of a group costs: tokens of a forward pass, and floating-point operations."""

from dataclasses import dataclass

from visurf_ray.config.choices import Packing
from visurf_ray.groups import Group


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
        packing: `prefix` computes a prompt and its images once for all responses, `rows` once for each.
    """

    token: float = 1.0
    pair: float = 0.0
    predicted: float = 0.0
    patch: float = 0.0
    patch_pair: float = 0.0
    patches: int = 4
    packing: Packing = Packing.prefix

    def tokens(self, group: Group) -> int:
        """Return the tokens that a group has in a forward pass, padding included, but no stand-in (see `Prompt`).

        These are its prompt and each response without its last token, which is predicted, but is no input.
        """
        prompt, responses = len(group.example.prompt.expanded_ids), [r.length - 1 for r in group.responses]
        if self.packing is Packing.rows:
            return len(responses) * (prompt + max(responses))
        return prompt + sum(responses)

    def of(self, group: Group) -> float:
        """Return the cost of a group. Its images count as images of one size."""
        prompt = group.example.prompt
        length, images = len(prompt.expanded_ids), len(prompt.images)
        patches = self.patches * (length - len(prompt.token_ids) + images)  # each image has one placeholder before
        responses = [response.length - 1 for response in group.responses]
        times = len(responses) if self.packing is Packing.rows else 1
        pairs = times * length**2 / 2 + sum(own * length + own**2 / 2 for own in responses)
        return (
            self.token * (times * length + sum(responses))
            + self.pair * pairs
            + self.predicted * sum(response.length for response in group.responses)
            + times * (self.patch * patches + self.patch_pair * patches**2 / max(images, 1))
        )


TOKENS = Cost()
