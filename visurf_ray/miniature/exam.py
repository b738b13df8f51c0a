"""Evaluates a base model on held-out scenes by its greedy answers; teacher-forced scores would be too optimistic."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch

from visurf_ray.aliases import HFModel, Processor
from visurf_ray.answers.boxes import Box, box_in, parse_items, parse_targets
from visurf_ray.answers.responses import answer_or_rest, answer_text, has_thinking
from visurf_ray.answers.visual_rft import answered_detections, box_iou, parse_box
from visurf_ray.miniature.lessons import FORMS, KINDS, Lesson, make_lesson, suitable
from visurf_ray.miniature.scenes import Scene, Split, draw_scene

_BOXES: dict[str, Callable[[str], Sequence[Box]]] = {
    "detect": lambda response: [box for box, _ in answered_detections(response) or []],
    "corners": lambda response: [box] if (box := parse_box(answer_or_rest(response))) else [],
}
_LISTED = re.compile(r"a (\d) \[(\d+), (\d+), (\d+), (\d+)\]")


def examine(
    model: HFModel,
    processor: Processor,
    *,
    split: Split,
    scenes: int,
    digits: Sequence[int] = (1, 2, 3, 4),
    seed: int = 1,
) -> dict[str, float]:
    """Ask every kind of question and score the greedy answers.

    Args:
        model: The model.
        processor: Its processor.
        split: The split to take scans from.
        scenes: The number of scenes for each kind of question.
        digits: The numbers of digits that a scene may have.
        seed: Draws scenes and questions.

    Returns:
        Shares between 0 and 1.

        - format: answers in the form that the question asks for, without the kinds in FORMS.
        - list: of all digits, those that are listed with a box of IoU above 0.5.
        - read, count, presence, select, sum, name: right answers to the kind of that name.
        - bbox_acc: for grounding, the number of true boxes answered with an IoU above 0.5, over the number of answered
          or of true boxes, whichever is larger.
        - empty: grounding questions answered `[]`, although the digits are there.
        - detect, corners: answers with one box, in thousandths, of IoU above 0.5.
    """
    rng = np.random.default_rng(seed)
    scores: dict[str, list[float]] = {"format": [], "list": [], "bbox_acc": [], "empty": []}

    def draw() -> Scene:
        return draw_scene(rng, split, digits=int(rng.choice(digits)))

    for kind in KINDS | FORMS:
        lessons = [make_lesson(rng, kind, suitable(kind, draw)) for _ in range(scenes)]
        for lesson, response in zip(lessons, answer(model, processor, lessons), strict=True):
            if kind in KINDS:
                thinks = kind not in ("read", "list")
                scores["format"].append(has_thinking(response) if thinks else answer_text(response) is not None)
            if kind == "list":
                scores["list"].extend(_listing_scores(lesson, response))
            elif kind == "ground":
                scores["bbox_acc"].append(_grounding_score(lesson, response))
                scores["empty"].append(parse_items(response) == [])
            elif kind in _BOXES:
                given, true = _BOXES[kind](response), _BOXES[kind](lesson.answer)
                scores.setdefault(kind, []).append(len(given) == 1 and box_iou(given[0], true[0]) > 0.5)
            else:
                scores.setdefault(kind, []).append(answer_or_rest(response) == answer_or_rest(lesson.answer))
    return {name: round(float(np.mean(values)), 4) for name, values in scores.items()}


@torch.no_grad()
def answer(model: HFModel, processor: Processor, lessons: list[Lesson], batch_size: int = 50) -> list[str]:
    """Return the greedy responses to the lessons' questions, without special tokens."""
    model.eval()
    responses: list[str] = []
    for begin in range(0, len(lessons), batch_size):
        part = lessons[begin : begin + batch_size]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": lesson.question}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for lesson in part
        ]
        inputs = processor(
            text=texts,
            images=[lesson.scene.image for lesson in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=120)
        responses += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return responses


def _listing_scores(lesson: Lesson, response: str) -> list[float]:
    listed: dict[int, Box] = {}
    for value, x1, y1, x2, y2 in _LISTED.findall(answer_text(response) or ""):
        listed[int(value)] = int(x1), int(y1), int(x2), int(y2)
    return [
        float(digit.value in listed and box_iou(listed[digit.value], digit.box) > 0.5) for digit in lesson.scene.digits
    ]


def _grounding_score(lesson: Lesson, response: str) -> float:
    given = [box_in(item) for item in parse_items(response) or [] if isinstance(item, dict)]
    true = [target.bbox_2d for target in parse_targets(answer_text(lesson.answer) or "")]
    hits = sum(any(box is not None and box_iou(box, target) > 0.5 for box in given) for target in true)
    return hits / max(len(given), len(true))
