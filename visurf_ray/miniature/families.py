"""How each family's answers are written and scored."""

import json
import re
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.tasks.box_task import BoxTask
from visurf_ray.tasks.boxes import answer_text, has_thinking, numbers, parse_items, parse_targets
from visurf_ray.tasks.metrics import answered_boxes, iou, union_area
from visurf_ray.tasks.rows import DataError, Row
from visurf_ray.tasks.task import Box, Task

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


class GuiGroundingTask(BoxTask):
    """The solution is a list of one item."""

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """accuracy: a point in the true box, edges included. format_rate and thinking_rate as everywhere."""
        right = []
        for prediction in predictions:
            (target,) = parse_targets(prediction.ground_truth)
            x1, y1, x2, y2 = target.bbox_2d
            items = parse_items(prediction.response) or []
            points = [numbers(item.get("point_2d"), 2) for item in items if isinstance(item, dict)]
            right.append(any(point and x1 <= point[0] <= x2 and y1 <= point[1] <= y2 for point in points))
        scores = super().metrics(predictions)
        return {"accuracy": float(np.mean(right))} | {key: scores[key] for key in ("format_rate", "thinking_rate")}


class AnomalyTask(BoxTask):
    """The solution is empty where nothing is wrong."""

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Those of boxes, and roc_auc: the score of an image is the share that the answered boxes cover."""
        anomalous = [bool(parse_targets(prediction.ground_truth)) for prediction in predictions]
        scores = super().metrics(predictions)
        if len(set(anomalous)) == 2:
            covered = [
                union_area(answered_boxes(prediction.response) or []) / np.prod(prediction.size)
                for prediction in predictions
            ]
            scores["roc_auc"] = float(roc_auc_score(anomalous, covered))
        return scores


class LesionTask(BoxTask):
    """The solution is a list of one item."""


class TextTask(Task):
    """The solution is a text."""

    styles = ("plain",)

    def check(self, row: Row) -> None:
        if not row.solution.strip():
            raise DataError(f"{row.where}: the solution is empty")

    def render(self, example: Example, style: str) -> str:
        thought = "" if example.thinking is None else f"<think>{example.thinking}</think>"
        return f"{thought}<answer>{example.ground_truth}</answer>"

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        right = [answer_text(prediction.response) == prediction.ground_truth for prediction in predictions]
        return {"accuracy": float(np.mean(right)), "thinking_rate": _thinking_rate(predictions)}


class MathTask(TextTask):
    """The solution is a number, answered in `\\boxed{}` or `<answer>`."""

    def render(self, example: Example, style: str) -> str:
        thought = "" if example.thinking is None else f"<think>{example.thinking}</think>"
        return f"{thought}\\boxed{{{example.ground_truth}}}"

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        answers = [_BOXED.findall(p.response)[-1:] or [answer_text(p.response)] for p in predictions]
        right = [answer == [p.ground_truth] for answer, p in zip(answers, predictions, strict=True)]
        thinks = ["</think>" in prediction.response for prediction in predictions]
        return {"accuracy": float(np.mean(right)), "thinking_rate": float(np.mean(thinks))}


class VqaTask(TextTask):
    """The solution is a number."""


class ClassificationTask(TextTask):
    """The solution is a class's name."""


class _ThousandthsTask(TextTask):
    """Boxes in thousandths of the image's sides."""

    @abstractmethod
    def parse(self, text: str) -> list[Box]:
        """The boxes of an answer or a ground truth; none where it cannot be read."""

    def boxes(self, text: str, size: tuple[int, int]) -> list[Box]:
        sides = (*size, *size)
        return [
            tuple(edge * side / 1000 for edge, side in zip(box, sides, strict=True))
            for box in self.parse(answer_text(text) or "")
        ]

    def true_boxes(self, example: Example) -> list[Box]:
        return self.boxes(f"<answer>{example.ground_truth}</answer>", example.size)


class DetectionTask(_ThousandthsTask):
    """The solution is a JSON list of `{"Position": [x1, y1, x2, y2]}`, empty where there are none."""

    def parse(self, text: str) -> list[Box]:
        items = parse_items(f"<answer>{text}</answer>") or []
        found = [numbers(item.get("Position"), 4) for item in items if isinstance(item, dict)]
        return [box for box in found if box and box[0] < box[2] and box[1] < box[3]]

    def render(self, example: Example, style: str) -> str:
        items = [{"Position": item["Position"], "Confidence": 1.0} for item in json.loads(example.ground_truth)]
        return f"<answer>{json.dumps(items) if items else 'No Objects'}</answer>"

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """f1: of boxes at IoU > 0.5, over all examples. n_acc: "No Objects", where there are none."""
        hits, count, empty = 0, 0, []
        for prediction in predictions:
            answer = answer_text(prediction.response) or ""
            given, true = self.parse(answer), self.parse(prediction.ground_truth)
            hits += sum(any(iou(a, b) > 0.5 for a in given) for b in true)
            count += len(given) + len(true)
            if not true:
                empty.append(answer == "No Objects")
        scores = {"f1": 2 * hits / max(1, count), "thinking_rate": _thinking_rate(predictions)}
        return scores | ({"n_acc": float(np.mean(empty))} if empty else {})


class GroundingTask(_ThousandthsTask):
    """The solution is `(x1, y1), (x2, y2)`."""

    def parse(self, text: str) -> list[Box]:
        found = re.fullmatch(r"\((\d+), ?(\d+)\), ?\((\d+), ?(\d+)\)", text)
        box = tuple(float(edge) for edge in found.groups()) if found else None
        return [box] if box and box[0] < box[2] and box[1] < box[3] else []

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """acc50: answers with an IoU above 0.5."""
        right = []
        for prediction in predictions:
            (true,) = self.parse(prediction.ground_truth)
            given = self.parse(answer_text(prediction.response) or "")
            right.append(bool(given) and iou(given[0], true) > 0.5)
        return {"acc50": float(np.mean(right)), "thinking_rate": _thinking_rate(predictions)}


def _thinking_rate(predictions: Sequence[Prediction]) -> float:
    return float(np.mean([has_thinking(prediction.response) for prediction in predictions]))
