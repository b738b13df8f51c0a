"""The training rows of the base model: questions about scenes, and their answers.

The base model learns to read, list and count digits, to tell whether one is present, to select by parity, and to ground
digits that are present. It is never asked to ground an absent digit: answering `[]` there is left to post-training. It
knows `[]` from another question, as pretrained models do: the selection by parity may be empty.

For the other tasks it learns the form of the answer on easy cases: sums up to nine, the names of the digits up to six,
and single boxes in thousandths of the image's sides. The harder cases are left to post-training too.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from visurf_ray.answers.boxes import Target, dump_targets, render
from visurf_ray.answers.responses import STYLES, respond, rest, thought
from visurf_ray.miniature.base_model import TAGS
from visurf_ray.miniature.classification import NAMES, MiniatureClassification
from visurf_ray.miniature.detection import MiniatureDetection, thousandths
from visurf_ray.miniature.drawn import FIND_PROMPT
from visurf_ray.miniature.grounding import MiniatureGrounding
from visurf_ray.miniature.math import MiniatureMath
from visurf_ray.miniature.scenes import Digit, Scene, parity_query, present_query, seen


@dataclass(frozen=True)
class Lesson:
    """A question about a scene and its right answer, to train on or to examine with."""

    kind: str
    scene: Scene
    question: str
    answer: str


def _read(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    return "Read the digits.", respond("digits " + " ".join(str(digit.value) for digit in scene.digits))


def _list(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    return "List every digit with its box.", respond(seen(scene))


def _count(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    return "How many digits are there?", respond(str(len(scene.digits)), seen(scene))


def _presence(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Ask whether a digit is present. Half of the questions ask for absent digits."""
    values = scene.values()
    if rng.random() < 0.5:
        values = set(range(10)) - values
    value = int(rng.choice(sorted(values)))
    found = [digit for digit in scene.digits if digit.value == value]
    return f"Is there a {value}?", respond("yes" if found else "no", seen(scene, found))


def _ground(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    query = present_query(rng, scene)
    targets = [Target.around(digit.box) for digit in query.targets]
    return FIND_PROMPT.format(query=query.text), render(targets, thinking=seen(scene, query.targets))


def _select(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Ask for a list of the even or the odd digits; the answer is `[]` if there are none."""
    query = parity_query(rng, scene)
    listed = seen(Scene(scene.pixels, query.targets)) or "[]"
    question = f"Find {query.text}. Reason in <think>, then list them in <answer>."
    return question, respond(listed, seen(scene, query.targets))


def _sum(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    question = MiniatureMath.prompts["detailed"].format(query=MiniatureMath.question_text)
    return question, f"{thought(seen(scene))}\\boxed{{{sum(scene.values())}}}"  # a scene shows each value once


def _name(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    question = MiniatureClassification.prompts["detailed"].format(query=MiniatureClassification.question_text)
    return question, respond(NAMES[scene.digits[0].value], seen(scene))


def _detect(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    digit = _one_of(rng, scene)
    answer = json.dumps([{"Position": list(thousandths(digit.box)), "Confidence": 1.0}])
    return MiniatureDetection.prompts["detailed"].format(query=f"{digit.value}s"), respond(answer, seen(scene, [digit]))


def _corners(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    digit = _one_of(rng, scene)
    x1, y1, x2, y2 = thousandths(digit.box)
    question = MiniatureGrounding.prompts["detailed"].format(query=f"the {digit.value}")
    return question, respond(f"({x1}, {y1}), ({x2}, {y2})", seen(scene, [digit]))


def _one_of(rng: np.random.Generator, scene: Scene) -> Digit:
    return scene.digits[rng.integers(len(scene.digits))]


# Questions of the base skills, and of the answer formats of other tasks. Each returns a question and its answer.
KINDS: dict[str, Callable[[np.random.Generator, Scene], tuple[str, str]]] = {
    "read": _read,
    "list": _list,
    "count": _count,
    "presence": _presence,
    "ground": _ground,
    "select": _select,
}
FORMS: dict[str, Callable[[np.random.Generator, Scene], tuple[str, str]]] = {
    "sum": _sum,
    "name": _name,
    "detect": _detect,
    "corners": _corners,
}
_EASY: dict[str, Callable[[Scene], bool]] = {
    "sum": lambda scene: len(scene.digits) <= 2 and sum(scene.values()) <= 9,
    "name": lambda scene: len(scene.digits) == 1 and max(scene.values()) <= 6,
    "corners": lambda scene: len(scene.digits) <= 2,
}
_BOXES = ("ground", "detect", "corners")  # kinds that are sometimes answered without thinking


def suitable(kind: str, draw: Callable[[], Scene]) -> Scene:
    """Draw scenes until one is easy enough for this kind of lesson, and return it."""
    easy = _EASY.get(kind, lambda scene: True)
    while not easy(scene := draw()):
        continue
    return scene


def make_lesson(rng: np.random.Generator, kind: str, scene: Scene, direct: float = 0.0) -> Lesson:
    """Make a lesson of this kind about a scene.

    Args:
        rng: The random numbers.
        kind: A key of KINDS or FORMS.
        scene: The scene.
        direct: The share of `ground`, `detect` and `corners` lessons whose answer has no thinking; pretrained models
            sometimes answer so.
    """
    question, answer = (KINDS | FORMS)[kind](rng, scene)
    if direct and kind in _BOXES and rng.random() < direct:
        answer = rest(answer)
    return Lesson(kind, scene, question, answer)


def tokenizer_corpus(rng: np.random.Generator, scenes: list[Scene]) -> list[str]:
    """Return texts from which the tokenizer learns its tokens: the numbers 0 to 127, `[]`, and lessons of KINDS.

    The tags are removed, because they are tokens already and must not be merged with other text. Lessons of FORMS are
    left out, because a pretrained tokenizer has no tokens for the formats of particular tasks either.
    """
    numbers = [str(number) for number in range(128) for _ in range(20)]
    empty_answers = [dump_targets([], style) for style in STYLES] * 50
    lessons = [make_lesson(rng, kind, scene) for scene in scenes for kind in KINDS]
    texts = [text for lesson in lessons for text in (lesson.question, lesson.answer)]
    return numbers + empty_answers + [part for text in texts for part in re.split("|".join(TAGS), text)]
