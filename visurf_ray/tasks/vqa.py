"""Questions about charts and documents with short answers: ChartQA and DocVQA, to measure what training makes forget.

These layouts are recognised by their columns:

- ChartQA (Masry et al. 2022, arXiv 2203.10244). `HuggingFaceM4/ChartQA`: image, query, label (a list of one). The
  authors' test_human.json and test_augmented.json: imgname, query, label; the images are in the folder png beside them.
- DocVQA (Mathew et al. 2021, arXiv 2007.00398). `lmms-lab/DocVQA/DocVQA:validation`: questionId, question, image,
  answers (a list). The authors' val_v1.0_withQT.json: the same rows under `data`; image is a path from its folder.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from rapidfuzz.distance import Levenshtein

from visurf_ray.aliases import Json
from visurf_ray.answers.formulas import find_answer
from visurf_ray.answers.responses import respond, rest
from visurf_ray.data.bad_rows import each
from visurf_ray.data.rows import Row, json_object, read_rows
from visurf_ray.errors import DataError, short
from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.tasks.task import Task, check_plain

COLUMNS = {
    "id": ("questionId", "id"),
    "problem": ("query", "question", "problem", "prompt"),
    "solution": ("label", "answers", "answer", "solution"),
    "image": ("image", "imgname", "images"),
    "thinking": ("thinking",),
    "label": ("label",),
}


class VqaTask(Task):
    """The solution is a list of right answers; the first becomes the label."""

    solutions = (str, int, float, list)
    styles = ("spaced",)  # the label has no separators, so all styles are the same
    prompts: ClassVar[dict[str, str]] = {
        "detailed": "{query}\nAnswer with a number or a few words, as they stand in the image, and nothing else.",
        "plain": "{query}",
    }

    def read(self, source: str) -> list[Row]:
        outside = self.config.outside_paths
        path = Path(source).expanduser()
        pictures = path.parent / "png"
        root = self.config.image_root or (str(pictures) if path.suffix == ".json" and pictures.is_dir() else None)
        held = isinstance((json_object(path) or {}).get("data"), list)  # DocVQA's file has its rows under `data`
        rows = read_rows(
            source,
            root,
            COLUMNS,
            rows_in="data" if held else None,
            solutions=self.solutions,
            outside=outside,
        )
        return each(_with_one_answer, rows)

    def check(self, row: Row) -> None:
        if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in _items(row.solution)):
            raise DataError(f"{row.where}: the answers must be texts or numbers, not {short(row.solution)}")
        if not all(_answers(row.solution)) or not _answers(row.solution):
            raise DataError(f"{row.where}: an answer is empty: {row.solution[:80]}")

    def ground_truth(self, row: Row, scale_x: float, scale_y: float) -> str:
        return json.dumps(_answers(row.solution), ensure_ascii=False)

    def render(self, example: Example, style: str) -> str:
        return respond(_answers(example.ground_truth)[0], example.thinking)

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return relaxed_accuracy (ChartQA's metric) and anls (DocVQA's), each a mean over all predictions.

        The answer is the text of `\\boxed{}` or `<answer>`, or else all text after the thinking. Of several right
        answers the best match counts. Without predictions there are no metrics.
        """
        if not predictions:
            return {}
        scores = []
        for prediction in predictions:
            given, right = _answer(prediction.response), _answers(prediction.ground_truth)
            scores.append([max(measure(given, true) for true in right) for measure in (relaxed_equal, similarity)])
        relaxed_accuracy, anls = np.mean(scores, axis=0).tolist()
        return {"relaxed_accuracy": relaxed_accuracy, "anls": anls}

    def correct(self, prediction: Prediction) -> bool:
        """Return whether the answer is right by relaxed correctness."""
        given = _answer(prediction.response)
        return any(relaxed_equal(given, true) for true in _answers(prediction.ground_truth))

    def answer_key(self, prediction: Prediction) -> str:
        return _answer(prediction.response)

    def same(self, first: str, second: str) -> bool:
        return relaxed_equal(first, second, tolerance=0.0)


def _with_one_answer(row: Row) -> Row:
    """Return a row of ChartQA with its solution as a list of one answer, and others as they are.

    In the authors' files of ChartQA the label is text, which must not be parsed: "[12, 14]" is one answer.

    Raises:
        DataError: The solution is the text of an object.
    """
    check_plain(row, dict)
    if not isinstance(row.extra["label"], str):
        return row
    return replace(row, solution=json.dumps([row.solution], ensure_ascii=False))


def relaxed_equal(given: str, true: str, tolerance: float = 0.05) -> bool:
    """Return whether an answer is right by relaxed correctness (Methani et al. 2020; pix2struct's metrics.py).

    Two numbers may differ by the share `tolerance` of the true one; "5%" is 0.05. Other answers must be equal, ignoring
    case. Unlike in the original, a true 0 is compared as a number, so 0.0 equals it.
    """
    given, true = given.strip().lower(), true.strip().lower()
    number, true_number = _number(given), _number(true)
    if given == true or number is None or true_number is None:
        return given == true
    if not true_number:
        return number == 0
    return abs(number - true_number) / abs(true_number) <= tolerance


def similarity(given: str, true: str, threshold: float = 0.5) -> float:
    """Return the normalized Levenshtein similarity of DocVQA's ANLS (Biten et al. 2019, eq. 1), between 0 and 1.

    It is 1 minus the edit distance over the length of the longer text, or 0 if that share is `threshold` or more. Case
    and the amount of white space do not count.
    """
    distance = Levenshtein.normalized_distance(*(" ".join(text.lower().split()) for text in (given, true)))
    return 1.0 - distance if distance < threshold else 0.0


def _number(text: str) -> float | None:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def _answer(response: str) -> str:
    answer, _ = find_answer(response)
    return rest(response).strip() if answer is None else answer.strip()


def _answers(text: str) -> list[str]:
    """Return the items of a JSON list as text, or the text itself as the only answer if it is not a list."""
    return [str(item).strip() for item in _items(text)]


def _items(text: str) -> list[Json]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, list) else [text]
