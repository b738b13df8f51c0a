"""What the base model is taught: questions about scenes, and their answers.

It learns to read, list, count, tell presence, select by parity, and ground digits that are there. It is never asked to
ground a digit that is absent: that there the answer is `[]` is left for post-training. It knows `[]` as the answer to
another question, as pretrained models do: a selection that holds nothing.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from visurf_ray.miniature.base_model import TAGS
from visurf_ray.miniature.scenes import Scene, parity_query, present_query, seen
from visurf_ray.tasks.boxes import PROMPT, STYLES, Target, dump_targets, render
from visurf_ray.tasks.responses import respond, rest


@dataclass(frozen=True)
class Lesson:
    """One training row: a scene, a question, and the answer that the model should give."""

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
    """Half of the questions are for digits that are not there."""
    values = scene.values()
    if rng.random() < 0.5:
        values = set(range(10)) - values
    value = int(rng.choice(sorted(values)))
    found = [digit for digit in scene.digits if digit.value == value]
    return f"Is there a {value}?", respond("yes" if found else "no", seen(scene, found))


def _ground(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    query = present_query(rng, scene)
    targets = [Target.around(digit.box) for digit in query.targets]
    return PROMPT.format(query=query.text), render(targets, thinking=seen(scene, query.targets))


def _select(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """List the even or the odd digits; `[]` where there are none."""
    query = parity_query(rng, scene)
    listed = seen(Scene(scene.pixels, query.targets)) or "[]"
    question = f"Find {query.text}. Reason in <think>, then list them in <answer>."
    return question, respond(listed, seen(scene, query.targets))


KINDS: dict[str, Callable[[np.random.Generator, Scene], tuple[str, str]]] = {
    "read": _read,
    "list": _list,
    "count": _count,
    "presence": _presence,
    "ground": _ground,
    "select": _select,
}


def make_lesson(rng: np.random.Generator, kind: str, scene: Scene, direct: float = 0.0) -> Lesson:
    """direct: the share of grounding questions that are answered without thinking, as pretrained models do at times."""
    question, answer = KINDS[kind](rng, scene)
    if direct and kind == "ground" and rng.random() < direct:
        answer = rest(answer)
    return Lesson(kind, scene, question, answer)


def tokenizer_corpus(rng: np.random.Generator, scenes: list[Scene]) -> list[str]:
    """Text that gives every number of the canvas, every question and every answer form tokens of their own.

    The tags, which are tokens of their own already, are left out: nothing is to be joined with them.
    """
    numbers = [str(number) for number in range(128) for _ in range(20)]
    forms = [dump_targets([], style) for style in STYLES] * 50
    lessons = [make_lesson(rng, kind, scene) for scene in scenes for kind in KINDS]
    texts = [text for lesson in lessons for text in (lesson.question, lesson.answer)]
    return numbers + forms + [part for text in texts for part in re.split("|".join(TAGS), text)]
