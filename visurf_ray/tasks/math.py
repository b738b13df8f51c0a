"""Mathematical questions about images, with choices or without: MathVista (Lu et al. 2024, arXiv 2310.02255).

The data set is read from `AI4Math/MathVista` (split testmini) or from the authors' JSON file, an object with one row
for each pid, in which `image` is a path. Columns: pid, question, image, decoded_image, choices (a list, or null for a
free answer), unit, precision (decimal places of a number, or null), answer (for a choice, its text). The columns
question_type and answer_type are not read, because they follow from the others.
Other tables, such as EasyR1's geometry sets, are read by the same columns and those of `rows_of`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from visurf_ray.aliases import Json
from visurf_ray.answers.formulas import Truth, equal, find_answer, thinks_first
from visurf_ray.answers.responses import thought
from visurf_ray.data.bad_rows import each
from visurf_ray.data.rows import Row, json_object, read_rows, rows_of
from visurf_ray.data.tables import JsonTable
from visurf_ray.errors import DataError, short
from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.tasks.task import Task, check_plain

COLUMNS = {
    "id": ("pid", "id"),
    "problem": ("question", "problem", "prompt"),
    "solution": ("answer", "solution"),
    "image": ("decoded_image", "image", "images"),
    "thinking": ("thinking",),
    "choices": ("choices",),
    "unit": ("unit",),
    "precision": ("precision",),
}


class MathTask(Task):
    """The answer is a formula, a number, a word, or the letter of a choice, in `\\boxed{}`."""

    solutions = (str, int, float)
    styles = ("spaced",)  # the label has no separators, so all styles are the same
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            "{query}\n\nReason first, between <think> and </think>. Then give the answer alone in \\boxed{{}}: where "
            "there are choices, the letter of the right one."
        ),
        "plain": "{query}",
    }

    def read(self, source: str) -> list[Row]:
        outside = self.config.outside_paths
        records = _by_pid(Path(source).expanduser())
        if records is None:
            rows = read_rows(source, self.config.image_root, COLUMNS, solutions=self.solutions, outside=outside)
        else:
            table = JsonTable(source, Path(source).expanduser().parent, records)
            rows = rows_of(table, self.config.image_root, COLUMNS, solutions=self.solutions, outside=outside)
        return each(_with_truth, rows)

    def check(self, row: Row) -> None:
        try:
            truth = Truth.parse(row.solution)
        except ValueError as error:
            raise DataError(f"{row.where}: the answer {error}") from error
        given, _ = find_answer(_boxed(truth))
        if given is None or not truth.matches(given):
            raise DataError(f"{row.where}: the answer cannot be written in \\boxed{{}}: {truth.answer[:80]!r}")

    def render(self, example: Example, style: str) -> str:
        return thought(example.thinking) + _boxed(Truth.parse(example.ground_truth))

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return the metrics of answers to mathematical questions, or none without predictions.

        - accuracy: share of right answers, judged as in the reward `math`: a choice by its letter or text, a number
          also if it equals the true one after both are rounded to the question's precision.
        - format_rate: share of responses with an answer in `\\boxed{}` or `<answer>`.
        - thinking_rate: share of responses with reasoning before the answer.

        Two bugs of MathVista's calculate_score.py are fixed: 3.7 does not equal 3 (the original truncates to integers),
        and text that is not a choice is wrong (the original takes the choice of the most similar spelling).
        """
        if not predictions:
            return {}
        values = np.array([_score(prediction) for prediction in predictions], dtype=float).mean(axis=0)
        return dict(zip(("accuracy", "format_rate", "thinking_rate"), values.tolist(), strict=True))

    def correct(self, prediction: Prediction) -> bool:
        return _score(prediction)[0]

    def answer_key(self, prediction: Prediction) -> str:
        given, _ = find_answer(prediction.response)
        return "" if given is None else Truth.parse(prediction.ground_truth).named(given)

    def same(self, first: str, second: str) -> bool:
        return equal(first, second)


def _by_pid(path: Path) -> list[dict[str, Json]] | None:
    """Return the rows of MathVista's JSON file, with the columns that are read, or None if it is not such a file."""
    content = json_object(path)
    if not content or not all(isinstance(row, dict) for row in content.values()):
        return None
    known = {column for names in COLUMNS.values() for column in names}
    held = known & {column for row in content.values() for column in row}
    return [{"pid": pid} | {column: row.get(column) for column in held} for pid, row in content.items()]


def _score(prediction: Prediction) -> tuple[bool, bool, bool]:
    given, _ = find_answer(prediction.response)
    right = given is not None and Truth.parse(prediction.ground_truth).matches(given)
    return right, given is not None, thinks_first(prediction.response)


def _boxed(truth: Truth) -> str:
    return f"\\boxed{{{truth.letter or truth.answer}}}"


def _with_truth(row: Row) -> Row:
    """Return the row with unit, precision and choices in the question, and with the solution as `Truth.dump`."""
    check_plain(row, dict)
    answer = (find_answer(row.solution)[0] or row.solution).strip()
    given = row.extra["choices"]
    if given is not None and not isinstance(given, list):
        raise DataError(f"{row.where}: the choices must be a list, not {short(given)}")
    if not all(isinstance(choice, str | int | float) for choice in given or ()):
        raise DataError(f"{row.where}: the choices must be texts or numbers, not {short(given)}")
    choices = tuple(str(choice).strip() for choice in given or ())
    precision = None if choices else _precision(row)
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    if choices and answer not in choices:
        if answer not in letters:
            raise DataError(
                f"{row.where}: the answer {answer[:80]!r} is neither a choice nor the letter of one: {short(choices)}"
            )
        answer = choices[letters.index(answer)]
    unit = f" (Unit: {row.extra['unit']})" if row.extra["unit"] else ""
    rounding = "" if precision is None else f" (Decimal places: {precision})"
    lines = [row.problem + unit + rounding]
    lines += [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return replace(row, problem="\n".join(lines), solution=Truth(answer, choices, precision).dump())


def _precision(row: Row) -> int | None:
    value = row.extra["precision"]
    if value is None or value != value:  # NaN is an empty cell in a column of numbers
        return None
    try:
        return int(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{row.where}: the precision must be a number of decimal places, not {short(value)!r}"
        ) from error
