"""The parts of a vision-language model, whatever its family calls them."""

from collections.abc import Iterator
from enum import StrEnum

from torch import nn

from visurf_ray.aliases import HFModel


class ModelPart(StrEnum):
    language = "language"
    vision = "vision"  # the vision tower
    projector = "projector"  # what makes visual tokens of the tower's outputs


# Paths below `model.`. In the Qwen-VL families the projector, or several of them (deepstack), lie in the vision tower.
_LANGUAGE = ("language_model", "text_model")
_PROJECTOR = ("visual.merger", "visual.deepstack_merger_list", "multi_modal_projector", "connector", "image_newline")


def part_of(path: str) -> ModelPart:
    """Return the part that a module or a parameter belongs to, by its path in the model."""
    below = path.removeprefix("model.")
    if below == path or _is_in(below, _LANGUAGE):  # the output head is not below `model.`
        return ModelPart.language
    return ModelPart.projector if _is_in(below, _PROJECTOR) else ModelPart.vision


def _is_in(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def parameters_of(model: HFModel, part: ModelPart) -> Iterator[nn.Parameter]:
    """Yield the parameters of a part, tied ones once."""
    return (parameter for path, parameter in model.named_parameters() if part_of(path) is part)
