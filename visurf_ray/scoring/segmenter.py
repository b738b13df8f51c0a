"""SAM2 (arXiv 2408.00714): from an answer's boxes and points to a mask, as in VisionReasoner's evaluation.

SAM2 is prompted with the box of each object and, if the answer has one, its point. Of the masks that it proposes for an
object, the one with the best score is taken. The answer's mask is the union over all objects. Two bugs of the original
are fixed: objects without a point are segmented too (the original drops their masks), and one item without a point does
not make the other items lose theirs.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Sam2Model, Sam2Processor

from visurf_ray.aliases import HFModel
from visurf_ray.answers.boxes import Box, Point, box_in, parse_items, point_in
from visurf_ray.errors import UserError

Prompt = tuple[Box, Point | None]  # of one object, in pixels of the image that is segmented

_OBJECTS_AT_ONCE = 16  # objects in one forward pass; limits memory, does not change the result


class Segmenter:
    """transformers' SAM2, on the GPU if this process has one. Successive calls for one image encode it once."""

    def __init__(self, path: str, key: str) -> None:
        """Load the model.

        Args:
            path: A folder or a hub id, such as facebook/sam2-hiera-large.
            key: The configuration key of the path, for error messages.

        Raises:
            UserError: There is no SAM2 model at `path`.
        """
        check_segmenter(path, key)
        try:
            found = Path(path).expanduser() if _is_folder(path) else path
            self.processor = Sam2Processor.from_pretrained(found, trust_remote_code=False)  # else it may ask, and wait
            model = Sam2Model.from_pretrained(found)
        except (OSError, ValueError) as error:
            raise UserError(f"{key}={path} cannot be loaded as a SAM2 model: {error}") from error
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: HFModel = model.eval().to(self.device)
        self.image: Image.Image | None = None
        self.embeddings: list[torch.Tensor] = []

    @torch.inference_mode()
    def segment(
        self, image: Image.Image, prompts: Sequence[Prompt], size: tuple[int, int] | None = None
    ) -> NDArray[np.bool_]:
        """Return the union of the objects' masks (H, W), which is empty if there are no prompts.

        Args:
            image: The image.
            prompts: The box and point of each object, in pixels of the image.
            size: Height and width of the mask. None: those of the image.
        """
        height, width = size or (image.height, image.width)
        union = torch.zeros(height, width, dtype=torch.bool, device=self.device)
        if prompts:
            self._encode(image)
        # Objects with and without a point go in separate batches, because SAM2 would use a padded point as a prompt.
        with_points = sorted(prompts, key=lambda prompt: prompt[1] is None)
        for pointed, group in groupby(with_points, lambda prompt: prompt[1] is not None):
            alike = list(group)
            for start in range(0, len(alike), _OBJECTS_AT_ONCE):
                logits = self._best(image, alike[start : start + _OBJECTS_AT_ONCE], pointed)
                masks = self.processor.post_process_masks([logits], [(height, width)])[0]
                union |= masks.flatten(0, 1).any(dim=0)
        return union.cpu().numpy()

    def _encode(self, image: Image.Image) -> None:
        """Compute the image's embeddings unless it is the image of the last call."""
        if image is not self.image:
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"].to(self.device)
            self.embeddings, self.image = self.model.get_image_embeddings(pixels), image

    def _best(self, image: Image.Image, prompts: Sequence[Prompt], pointed: bool) -> torch.Tensor:
        """Return the low-resolution logits (N, 1, h, w) of the best-scored mask of each object."""
        points = {
            "input_points": [[[list(point or ())] for _, point in prompts]],
            "input_labels": [[[1]] * len(prompts)],
        }
        inputs = self.processor(
            original_sizes=[[image.height, image.width]],
            input_boxes=[[list(box) for box, _ in prompts]],
            return_tensors="pt",
            **(points if pointed else {}),
        ).to(self.device)
        inputs.pop("original_sizes")
        output = self.model(**inputs, image_embeddings=list(self.embeddings), multimask_output=True)
        best = output.iou_scores[0].argmax(dim=-1)
        return output.pred_masks[0, torch.arange(len(prompts), device=self.device), best][:, None]


def check_segmenter(path: str | None, key: str) -> None:
    """Check that `path` is a folder with a model, or may be a hub id. A path of None passes: no segmenter is set.

    Args:
        path: A folder, a hub id, or None.
        key: The configuration key of the path, for error messages.

    Raises:
        UserError: The folder is missing or has no model.
    """
    if path is None:
        return
    folder = Path(path).expanduser()
    if not _is_folder(path):
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise UserError(f"{key}={path}: there is no such folder, and it is not a hub id (owner/name)")
    elif not (folder / "config.json").is_file():
        raise UserError(f"{key}={path}: the folder has no config.json")


def prompts_of(response: str, scale_x: float = 1.0, scale_y: float = 1.0) -> list[Prompt]:
    """Return the prompts for the objects of an answer whose box has an area; coordinates are rounded half up.

    Args:
        response: The response; without a JSON list in its answer there are no prompts.
        scale_x: Factor from the response's x coordinates to pixels of the image that is segmented.
        scale_y: The same for y.
    """
    found: list[Prompt] = []
    for item in parse_items(response) or []:
        box, point = box_in(item), point_in(item)
        if box and box[0] < box[2] and box[1] < box[3]:
            x1, y1, x2, y2 = box
            scaled = (*_scale((x1, y1), scale_x, scale_y), *_scale((x2, y2), scale_x, scale_y))
            found.append((scaled, _scale(point, scale_x, scale_y) if point else None))
    return found


def _scale(point: Point, x: float, y: float) -> Point:
    """Return the scaled point, rounded half up."""
    return int(point[0] * x + 0.5), int(point[1] * y + 0.5)


def _is_folder(path: str) -> bool:
    return Path(path).expanduser().exists()
