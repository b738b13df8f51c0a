"""Slightly broken JSON in answers (answers.strict=false): what is mended, and that every reader of answers reads it."""

import json

import pytest

from tests.unit.conftest import composed, prediction
from visurf_ray.answers.boxes import parse_items
from visurf_ray.answers.lenient import as_strict
from visurf_ray.answers.visual_rft import answered_detections
from visurf_ray.groups import Example, Prompt
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.tasks import load_task

ITEM = {"bbox_2d": [10, 10, 30, 20], "point_2d": [15, 15]}
TEXT = json.dumps(ITEM)
MENDED = {
    "fence": f"```json\n[{TEXT}]\n```",
    "fence without a language": f"\n```\n[{TEXT}]\n```\n",
    "fence on one line": f"```json [{TEXT}] ```",
    "fence of another language": f"```python\n[{TEXT}]\n```",
    "single quotation marks": f"[{TEXT}]".replace('"', "'"),
    "comma after the last item": f"[{TEXT},]",
    "commas within": '[{"bbox_2d": [10, 10, 30, 20,], "point_2d": [15, 15], },\n]',
    "bare object": TEXT,
    "all three": f"```json\n{TEXT[:-1]},}}\n```",
}
BROKEN = [
    "[1, 2",
    f"{TEXT}, {TEXT}",
    f"[{TEXT},,]",
    "[,]",
    f"Here: ```json\n[{TEXT}]\n```",
    f"[{TEXT}]]",
    "7",
    "",
    "```json\n```",
]


def answer(text: str) -> str:
    return f"<think>a</think><answer>{text}</answer>"


@pytest.mark.parametrize("case", MENDED)
def test_small_faults_are_mended(case):
    assert parse_items(answer(MENDED[case])) != [ITEM]
    assert parse_items(as_strict(answer(MENDED[case]))) == [ITEM]


@pytest.mark.parametrize("text", BROKEN)
def test_other_faults_stay(text):
    assert as_strict(answer(text)) == answer(text)
    assert parse_items(as_strict(answer(text))) is None


@pytest.mark.parametrize("text", ["[]", f"[{TEXT}]", '[{"label": "a,]", "bbox_2d": [1, 2, 3, 4]}]'])
def test_valid_json_means_the_same(text):
    assert parse_items(as_strict(answer(text))) == json.loads(text)


def test_detections_in_single_quotes_and_without_tags():
    text = "```json\n[{'Position': [1, 2, 3, 4], 'Confidence': 0.5,},]\n```"
    for response in (answer(text), text):
        assert answered_detections(response) is None
        assert answered_detections(as_strict(response)) == [((1, 2, 3, 4), 0.5)]


def test_a_response_without_an_answer_stays():
    for response in ("", "<think>[1,]</think>", "so be it"):
        assert as_strict(response) == response


@pytest.mark.parametrize("strict", [True, False])
def test_the_switch_reaches_rewards_metrics_and_drawn_boxes(strict):
    config = composed("task=non_object", "task.train=a", "task.held_out=a", f"answers.strict={strict}")
    reward = RewardSpec.of(config.reward, strict=config.answers.strict).load()
    task = load_task(config.task, config.seed, strict=config.answers.strict)
    truth = json.dumps([ITEM])
    for text in MENDED.values():
        assert reward(answer(text), truth).total == (2.0 if strict else 7.0)
        assert task.shown_boxes(answer(text), Example("a", "", "[]", Prompt([], []), (100, 60))) == (
            [] if strict else [(10, 10, 30, 20)]
        )
        assert task.score([prediction(truth, answer(text))])["format_rate"] == (0.0 if strict else 1.0)


def test_strict_is_the_default_and_a_users_function_sees_the_response_as_it_is(tmp_path):
    (tmp_path / "own.py").write_text("def length(response, ground_truth):\n    return len(response)\n")
    config = composed("reward=none", f"reward.function={tmp_path}/own.py:length")
    assert config.answers.strict
    response = answer(MENDED["fence"])
    assert RewardSpec.of(config.reward, strict=False).load()(response, "[]").total == len(response)
