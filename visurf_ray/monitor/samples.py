"""Sample responses that a person can look at: the image with its boxes, the text, what it earned."""

import json
from dataclasses import dataclass

import wandb
from PIL import Image, ImageDraw, ImageOps

from visurf_ray.groups import Source

Box = tuple[float, float, float, float]

TRUTH_COLOUR = (0, 184, 82)
ANSWER_COLOUR = (255, 112, 10)
LINE = 2  # pixels of the drawn picture
_FRAME_COLOUR = (128, 128, 128)

_COLUMNS: list[str | int] = ["step", "image", "question", "truth", "source", "text", "reward", "parts", "advantage"]


@dataclass(frozen=True)
class SampleResponse:
    """One response. `boxes` are those it answers, (x1, y1, x2, y2) in pixels of the sample's image."""

    source: Source
    text: str
    reward: float
    parts: dict[str, float]
    advantage: float | None
    boxes: list[Box]


@dataclass(frozen=True)
class Sample:
    """One example and some of its responses. `truth`: the boxes meant, in pixels of `image`, or None without boxes."""

    image: Image.Image
    question: str
    truth: list[Box] | None
    responses: list[SampleResponse]


def draw(sample: Sample, response: SampleResponse, side: int = 336) -> Image.Image:
    """The sample's image with the truth (green, around each box) and the answer (orange, inside each box).

    The longer side becomes `side` pixels; a small image grows by a whole factor, so that its pixels stay crisp. A frame
    of LINE pixels goes around it: lines around a box at the image's edge show too. Boxes may be inverted or lie outside
    the image, as a policy's answers do.
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
    """First and last pixel inside the frame of a drawn box, along one axis of `limit` pixels."""
    first, last = (min(max(round(edge * scale), 0), limit) for edge in sorted((start, end)))
    first = min(first, limit - 1)
    return LINE + first, LINE + max(first, last - 1)


def sample_table(step: int, samples: list[Sample]) -> wandb.Table:
    """One row for each response."""
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
                json.dumps(response.parts),
                response.advantage,
            )
    return table
