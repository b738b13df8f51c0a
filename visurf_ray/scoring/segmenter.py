"""SAM2 (arXiv 2408.00714): from an answer's boxes and points to a mask, as VisionReasoner's evaluation uses it.

Each object is prompted with its box and, where the answer has one, its point; of the masks that SAM2 offers for it the
one with the best score counts; the answer's mask is the union of all objects. Where the original has bugs, this does
the right thing: boxes without points are segmented too (the original forgets their masks), and an item that lacks its
point does not cost the points of the others.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Sam2Model, Sam2Processor

from visurf_ray.answers.boxes import Box, Point, box_in, parse_items, point_in
from visurf_ray.errors import UserError

Prompt = tuple[Box, Point | None]  # of one object, in pixels of the image that is segmented

_OBJECTS_AT_ONCE = 16  # memory, never the result


class Segmenter:
    """transformers' SAM2, on the GPU if this process has one. An image is encoded once for all calls in a row."""

    def __init__(self, path: str, key: str) -> None:
        """path: a folder or a hub id, such as facebook/sam2-hiera-large. Raises UserError, which names `key`."""
        check_segmenter(path, key)
        try:
            self.processor = Sam2Processor.from_pretrained(Path(path).expanduser() if _is_folder(path) else path)
            model = Sam2Model.from_pretrained(Path(path).expanduser() if _is_folder(path) else path)
        except (OSError, ValueError) as error:
            raise UserError(f"{key}={path} cannot be loaded as a SAM2 model: {error}") from error
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = model.eval().to(self.device)
        self.image: Image.Image | None = None
        self.embeddings: list[torch.Tensor] = []

    @torch.inference_mode()
    def segment(
        self, image: Image.Image, prompts: Sequence[Prompt], size: tuple[int, int] | None = None
    ) -> NDArray[np.bool_]:
        """The union of the objects' masks (H, W); empty without prompts.

        size: height and width of the mask, the image's unless given.
        """
        height, width = size or (image.height, image.width)
        union = torch.zeros(height, width, dtype=torch.bool, device=self.device)
        if prompts:
            self._encode(image)
        # A point that one object lacks cannot be padded: SAM2 would see the padding.
        with_points = sorted(prompts, key=lambda prompt: prompt[1] is None)
        for pointed, group in groupby(with_points, lambda prompt: prompt[1] is not None):
            alike = list(group)
            for start in range(0, len(alike), _OBJECTS_AT_ONCE):
                logits = self._best(image, alike[start : start + _OBJECTS_AT_ONCE], pointed)
                masks = self.processor.post_process_masks([logits], [(height, width)])[0]
                union |= masks.flatten(0, 1).any(dim=0)
        return union.cpu().numpy()

    def _encode(self, image: Image.Image) -> None:
        if image is not self.image:
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"].to(self.device)
            self.embeddings, self.image = self.model.get_image_embeddings(pixels), image

    def _best(self, image: Image.Image, prompts: Sequence[Prompt], pointed: bool) -> torch.Tensor:
        """Low-resolution logits (N, 1, h, w) of each object's mask with the best score."""
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
    """Raise UserError, which names `key`, for a folder that is not there or holds no model. None is no segmenter."""
    if path is None:
        return
    folder = Path(path).expanduser()
    if not _is_folder(path):
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise UserError(f"{key}={path}: there is no such folder, and it is no hub id (owner/name)")
    elif not (folder / "config.json").is_file():
        raise UserError(f"{key}={path}: the folder has no config.json")


def prompts_of(response: str, scale_x: float = 1.0, scale_y: float = 1.0) -> list[Prompt]:
    """The objects of an answer that have a box with an area, scaled and rounded half up; none for no JSON list."""
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
