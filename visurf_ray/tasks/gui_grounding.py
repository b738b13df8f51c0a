"""Pointing at the screen element that an instruction is about: OmniACT (Kapoor et al. 2024, arXiv 2402.17553).

In the data set `Writer/omniact`, the index files `train.json`, `val.json` and `test.json` name three files for each
example, with paths that start from the index file's folder:

    {"2849": {"task": "data/tasks/desktop/ibooks/task_1.30.txt", "image": "data/data/desktop/ibooks/screen_1.png",
              "box": "data/metadata/desktop/boxes/ibooks/screen_1.json", …}}

The task file holds an instruction and a script: `Task: …`, `Output Script:`, `pyautogui.click(1881.5,1116.0)`. The box
file holds the screen's elements: `{"name": {"top_left": [x, y], "bottom_right": [x, y], "label": …}}`. Coordinates are
in pixels. The files of web screens are named `screen1.png` and `screen1_boxes.json`, unlike in the index.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import Box, Target, answered_points, dump_targets, parse_items, parse_targets, well_formed
from visurf_ray.answers.responses import has_thinking
from visurf_ray.data.bad_rows import each
from visurf_ray.data.pictures import picture_size
from visurf_ray.data.rows import Row, json_object
from visurf_ray.data.texts import read_json, read_text
from visurf_ray.errors import DataError, short
from visurf_ray.groups import Metrics, Prediction
from visurf_ray.tasks.box_task import BoxTask

_POINTING = re.compile(r"pyautogui\.(?:click|doubleClick|rightClick|moveTo)\(\s*([\d.]+)\s*,\s*([\d.]+)", re.IGNORECASE)
_INSTRUCTION = re.compile(r"Task:(.*?)\n\s*Output Script:(.*)", re.DOTALL)


class GuiGroundingTask(BoxTask):
    """The solution is one element: its box, and the point that the script clicks or moves to."""

    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            'This is a screen. Find the one element to point at for "{query}". Reason first, between <think> and '
            "</think>: look for elements that might be meant, tell them apart, keep the one that fits best. Then "
            "answer between <answer> and </answer> with a JSON list of its box and a point on it, {unit}, such as "
            '[{{"bbox_2d": [12, 40, 96, 180], "point_2d": [50, 112]}}].'
        ),
        "plain": "{query}",
    }

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
        rows = each(lambda item: _row(*item, root, source, elements), index.items())
        kept = [row for row in rows if row is not None]
        left_out = f"{len(rows) - len(kept)} of {len(rows)} examples point at no element or at several places"
        if not kept:
            raise DataError(f"{source}: {left_out}")
        print(f"{source}: {left_out}, and are left out", file=sys.stderr, flush=True)
        return kept

    def check(self, row: Row) -> None:
        super().check(row)
        if len(self.targets(row)) != 1:
            raise DataError(f"{row.where}: the solution must be one element, not {short(row.solution)}")

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return the metrics of pointing, or none without predictions.

        - accuracy: share of answers with any point in the true box, edges included. If no item has a point, the centres
          of the boxes count. This is VisionReasoner's evaluation_gui.py, except that an item without a point does not
          invalidate the points of the others. Answering with many points raises it.
        - accuracy_one: the same, but an answer with more than one item is wrong.
        - format_rate: share of well-formed answers.
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
    (target,) = parse_targets(prediction.ground_truth)
    x1, y1, x2, y2 = target.bbox_2d
    items = parse_items(prediction.response) or []
    hit = any(x1 <= x <= x2 and y1 <= y <= y2 for x, y in answered_points(items))
    return hit, hit and len(items) == 1, well_formed(prediction.response), has_thinking(prediction.response)


def _read_index(path: Path) -> dict[str, dict[str, str]] | None:
    """Return the content of an index file, or None if the file is not one."""
    index = json_object(path) or {}
    named = [isinstance(value, dict) and {"task", "image", "box"} <= value.keys() for value in index.values()]
    return index if named and all(named) else None


def _row(
    key: str, files: dict[str, str], root: Path, source: str, elements: Callable[[Path, Path], list[Box]]
) -> Row | None:
    """Return the row of an example, or None if its script does not point at exactly one place within an element."""
    where = f"{source}, row {key}"
    task = read_text(root / files["task"])
    parts = _INSTRUCTION.match(task.strip())
    if parts is None:
        raise DataError(
            f"{where}: {files['task']} must hold `Task: …` and `Output Script:`, but it begins {task[:60]!r}"
        )
    points = _POINTING.findall(parts[2])
    if len(points) != 1:
        return None
    x, y = (float(number) for number in points[0])
    image = _on_disk(root / files["image"])
    boxes = elements(image, _on_disk(root / files["box"], "_boxes"))
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
