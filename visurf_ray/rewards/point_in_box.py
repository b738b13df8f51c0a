"""Reward for pointing at one element of a screen.

Three parts of 1 each. The answer is a JSON list of `{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}`, where one of
the two keys is enough; the ground truth is the element's box, or a point to click.

- accuracy: any point lies in the box, edges included, or is close to the true point; if no item has a point, the
  centres of the boxes count.
- answer_format: the answer has exactly one well-formed item. Answering with many points raises accuracy but costs this.
- thinking_format: reasoning, then the answer.

The accuracy is that of JIA-Lab-research/VisionReasoner, evaluation_gui.py, by which ViSurf reports OmniACT. Unlike in
the original, whose bugs are fixed here:

- An item without a point does not invalidate the points of the other items.
- A response without thinking loses thinking_format only.
"""

from typing import ClassVar

from visurf_ray.answers.boxes import Box, answered_points, box_in, numbers, parse_click, parse_items, parse_truth
from visurf_ray.answers.responses import has_thinking
from visurf_ray.rewards.reward import Reward


class PointInBoxReward:
    """Scores the points of an answer against one box."""

    thinking_parts = ("thinking_format",)
    solved: ClassVar[dict[str, float]] = {"accuracy": 1.0}
    most: ClassVar[dict[str, float]] = {"accuracy": 1.0, "answer_format": 1.0, "thinking_format": 1.0}

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response.

        Args:
            response: The response.
            ground_truth: `[x1, y1, x2, y2]` in pixels, or a ground truth of boxes and points with one object, or one of
                a point alone (see `answers.boxes`).

        Raises:
            ValueError: The ground truth is not one box or point.
        """
        items = parse_items(response) or []
        points = answered_points(items)
        if click := parse_click(ground_truth):
            right = click.hit(points)
        else:
            x1, y1, x2, y2 = _parse_box(ground_truth)
            right = any(x1 <= x <= x2 and y1 <= y <= y2 for x, y in points)
        return Reward(
            {
                "accuracy": float(right),
                "answer_format": float(len(items) == 1 and _well_formed(items[0])),
                "thinking_format": float(has_thinking(response)),
            }
        )


def _well_formed(item: object) -> bool:
    """Return whether an item has a box or a point or both, each with the right number of coordinates."""
    if not isinstance(item, dict):
        return False
    sizes = {key: size for key, size in {"bbox_2d": 4, "point_2d": 2}.items() if key in item}
    return bool(sizes) and all(numbers(item[key], size) for key, size in sizes.items())


def _parse_box(ground_truth: str) -> Box:
    value = parse_truth(ground_truth)["objects"]
    item = value[0] if isinstance(value, list) and len(value) == 1 else {"bbox_2d": value}
    box = box_in(item)
    if box is None:
        raise ValueError(f"must be one box, [x1, y1, x2, y2] or [{{'bbox_2d': …}}], not {ground_truth[:80]!r}")
    return box
