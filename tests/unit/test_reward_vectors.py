"""Every recorded value of the originals (`data/reward_vectors.json`): ours is equal, or differs by a listed fix."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visurf_ray.answers.formulas import equal
from visurf_ray.answers.responses import answer_text
from visurf_ray.answers.visual_rft import box_iou, parse_detections
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.visual_rft_detection import confidence_reward, iou_reward, match
from visurf_ray.rewards.visual_rft_grounding import giou

ROWS = json.loads((Path(__file__).parent / "data" / "reward_vectors.json").read_text())
A = "[{'Position': [1, 2, 3, 4], 'Confidence': 1}]"


def part(name: str, *parts: str) -> Callable[..., float]:
    """Of a response, and a ground truth where the original takes one: the sum of those parts, or of all."""
    reward = load_reward(name)
    any_truth = {"visual_rft_detection": A, "visual_rft_grounding": "(1,1),(2,2)"}.get(name, "[]")

    def score(response: str, truth: str = any_truth) -> float:
        earned = reward(response, truth)
        return sum(earned.parts[key] for key in parts) if parts else earned.total

    return score


def batched(name: str, *parts: str) -> Callable[..., list[float]]:
    """Visual-RFT's rewards take lists of chats and of ground truths."""
    score = part(name, *parts)
    return lambda chats, *truths: [
        score(chat[0]["content"], *truth) for chat, *truth in zip(chats, *truths, strict=True)
    ]


def items_of(text: str) -> list[dict[str, Any]]:
    return [{"Position": list(box), "Confidence": confidence} for box, confidence in parse_detections(text) or []]


def extracted(response: str) -> list[dict[str, Any]] | None:
    """The original has no empty list: it gives None for it, as for what is no list."""
    return items_of(answer_text(response) or "") or None


def clicked(prediction: dict[str, Any], box: list[float]) -> float:
    """The original has the answer parsed already, and takes boxes where there are no points."""
    key = "point_2d" if prediction.get("points") else "bbox_2d"
    items = [{key: value} for value in prediction.get("points") or prediction["bboxes"]]
    return load_reward("point_in_box")(f"<answer>{json.dumps(items)}</answer>", json.dumps(box)).parts["accuracy"]


def math_accuracy(answers: list[dict[str, str]]) -> list[str]:
    share = sum(equal(answer["prediction"], answer["ground_truth"]) for answer in answers) / len(answers)
    return [f"Accuracy (correct_pred / total_cnt): {share:.4f}"]


OURS: dict[str, Callable[..., Any]] = {
    "vision_reasoner.vision_reasoner_format_reward": part("vision_reasoner", "thinking_format", "answer_format"),
    "vision_reasoner.vision_reasoner_accuracy_reward": part("vision_reasoner", "accuracy"),
    "vision_reasoner.vision_reasoner_non_repeat_reward": part("vision_reasoner", "non_repeat"),
    "vision_reasoner.vision_reasoner_compute_score": part("vision_reasoner"),
    "seg.seg_thinking_format_reward": part("vision_reasoner", "thinking_format"),
    "seg_restrict.seg_thinking_format_reward": part("vision_reasoner", "thinking_format"),
    "math.math_compute_score": part("math", "accuracy"),
    "r1v.r1v_format_reward": part("math", "thinking_format"),
    "r1v.r1v_accuracy_reward": part("math", "accuracy"),
    "r1v.r1v_compute_score": lambda response, truth: part("math")(response, truth) / 2,
    "grpo.accuracy_reward_iou": batched("visual_rft_detection", "iou"),
    "grpo.accuracy_reward_confidence": batched("visual_rft_detection", "confidence"),
    "grpo.format_reward": batched("visual_rft_detection", "format"),
    "grpo.extract_bbox": extracted,
    "grpo.calculate_iou": box_iou,
    "grpo.sort_and_calculate_iou": lambda truth, given: match(
        [(item["Position"], item["Confidence"]) for item in given], [item["Position"] for item in truth]
    ),
    "grpo.compute_reward_iou_v2": iou_reward,
    "grpo.compute_reward_confidence": confidence_reward,
    "grpo.remove_duplicates": lambda items: items_of(json.dumps(items)),
    "grpo_classification.accuracy_reward": batched("visual_rft_classification", "accuracy"),
    "grpo_classification.format_reward": batched("visual_rft_classification", "format"),
    "grpo_lisa.accuracy_reward": batched("visual_rft_grounding", "giou"),
    "grpo_lisa.format_reward": batched("visual_rft_grounding", "format"),
    "grpo_lisa.compute_giou": lambda a, b: giou((*a[0], *a[1]), (*b[0], *b[1])) + 1,
    "evaluation_segmentation.compute_bbox_iou": box_iou,
    "evaluation_gui.process_batch(row).accurate": clicked,
    "calculate_math_acc(stdout)": math_accuracy,
}

# The functions of which we have none, and why.
ABSENT = {
    "seg.seg_": "the reward of boxes with two points each, which VisionReasoner's has replaced",
    "seg_restrict.seg_": "the same",
    "grpo.compute_reward_iou": "the mean over the given boxes, which the original does not use either",
    "visurf_model.": "evaluation, no reward",
    "evaluation_segmentation.": "evaluation of masks, no reward",
    "evaluation_anomaly.": "evaluation of masks, no reward",
    "calculate_iou_with_bbox_nonobj": "evaluation of masks, no reward",
    "calculate_acc_auc": "evaluation of masks, no reward",
}

# The rows where ours differs on purpose: (function, case): the original's value, ours, and which mend it is.
_NEWLINE = "the answer may hold line breaks"
_LAST = "of several answers the last counts"
_BOXES_ALONE = "boxes are compared, not the numbers that math-verify finds"
_NO_OBJECTS = "that there is nothing may be right"
MENDED: dict[tuple[str, str], tuple[Any, Any, str]] = {
    ("vision_reasoner.vision_reasoner_format_reward", "trailing newline -> fullmatch fails"): (
        2.0,
        3.0,
        "white space around the response costs nothing",
    ),
    ("vision_reasoner.vision_reasoner_accuracy_reward", "missing point in one of two -> everything lost"): (
        0.0,
        2.5,
        "an item without a point loses its point's credit alone: (3 + 2) / 2",
    ),
    ("vision_reasoner.vision_reasoner_accuracy_reward", "150 predicted, one gt"): (
        3 / 120,
        3 / 150,
        "every surplus box counts, not the first 120 alone",
    ),
    ("vision_reasoner.vision_reasoner_non_repeat_reward", "chinese full stop is not a separator"): (
        1.0,
        0.0,
        "a Chinese full stop ends a sentence",
    ),
    ("r1v.r1v_accuracy_reward", "newline inside answer: regex lacks DOTALL"): (0.0, 1.0, _NEWLINE),
    ("r1v.r1v_compute_score", "newline inside answer: regex lacks DOTALL"): (0.5, 1.0, _NEWLINE),
    ("r1v.r1v_accuracy_reward", "two answers, first used"): (1.0, 0.0, _LAST),
    ("r1v.r1v_format_reward", "two answers, first used"): (1.0, 0.0, "two answers are not the form of one"),
    ("r1v.r1v_compute_score", "two answers, first used"): (1.0, 0.0, f"{_LAST}, and two do not have the form"),
    ("grpo.accuracy_reward_confidence", "perfect conf 0.9 -> math_verify shortcut"): ([1.0], [0.9], _BOXES_ALONE),
    ("grpo.accuracy_reward_iou", "y1 same, box elsewhere, two gt"): ([1.0], [0.0], _BOXES_ALONE),
    ("grpo.accuracy_reward_confidence", "y1 same, box elsewhere, two gt"): ([1.0], [0.7], _BOXES_ALONE),
    ("grpo.accuracy_reward_iou", "newlines in answer: regex has no DOTALL"): ([0.0], [0.9328340178787147], _NEWLINE),
    ("grpo.accuracy_reward_confidence", "newlines in answer: regex has no DOTALL"): ([0.0], [0.9], _NEWLINE),
    ("grpo.accuracy_reward_iou", "No Objects vs No Objects"): ([0.0], [1.0], _NO_OBJECTS),
    ("grpo.accuracy_reward_confidence", "No Objects vs No Objects"): ([0.0], [1.0], _NO_OBJECTS),
    ("grpo.accuracy_reward_iou", "[] vs []"): ([0.0], [1.0], _NO_OBJECTS),
    ("grpo.accuracy_reward_confidence", "[] vs []"): ([0.0], [1.0], _NO_OBJECTS),
    ("grpo.extract_bbox", "trailing space after ]"): (
        None,
        [{"Position": [100, 110, 300, 310], "Confidence": 1}],
        "white space within the answer costs nothing",
    ),
    ("grpo_classification.accuracy_reward", "empty answer is a substring of everything"): (
        [1.0],
        [0.0],
        "an empty answer is wrong",
    ),
    ("grpo_classification.accuracy_reward", "BUG number collision -> 1.0"): (
        [1.0],
        [0.0],
        "names are compared, not the numbers that math-verify finds",
    ),
    ("grpo_lisa.accuracy_reward", "BUG corners swapped -> full 2.0"): ([2.0], [0.0], "swapped corners are no box"),
}
# Several rows of one name: the value tells which is meant.
MENDED_ARGUMENTS: dict[tuple[str, str], tuple[Any, Any, str]] = {
    ("grpo.compute_reward_confidence", "[[[0, -0.5]]]"): (1.5, 0.0, "what is no confidence earns nothing"),
    ("grpo.compute_reward_iou_v2", "[[], 0]"): ({"error": "ZeroDivisionError"}, 0.0, "no boxes are no error"),
}


def absent(function: str) -> bool:
    return function not in OURS and any(function.startswith(prefix) for prefix in ABSENT)


def mended(row: dict[str, Any]) -> tuple[Any, Any, str] | None:
    by_case = MENDED.get((row["function"], row["case"]))
    return by_case or MENDED_ARGUMENTS.get((row["function"], json.dumps(row["args"])))


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return abs(ours - theirs) <= 1e-9
    return ours == theirs


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if not absent(row["function"])],
    ids=lambda row: f"{row['function']}-{row['case']}",
)
def test_each_value_equals_the_originals_or_is_fixed_on_purpose(row):
    ours = OURS[row["function"]](*row["args"])
    if (mend := mended(row)) is None:
        assert same(ours, row["value"]), f"ours is {ours}, the original's {row['value']}"
    else:
        original, expected, _ = mend
        assert same(original, row["value"]) and not same(ours, original)
        assert same(ours, expected)


def test_every_listed_fix_is_about_a_recorded_row():
    rows = {(row["function"], row["case"]) for row in ROWS}
    assert set(MENDED) <= rows
    assert set(MENDED_ARGUMENTS) <= {(row["function"], json.dumps(row["args"])) for row in ROWS}
    assert all(any(row["function"].startswith(prefix) for row in ROWS) for prefix in ABSENT)
