"""Sample responses to look at: the image with its boxes, the text, the reward."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import wandb
from PIL import Image, ImageDraw, ImageOps

from visurf_ray.groups import Example, Group, Prediction, Source

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the sample's image

TRUTH_COLOUR = (0, 184, 82)
ANSWER_COLOUR = (255, 112, 10)
LINE = 2  # width of lines, in pixels of the drawn picture
_FRAME_COLOUR = (128, 128, 128)

_COLUMNS: list[str | int] = [
    "step",
    "image",
    "question",
    "truth",
    "source",
    "text",
    "reward",
    "smoothed from",
    "parts",
    "advantage",
]


@dataclass(frozen=True)
class SampleResponse:
    """A response as it is shown: its rewards after reward control, and its boxes in pixels of the image.

    An answer of an evaluation has no reward: it is None.
    """

    source: Source
    text: str
    reward: float | None
    parts: dict[str, float]
    advantage: float | None
    boxes: list[Box]
    smoothed_from: float | None = None


@dataclass(frozen=True)
class Sample:
    """An example and some of its responses. `truth` has the true boxes; None if the task has no boxes."""

    image: Image.Image
    question: str
    truth: list[Box] | None
    responses: list[SampleResponse]


@dataclass(frozen=True)
class SampleChooser:
    """Chooses the responses that a run shows.

    Attributes:
        count: groups in each table.
        every: a table is made at the steps 1, 1 + every, 1 + 2 every, …; 0 makes none.
        images: returns an example's images as the model sees them.
        boxes: takes a response and its example; returns the response's boxes in pixels of that image.
        true_boxes: returns the true boxes of an example; None if the task has no boxes.
        answers: held-out examples whose answers each evaluation shows, of each part and each set.
    """

    count: int
    every: int
    images: Callable[[Example], list[Image.Image]]
    boxes: Callable[[str, Example], list[Box]]
    true_boxes: Callable[[Example], list[Box] | None]
    answers: int = 0

    def due(self, step: int) -> bool:
        """Return whether responses of a step are shown; steps count from 1."""
        return self.every > 0 and (step - 1) % self.every == 0

    def choose(self, groups: Sequence[Group]) -> list[Sample]:
        """Return the rollouts of highest and lowest reward, and the label if there is one, of the first groups."""
        return [self._sample(group) for group in groups[: self.count]]

    def _sample(self, group: Group) -> Sample:
        example = group.example
        by_reward = sorted(group.rollouts, key=lambda rollout: rollout.reward)
        chosen = ([by_reward[-1], by_reward[0]] if by_reward else []) + ([group.label] if group.label else [])
        responses = [
            SampleResponse(
                source=response.source,
                text=response.text,
                reward=response.reward,
                parts=response.reward_parts,
                advantage=response.advantage,
                boxes=self.boxes(response.text, example),
                smoothed_from=response.smoothed_from,
            )
            for response in chosen
        ]
        return self._shown(example, responses)

    def answered(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Sample]:
        """Return the first answer to each of the first examples of each part and each set.

        Args:
            predictions: the same number of answers to each example, those to the same example one after the other.
        """
        each = len(predictions) // max(1, len(examples))
        shown: Counter[str] = Counter()  # by part
        samples = []
        for example, answer in zip(examples, predictions[::each] if each else (), strict=False):
            if shown[example.part] < self.answers:
                shown[example.part] += 1
                samples.append(self._shown(example, [self._answer(example, answer)]))
        return samples

    def _answer(self, example: Example, answer: Prediction) -> SampleResponse:
        boxes = self.boxes(answer.response, example)
        return SampleResponse(Source.ROLLOUT, answer.response, None, {}, None, boxes)

    def _shown(self, example: Example, responses: list[SampleResponse]) -> Sample:
        return Sample(_side_by_side(self.images(example)), example.question, self.true_boxes(example), responses)


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Return one picture of all images; without any, a small white one."""
    if len(images) == 1:
        return images[0]
    width, height = sum(image.width for image in images) or 28, max((image.height for image in images), default=28)
    joined = Image.new("RGB", (width, height), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width
    return joined


def draw(sample: Sample, response: SampleResponse, side: int = 336) -> Image.Image:
    """Return a copy of the image with the true boxes (green, around each box) and the answered ones (orange, inside).

    A frame of LINE pixels surrounds the image, so that lines around a box at its edge are visible. Boxes may be
    inverted or outside of the image, as a policy's answers can be.

    Args:
        side: the longer side's largest length in pixels, without the frame. A smaller image is enlarged by the largest
            whole factor that fits, which keeps its pixels sharp.
    """
    longest = max(sample.image.size)
    scale = float(side // longest) if longest <= side else side / longest
    width, height = (max(1, round(edge * scale)) for edge in sample.image.size)
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    picture = sample.image.convert("RGB").resize((width, height), resampling)
    picture = ImageOps.expand(picture, border=LINE, fill=_FRAME_COLOUR)
    pen = ImageDraw.Draw(picture)
    for boxes, colour, outset in ((sample.truth or [], TRUTH_COLOUR, LINE), (response.boxes, ANSWER_COLOUR, 0)):
        for x1, y1, x2, y2 in boxes:
            left, right = _span(x1, x2, scale, width)
            top, bottom = _span(y1, y2, scale, height)
            outline = (left - outset, top - outset, right + outset, bottom + outset)
            pen.rectangle(outline, outline=colour, width=LINE)
    return picture


def _span(start: float, end: float, scale: float, limit: int) -> tuple[int, int]:
    """Return the first and last pixel of a drawn box along an axis of `limit` pixels, counted with the frame."""
    first, last = (min(max(round(edge * scale), 0), limit) for edge in sorted((start, end)))
    first = min(first, limit - 1)
    return LINE + first, LINE + max(first, last - 1)


def sample_table(step: int, samples: list[Sample]) -> wandb.Table:
    """Return a W&B table with a row for each response."""
    table = wandb.Table(columns=_COLUMNS)
    for sample in samples:
        truth = json.dumps(sample.truth)
        for response in sample.responses:
            table.add_data(
                step,
                wandb.Image(draw(sample, response)),
                sample.question,
                truth,
                response.source.value,
                response.text,
                response.reward,
                response.smoothed_from,
                json.dumps(response.parts),
                response.advantage,
            )
    return table


def answer_table(step: int, samples: list[Sample]) -> wandb.Table:
    """Return a W&B table with a row for each answer of an evaluation."""
    table = wandb.Table(columns=["step", "image", "question", "truth", "text"])
    for sample in samples:
        for answer in sample.responses:
            picture = wandb.Image(draw(sample, answer))
            table.add_data(step, picture, sample.question, json.dumps(sample.truth), answer.text)
    return table
