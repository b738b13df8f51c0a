"""Classification as in Visual-RFT (arXiv 2503.01785): the answer is the name of the class that the image shows."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from visurf_ray.answers.responses import answer_or_rest, answer_text, has_thinking, respond
from visurf_ray.answers.visual_rft import parse_true_name, plain_name
from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.tasks.task import Task, check_plain


class ClassificationTask(Task):
    """The solution is `<answer>name of the class</answer>`; the tags may be missing."""

    styles = ("spaced",)  # a name has no separators, so all styles are the same
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            "{query}\nReason first, between <think> and </think>: look for what tells the candidates apart. Then "
            "answer between <answer> and </answer> with the name of the class and nothing else."
        ),
        "plain": "{query}",
    }

    def check(self, row: Row) -> None:
        check_plain(row, dict, list)
        try:
            parse_true_name(row.solution)
        except ValueError as error:
            raise DataError(f"{row.where}: the solution {error}") from error

    def render(self, example: Example, style: str) -> str:
        return respond(answer_or_rest(example.ground_truth), example.thinking)

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return score_names(predictions)

    def correct(self, prediction: Prediction) -> bool:
        return self.answer_key(prediction) == parse_true_name(prediction.ground_truth)

    def answer_key(self, prediction: Prediction) -> str:
        return plain_name(answer_or_rest(prediction.response))


def score_names(predictions: Sequence[Prediction]) -> Metrics:
    """Return the metrics of answers that are class names, or none without predictions.

    - accuracy: share of answers that are the class's whole name; case, white space and underscores do not matter. The
      reward visual_rft_classification accepts a part of the name as well. Its fixes of the original hold here too: an
      empty answer is wrong, names are compared as text, and the last answer after the thinking counts.
    - format_rate: share of responses with a name in `<answer>` tags.
    - thinking_rate: share of responses with reasoning before the answer.
    """
    rows = [
        (
            plain_name(answer_or_rest(prediction.response)) == parse_true_name(prediction.ground_truth),
            bool(answer_text(prediction.response)),
            has_thinking(prediction.response),
        )
        for prediction in predictions
    ]
    names = ("accuracy", "format_rate", "thinking_rate")
    return {name: float(np.mean(shares)) for name, shares in zip(names, zip(*rows, strict=True), strict=False)}
