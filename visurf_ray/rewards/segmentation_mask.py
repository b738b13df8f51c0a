"""Reward for masks: SAM2 segments the answer's boxes and points, and its mask is compared with the true one.

Three parts of 1 each:

- mask_iou: IoU of the two masks without the pixels of the ground truth's `ignore` mask; 0 if the union is empty.
- answer_format: mean over the items, of one half for a box of four numbers and one half for a point of two.
- thinking_format: reasoning, then the answer.

For a ground truth without objects, `[]` earns full mask_iou and answer_format if `credit_empty` is true; any other
answer earns no mask_iou.
"""

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from PIL import Image

from visurf_ray.answers.boxes import parse_items, parse_targets, parse_truth
from visurf_ray.answers.responses import has_thinking
from visurf_ray.answers.rle import Rle, encode, overlap, parse_masks
from visurf_ray.data.pictures import load_picture
from visurf_ray.rewards.reward import Reward
from visurf_ray.rewards.vision_reasoner import answer_format
from visurf_ray.scoring.segmenter import Segmenter, check_segmenter, prompts_of


class SegmentationMaskReward:
    """Scores the mask that SAM2 makes of an answer."""

    needs_image = True
    thinking_parts = ("thinking_format",)
    solved: ClassVar[dict[str, float]] = {"mask_iou": 0.5}
    most: ClassVar[dict[str, float]] = {"mask_iou": 1.0, "answer_format": 1.0, "thinking_format": 1.0}

    def __init__(self, model: str = "facebook/sam2-hiera-large", credit_empty: bool = True) -> None:
        """Check the model, which is loaded when the first response is scored.

        Args:
            model: SAM2's hub id or folder.
            credit_empty: Whether `[]` earns full mask_iou and answer_format for a ground truth without objects.

        Raises:
            UserError: The folder is missing or has no model.
        """
        check_segmenter(model, "reward.options.model")
        self.model = model
        self.credit_empty = credit_empty

    @cached_property
    def segmenter(self) -> Segmenter:
        """SAM2, loaded at first use."""
        return Segmenter(self.model, "reward.options.model")

    def __call__(self, response: str, ground_truth: str, image: Image.Image | None = None) -> Reward:
        """Score one response.

        Args:
            response: The response, its coordinates in pixels of the image.
            ground_truth: `{"objects": [boxes and points], "mask": RLE, "ignore": RLE}` (see `answers.boxes`), or `[]`.
            image: The image. None: the ground truth's key `image` is the path of the image.

        Raises:
            ValueError: The ground truth has objects but no mask, or there is no image.
        """
        items = parse_items(response)
        truth = parse_truth(ground_truth)
        if not parse_targets(ground_truth):
            right = float(self.credit_empty and items == [])
            parts = {"mask_iou": right, "answer_format": right or answer_format(items) / 2}
        else:
            parts = {
                "mask_iou": self._iou(response, parse_masks(ground_truth), image, truth.get("image")),
                "answer_format": answer_format(items) / 2,
            }
        return Reward(parts | {"thinking_format": float(has_thinking(response))})

    def _iou(self, response: str, masks: dict[str, Rle], image: Image.Image | None, path: str | None) -> float:
        if "mask" not in masks:
            raise ValueError("has objects but no mask: reward=segmentation_mask needs data with masks")
        if image is None and path is None:
            raise ValueError("needs an image: pass image=, or name one in the ground truth, {'image': path, …}")
        prompts = prompts_of(response)
        if not prompts:
            return 0.0
        seen = image or load_picture(Path(path or "").expanduser(), "the ground truth")
        given = encode(self.segmenter.segment(seen, prompts, masks["mask"]["size"]))
        intersection, union = overlap(given, masks["mask"], masks.get("ignore"))
        return intersection / union if union else 0.0
