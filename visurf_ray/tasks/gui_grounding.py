"""Pointing at the screen element that an instruction is about: OmniACT (Kapoor et al. 2024, arXiv 2402.17553).

In the data set `Writer/omniact`, the index files `train.json`, `val.json` and `test.json` name three files for each
example, with paths that start from the index file's folder:

    {"2849": {"task": "data/tasks/desktop/ibooks/task_1.30.txt", "image": "data/data/desktop/ibooks/screen_1.png",
              "box": "data/metadata/desktop/boxes/ibooks/screen_1.json", …}}

The task file holds an instruction and a script: `Task: …`, `Output Script:`, `pyautogui.click(1881.5,1116.0)`. The box
file holds the screen's elements: `{"name": {"top_left": [x, y], "bottom_right": [x, y], "label": …}}`. Coordinates are
in pixels. The files of web screens are named `screen1.png` and `screen1_boxes.json`, unlike in the index.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import (
    Box,
    Click,
    Point,
    Target,
    answered_points,
    are_shares,
    canonical,
    dump_targets,
    parse_click,
    parse_items,
    parse_targets,
    parse_truth,
    point_alone,
    point_in,
    well_formed,
)
from visurf_ray.answers.coordinates import UNITS
from visurf_ray.answers.responses import has_thinking
from visurf_ray.data.bad_rows import each
from visurf_ray.data.pictures import inside, picture_size
from visurf_ray.data.rows import Row, json_object
from visurf_ray.data.texts import read_json, read_text
from visurf_ray.errors import BoxError, DataError, short
from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.tasks.box_task import BoxTask

_POINTING = re.compile(r"pyautogui\.(?:click|doubleClick|rightClick|moveTo)\(\s*([\d.]+)\s*,\s*([\d.]+)", re.IGNORECASE)
_INSTRUCTION = re.compile(r"Task:(.*?)\n\s*Output Script:(.*)", re.DOTALL)


class GuiGroundingTask(BoxTask):
    """The solution is one element: its box, and the point that the script clicks or moves to.

    It may be a point alone, `[x, y]` or `[{"point_2d": [x, y]}]`, where the data have no boxes. The label is the point
    then, the prompt "detailed" asks for it, and an answered point is right if it is closer than task.point_distance.
    """

    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            'This is a screen. Find the one element to point at for "{query}". Reason first, between <think> and '
            "</think>: look for elements that might be meant, tell them apart, keep the one that fits best. Then "
            "answer between <answer> and </answer> with a JSON list of its box and a point on it, {unit}, such as "
            '[{{"bbox_2d": [12, 40, 96, 180], "point_2d": [50, 112]}}].'
        ),
        "plain": "{query}",
    }
    point_prompt: ClassVar[str] = (  # in place of "detailed" where the solution has no box
        'This is a screen. Find the one element to point at for "{query}". Reason first, between <think> and '
        "</think>: look for elements that might be meant, tell them apart, keep the one that fits best. Then answer "
        "between <answer> and </answer> with a JSON list of one point on it, {unit}, such as "
        '[{{"point_2d": [50, 112]}}].'
    )

    def read(self, source: str) -> list[Row]:
        """Read an OmniACT index file, or a table as BoxTask reads it.

        The element is the smallest box around the script's point. Examples whose script points at no element or at
        several places are not grounding examples; they are left out, and their number is printed.

        Raises:
            DataError: The data cannot be read or are malformed, or no example is left.
        """
        path = Path(source).expanduser()
        index = _read_index(path)
        if index is None:
            return super().read(source)
        root = Path(self.config.image_root).expanduser() if self.config.image_root else path.parent
        elements = cache(_elements)
        rows = each(lambda item: _row(*item, root, source, elements, self.config.outside_paths), index.items())
        kept = [row for row in rows if row is not None]
        left_out = f"{len(rows) - len(kept)} of {len(rows)} examples point at no element or at several places"
        if not kept:
            raise DataError(f"{source}: {left_out}")
        print(f"{source}: {left_out}, and are left out", file=sys.stderr, flush=True)
        return kept

    def question(self, row: Row) -> str:
        if self.prompt != "detailed" or self.point(row) is None:
            return super().question(row)
        return self.point_prompt.format(query=self.query(row), unit=UNITS[self.answered])

    def point(self, row: Row) -> Point | None:
        """Return the point of a solution that has no box, in pixels of the stored image; None for another solution."""
        try:
            return point_alone(parse_truth(canonical(row.solution))["objects"])
        except ValueError:
            return None

    def check(self, row: Row) -> None:
        point = self.point(row)
        if point is None:
            super().check(row)
            if len(self.targets(row)) != 1:
                raise DataError(f"{row.where}: the solution must be one element, not {short(row.solution)}")
            return
        width, height = row.open_image().size
        if self.config.point_distance is None:
            raise DataError(f"{row.where}: the solution is a point without a box: set task.point_distance")
        if are_shares(point):
            raise DataError(f"{row.where}: the solution has coordinates between 0 and 1, but must be in {self.unit}")
        if not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise BoxError(f"{row.where}: the point {list(point)} lies outside the image of {width}×{height}")

    def repaired(self, row: Row) -> Row:
        if (point := self.point(row)) is None:
            return super().repaired(row)
        width, height = row.open_image().size
        inside = [min(max(point[0], 0), width), min(max(point[1], 0), height)]
        return replace(row, solution=json.dumps([{"point_2d": inside}]))

    def largest_coordinate(self, row: Row) -> float | None:
        return max(point) if (point := self.point(row)) else super().largest_coordinate(row)

    def ground_truth(self, row: Row, scale_x: float, scale_y: float) -> str:
        if (point := self.point(row)) is None:
            return super().ground_truth(row, scale_x, scale_y)
        assert self.config.point_distance is not None, "`check` has seen to it"
        return Click((_round(point[0] * scale_x), _round(point[1] * scale_y)), self.config.point_distance).dump()

    def render(self, example: Example, style: str) -> str:
        click = parse_click(example.ground_truth)
        return click.render(style, example.thinking) if click else super().render(example, style)

    def true_boxes(self, example: Example) -> list[Box] | None:
        return None if parse_click(example.ground_truth) else super().true_boxes(example)

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return the metrics of pointing, or none without predictions.

        - accuracy: share of answers with any point in the true box, edges included, or close to the true point. If no
          item has a point, the centres of the boxes count. This is VisionReasoner's evaluation_gui.py, except that an
          item without a point does not invalidate the points of the others. Answering with many points raises it.
        - accuracy_one: the same, but an answer with more than one item is wrong.
        - format_rate: share of well-formed answers: each item has a box and a point, or where the truth is a point
          alone, at least a point.
        - thinking_rate: share of responses with reasoning before the answer.
        """
        if not predictions:
            return {}
        values = np.array([_score(prediction) for prediction in predictions], dtype=float).mean(axis=0)
        names = ("accuracy", "accuracy_one", "format_rate", "thinking_rate")
        return dict(zip(names, values.tolist(), strict=True))

    def correct(self, prediction: Prediction) -> bool:
        """Return whether the answer counts in accuracy_one."""
        return _score(prediction)[1]


def _score(prediction: Prediction) -> tuple[bool, bool, bool, bool]:
    items = parse_items(prediction.response)
    points = answered_points(items or [])
    if click := parse_click(prediction.ground_truth):
        hit, formed = click.hit(points), items is not None and all(point_in(item) for item in items)
    else:
        (target,) = parse_targets(prediction.ground_truth)
        x1, y1, x2, y2 = target.bbox_2d
        hit, formed = any(x1 <= x <= x2 and y1 <= y <= y2 for x, y in points), well_formed(prediction.response)
    return hit, hit and len(items or []) == 1, formed, has_thinking(prediction.response)


def _read_index(path: Path) -> dict[str, dict[str, str]] | None:
    """Return the content of an index file, or None if the file is not one."""
    index = json_object(path) or {}
    named = [isinstance(value, dict) and {"task", "image", "box"} <= value.keys() for value in index.values()]
    return index if named and all(named) else None


def _row(
    key: str,
    files: dict[str, str],
    root: Path,
    source: str,
    elements: Callable[[Path, Path], list[Box]],
    outside: bool,
) -> Row | None:
    """Return the row of an example, or None if its script does not point at exactly one place within an element."""
    where = f"{source}, row {key}"
    paths = {name: inside(root / files[name], root, where, outside=outside) for name in ("task", "image", "box")}
    task = read_text(paths["task"])
    parts = _INSTRUCTION.match(task.strip())
    if parts is None:
        raise DataError(
            f"{where}: {files['task']} must hold `Task: …` and `Output Script:`, but it begins {task[:60]!r}"
        )
    points = _POINTING.findall(parts[2])
    if len(points) != 1:
        return None
    x, y = (float(number) for number in points[0])
    image = _on_disk(paths["image"])
    boxes = elements(image, _on_disk(paths["box"], "_boxes"))
    around = [box for box in boxes if box[0] <= x <= box[2] and box[1] <= y <= box[3]]
    if not around:
        return None
    box = min(around, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    x1, y1, x2, y2 = box
    target = Target((_round(x1), _round(y1), _round(x2), _round(y2)), (_round(x), _round(y)))
    return Row(key, parts[1].strip(), dump_targets([target]), (image,), where)


def _elements(image: Path, path: Path) -> list[Box]:
    """Return the boxes of a screen's elements, clipped to the screen."""
    width, height = picture_size(image, str(path))
    try:
        corners = [(*e["top_left"], *e["bottom_right"]) for e in read_json(path).values()]
        boxes = [(max(0, x1), max(0, y1), min(width, x2), min(height, y2)) for x1, y1, x2, y2 in corners]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} must hold elements with top_left and bottom_right") from error
    return [box for box in boxes if _round(box[0]) < _round(box[2]) and _round(box[1]) < _round(box[3])]


def _on_disk(path: Path, ending: str = "") -> Path:
    """Return the path, or for a web screen the path under which its file is stored."""
    other = path.with_name(f"{path.stem.replace('screen_', 'screen')}{ending}{path.suffix}")
    return other if not path.exists() and other.exists() else path


def _round(number: float) -> int:
    return int(number + 0.5)
