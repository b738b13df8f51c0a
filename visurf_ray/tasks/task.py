"""The interface of a task: the rows of its data set, the question, the ground truth, its label, the metrics."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, StrictUndefined, TemplateError, TemplateSyntaxError, meta

from visurf_ray.answers.boxes import Box
from visurf_ray.answers.coordinates import UNITS, as_answered, readable
from visurf_ray.answers.lenient import as_strict
from visurf_ray.answers.responses import respond
from visurf_ray.config.schema import TaskConfig
from visurf_ray.data.rows import Row, read_rows
from visurf_ray.data.tables import expand
from visurf_ray.data.texts import read_text
from visurf_ray.errors import DataError, short
from visurf_ray.groups import Coordinates, Example, Metrics, Prediction
from visurf_ray.names import nearest
from visurf_ray.scoring.sampled import score_answers


class Task(ABC):
    """What is learnt. A subclass must have `metrics`; a task of short texts needs nothing else (see README.md here).

    Attributes:
        styles: The styles in which `render` can write a label.
        segments: Whether an answer can be turned into a mask, so that task.segmenter may be set.
        asks_for_absent: Whether the task can ask for absent objects, so that task.absent_share may be set.
        strict: Whether `score` and `shown_boxes` read valid JSON only (see `answers.lenient`).
        solutions: The JSON types that a solution may have in the data.
        unit: The unit of the coordinates in solutions.
        compared: The unit of the coordinates in ground truths and labels as `render` writes them.
        data_tell_unit: Whether the problems in the data themselves tell how to write coordinates.
        template: The user's template in place of a prompt, or None.
        system: The user's system message in place of those of the data, or None.
        answered: The unit in which the model gives coordinates: set it with `answer_in`.
        normalises_questions: Whether problems lose capitals and punctuation at their end (model.question=normalised).
        pooled: The metrics that are not means over answers, and are computed from all answers at once.
        prompts: The prompts by their names in task.prompt; `{query}` stands for the row's problem, and `{unit}` for the
            unit of coordinates.
        prompt: The name of the prompt that is asked.
        reward: The reward of a task of the user's own, a static method. It takes a response and a ground truth, and
            returns a number or a dict of named parts. None: `reward=…` or `reward.function=…` must choose one.
    """

    styles: Sequence[str] = ("spaced",)
    segments = False
    asks_for_absent = False
    strict = True
    solutions: tuple[type, ...] = (str,)
    unit = "pixels of the stored image"
    compared = Coordinates.pixels
    data_tell_unit = False
    normalises_questions = False
    pooled: frozenset[str] = frozenset()
    prompts: ClassVar[dict[str, str]] = {"plain": "{query}"}
    reward: ClassVar[Callable[..., object] | None] = None

    def __init__(self, config: TaskConfig, seed: int) -> None:
        """Check the settings; no data are read.

        Args:
            config: The task's settings.
            seed: Draws the training rows of a drawn task.

        Raises:
            DataError: The task does not have a prompt of that name, or does not support a setting.
        """
        self.config = config
        self.seed = seed
        self.prompt = next(iter(self.prompts)) if config.prompt is None else config.prompt
        self.answered = self.compared
        self.template = self._template(self.prompt)
        self.system = None if config.system is None else read_text(Path(config.system), f"task.system={config.system}")
        if config.segmenter and not self.segments:
            raise DataError(f"task.segmenter={config.segmenter}: {config.name} has no masks, set it to null")
        if config.absent_share is not None and not self.asks_for_absent:
            raise DataError(
                f"task.absent_share={config.absent_share}: {config.name} cannot ask for absent objects, set it to null"
            )

    def train_rows(self) -> list[Row]:
        """Return the training rows. Raises DataError if they cannot be read."""
        return self._read("train")

    def held_out_rows(self) -> list[Row]:
        """Return the held-out rows. Raises DataError if they cannot be read."""
        return self._read("held_out")

    def _read(self, key: str) -> list[Row]:
        try:
            return [row for source in self.sources(key) for row in self.read_split(source, key)]
        except DataError as error:
            raise DataError(f"task.{key}: {error}") from error

    def sources(self, key: str) -> list[str]:
        """Return the names in task.`key`, which is `train` or `held_out`, with the files that patterns match.

        Raises DataError if it is neither a name nor a list of names, or if no file matches.
        """
        given = getattr(self.config, key)
        if given is None:
            raise DataError("it is not set: name a data file or a Hugging Face data set")
        sources = given if isinstance(given, list) else [given]
        if not sources or not all(isinstance(source, str) and source for source in sources):
            raise DataError(
                f"{short(given)} must be a data file, a folder or a Hugging Face data set, or a list of these"
            )
        return [path for source in sources for path in expand(source)]

    def read_split(self, source: str, key: str) -> list[Row]:
        """Return the rows of a source for `train` or `held_out`. Raises DataError if they cannot be read."""
        return self.read(source)

    def read(self, source: str) -> list[Row]:
        """Return the rows of a data set in the task's layout. Raises DataError if they cannot be read."""
        return read_rows(source, self.config.image_root, solutions=self.solutions, outside=self.config.outside_paths)

    def question(self, row: Row) -> str:
        """Return the row's problem in the prompt that task.prompt names."""
        return self.asked(query=self.query(row))

    def asked(self, **values: str) -> str:
        """Return the prompt with these values and the unit of coordinates in their places.

        Raises:
            DataError: a template of the user's names another value.
        """
        values["unit"] = UNITS[self.answered]
        if self.template is None:
            return self.prompts[self.prompt].format(**values)
        try:
            return Environment(undefined=StrictUndefined).from_string(self.template).render(**values)
        except TemplateError as error:
            raise DataError(f"task.prompt={self.prompt}: {error}; it may name {', '.join(values)}") from error

    def _template(self, prompt: str) -> str | None:
        """Return the user's template, or None if `prompt` is the name of a prompt.

        Raises:
            DataError: it is neither, or the template cannot be read.
        """
        if prompt in self.prompts:
            return None
        if prompt.endswith(".jinja"):
            template = read_text(Path(prompt), f"task.prompt={prompt}")
            try:
                Environment().parse(template)
            except TemplateSyntaxError as error:
                raise DataError(f"task.prompt={prompt}, line {error.lineno}: {error.message}") from error
            return template
        names = ", ".join(self.prompts)
        hint = nearest(prompt, self.prompts)
        raise DataError(f"task.prompt={prompt}: {self.config.name} has {names}, or name a file ending in .jinja.{hint}")

    def query(self, row: Row) -> str:
        """Return the row's problem as `model.question` wants it."""
        return row.problem.lower().rstrip(" .?!") if self.normalises_questions else row.problem

    def answer_in(self, coordinates: Coordinates) -> None:
        """Have answers and labels in the unit of the model, unless the data ask for the task's own."""
        if not self.data_tell_unit or self.tells_unit:
            self.answered = coordinates

    @property
    def tells_unit(self) -> bool:
        """Whether the prompt tells the unit of coordinates."""
        if self.template:
            return "unit" in meta.find_undeclared_variables(Environment().parse(self.template))
        return "{unit}" in self.prompts[self.prompt]

    def check(self, row: Row) -> None:  # noqa: B027
        """Check the row's solution. Raises DataError, which names the row, if it cannot be used.

        It is a BoxError if `repaired` may help.
        """

    def repaired(self, row: Row) -> Row:
        """Return the row with the corners of its boxes in order and within the image."""
        return row

    def largest_coordinate(self, row: Row) -> float | None:
        """Return the largest coordinate of the boxes in a row's solution, or None if it has none."""
        return None

    def ground_truth(self, row: Row, scale_x: float, scale_y: float) -> str:
        """Return the ground truth that rewards and metrics take, its coordinates in the unit `compared`.

        Args:
            row: The row; coordinates in its solution are in `unit`.
            scale_x: Width of the image that the model sees over that of the stored one, for solutions in pixels.
            scale_y: The same for the heights.
        """
        return row.solution

    def render(self, example: Example, style: str) -> str:
        """Return the ground truth as a response, in one of `styles`, after the data's reasoning if any.

        Its coordinates are in the ground truth's unit. Here it is the ground truth in <answer> tags, in every style.
        """
        return respond(example.ground_truth, example.thinking)

    def label(self, example: Example, style: str) -> str:
        """Return what `render` returns, its coordinates in the unit of the model."""
        return as_answered(self.render(example, style), example)

    def boxes(self, text: str, size: tuple[int, int]) -> list[Box]:
        """Return the boxes that a response gives, in pixels of an image of this width and height."""
        return []

    def true_boxes(self, example: Example) -> list[Box] | None:
        """Return the ground truth's boxes, in pixels of the model's image, or None if answers are not boxes."""
        return None

    def score(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return the scores of `score_answers`, for answers as answers.strict and the ground truth's unit ask for."""
        read = [replace(each, response=self._read_as_strict(readable(each.response, each))) for each in predictions]
        return score_answers(self, read)

    def shown_boxes(self, text: str, example: Example) -> list[Box]:
        """Return `boxes`, for answers as answers.strict reads them, in the unit of the ground truth."""
        return self.boxes(self._read_as_strict(readable(text, example)), example.size)

    def _read_as_strict(self, response: str) -> str:
        return response if self.strict else as_strict(response)

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return the scores of one answer to each held-out example. A metric without examples is left out."""

    def values(self, prediction: Prediction) -> Metrics:
        """Return what one answer adds to the metrics that are means over answers."""
        return {name: value for name, value in self.metrics([prediction]).items() if name not in self.pooled}

    def correct(self, prediction: Prediction) -> bool | None:
        """Return whether an answer is right, or None if the task grades answers and none is simply right."""
        return None

    def answer_key(self, prediction: Prediction) -> str | None:
        """Return the answer of a response as text that `same` compares, for the vote of majority@k.

        It is empty if the response has no answer, and None if the task cannot compare answers.
        """
        return None

    def same(self, first: str, second: str) -> bool:
        """Return whether two answers are equal, as texts of `answer_key`."""
        return first == second


def check_plain(row: Row, *kinds: type) -> None:
    """Check that a solution is plain text, and not text of a JSON value of these types or of a list of objects.

    Such as a chat message, or a conversation.

    Raises:
        DataError: It is. The message names the row.
    """
    try:
        value = json.loads(row.solution)
    except (ValueError, RecursionError):
        return
    if isinstance(value, kinds) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
        raise DataError(f"{row.where}: the solution must be plain text, not JSON: {short(row.solution)}")
