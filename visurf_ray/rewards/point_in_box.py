"""Reward for pointing at one element of a screen (the accuracy is that of JIA-Lab-research/VisionReasoner's
evaluation_gui.py, by which ViSurf reports OmniACT).

Three parts of 1 each: accuracy, answer_format, thinking_format. The answer is a JSON list of `{"bbox_2d": [x1, y1, x2,
y2], "point_2d": [x, y]}`, one of the two is enough; the ground truth is the element's box. Accuracy: a point lies in
the box, edges included; where no item has a point, the boxes' centres count. answer_format: one item and no more, so
that what a shower of points gains in accuracy is lost here. Where the original has bugs, this does the right thing:

- An item that lacks its point does not cost the points of the others.
- A response without thinking loses thinking_format alone.
"""

from typing import Any

from visurf_ray.answers.boxes import answered_points, numbers, parse_items, parse_truth
from visurf_ray.answers.responses import has_thinking
from visurf_ray.rewards.reward import Reward


class PointInBoxReward:
    """The ground truth is `[x1, y1, x2, y2]` in pixels, or a grounding task's (see `answers.boxes`) of one object."""

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError when the ground truth is not one box."""
        x1, y1, x2, y2 = _parse_box(ground_truth)
        given = parse_items(response) or []
        items = [item for item in given if isinstance(item, dict)]
        points = answered_points(items)
        return Reward(
            {
                "accuracy": float(any(x1 <= x <= x2 and y1 <= y <= y2 for x, y in points)),
                "answer_format": float(len(given) == len(items) == 1 and _well_formed(items[0])),
                "thinking_format": float(has_thinking(response)),
            }
        )


def _well_formed(item: dict[str, Any]) -> bool:
    """A box or a point or both, and what there is of them is well-formed."""
    sizes = {key: size for key, size in {"bbox_2d": 4, "point_2d": 2}.items() if key in item}
    return bool(sizes) and all(numbers(item[key], size) for key, size in sizes.items())


def _parse_box(ground_truth: str) -> tuple[float, ...]:
    value = parse_truth(ground_truth)["objects"]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("bbox_2d")
    box = numbers(value, 4)
    if box is None:
        raise ValueError(f"must be one box, [x1, y1, x2, y2] or [{{'bbox_2d': …}}], not {ground_truth[:80]!r}")
    return box
