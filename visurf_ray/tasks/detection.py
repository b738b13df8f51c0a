"""Detection as in Visual-RFT (arXiv 2503.01785): all objects of one category, each with a confidence."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import Box
from visurf_ray.answers.responses import STYLES, answer_text, has_thinking, respond
from visurf_ray.answers.visual_rft import answered_detections, check_inside, in_pixels, parse_boxes
from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.scoring.average_precision import average_precision
from visurf_ray.tasks.task import Task

# An apostrophe within a word is no quotation mark.
_QUOTED = re.compile(r"""(?<!\w)(['"])(.+?)\1(?!\w)""")


class DetectionTask(Task):
    """The solution is `<answer>[{'Position': [x1, y1, x2, y2], 'Confidence': 1}, …]</answer>`, or "No Objects".

    The tags may be missing. Corners are in thousandths of the image's sides.
    """

    styles = (*STYLES, "quoted")  # the last as Visual-RFT's prompts ask for: {'Position': …}
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            'Find all objects of the category "{category}" in the image. Reason first, between <think> and </think>. '
            "Then answer between <answer> and </answer> with a JSON list of each object's corners and of how sure you "
            "are of it, such as "
            '[{{"Position": [112, 40, 396, 980], "Confidence": 0.95}}, '
            '{{"Position": [510, 35, 700, 170], "Confidence": 0.40}}]. '
            "Position is [x1, y1, x2, y2] in whole thousandths of the image's width and height, from 0 to 1000. "
            "Confidence lies between 0 and 1 and has two decimals. Answer No Objects if there is none."
        ),
        "plain": "{query}",
    }

    def question(self, row: Row) -> str:
        prompt = self.prompts[self.config.prompt]
        return prompt.format(query=row.problem, category=asked_category(row.problem))

    def check(self, row: Row) -> None:
        try:
            for number, box in enumerate(parse_boxes(row.solution)):
                check_inside(box, f"item {number}")
        except ValueError as error:
            raise DataError(f"{row.where}: the solution {error}") from error

    def render(self, example: Example, style: str) -> str:
        """With full confidence in every box."""
        items = [{"Position": list(box), "Confidence": 1.0} for box in parse_boxes(example.ground_truth)]
        text = json.dumps(items, separators=STYLES["spaced" if style == "quoted" else style])
        if style == "quoted":
            text = text.replace('"', "'")
        return respond(text if items else "No Objects", example.thinking)

    def boxes(self, text: str, size: tuple[int, int]) -> list[Box]:
        return [in_pixels(box, size) for box, _ in answered_detections(text) or []]

    def true_boxes(self, example: Example) -> list[Box]:
        return [in_pixels(box, example.size) for box in parse_boxes(example.ground_truth)]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return score_detections(predictions)


def asked_category(question: str) -> str:
    """What the question holds in its first quotation marks, as Visual-RFT's do; without any, the question itself."""
    quoted = _QUOTED.search(question)
    return quoted[2] if quoted else question.strip()


def score_detections(predictions: Sequence[Prediction]) -> Metrics:
    """COCO's average precision, and shares of the answers.

    map, map50: COCO's AP over IoU 0.50 to 0.95, and at 0.50, means over the categories that the questions ask for (see
    `asked_category`; the same question is the same category). Each prediction is an image of its own, in which its
    category alone is looked for. As in COCO, a category that no image shows has no AP, and boxes given for it cost
    nothing. ap50_agnostic: AP at 0.50 of all boxes as of one category: there they cost, and so it is the one to look at
    where questions are free text. n_acc: share of images without objects that are answered so ("No Objects" or `[]`).
    empty_rate: the same answer where there are objects. format_rate: a list of boxes with confidences, or "No Objects",
    in `<answer>` tags. thinking_rate: responses with reasoning before the answer. A metric without examples is left
    out.

    An item without a box or a confidence makes the whole answer worthless, and an answer needs no tags, as in the
    reward visual_rft_detection.
    """
    values: dict[str, list[float]] = defaultdict(list)
    images = []
    for prediction in predictions:
        true, given = parse_boxes(prediction.ground_truth), answered_detections(prediction.response)
        images.append((asked_category(prediction.question), given or [], true))
        values["empty_rate" if true else "n_acc"].append(given == [])
        values["format_rate"].append(given is not None and answer_text(prediction.response) is not None)
        values["thinking_rate"].append(has_thinking(prediction.response))
    scores = {name: float(np.mean(shares)) for name, shares in values.items()}
    if by_category := average_precision(images):
        scores["map"], scores["map50"] = by_category
    if pooled := average_precision([("object", given, true) for _, given, true in images]):
        scores["ap50_agnostic"] = pooled[1]
    return scores
