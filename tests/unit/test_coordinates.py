"""Answers in thousandths and in pixels: the same scene earns the same reward, whatever unit the model has learnt."""

import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from visurf_ray.answers.coordinates import as_answered, readable
from visurf_ray.config.load import load_config
from visurf_ray.feed.loader import ExampleLoader
from visurf_ray.groups import Coordinates, Example, Prediction, Prompt
from visurf_ray.models import coordinates_of
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.tasks import load_task

PIXELS, THOUSANDTHS = Coordinates.pixels, Coordinates.thousandths
SIZE = (560, 840)


def example(answered, compared=PIXELS, size=SIZE) -> Example:
    return Example("a", "", "[]", Prompt([], []), size, answered=answered, compared=compared)


def test_thousandths_are_read_in_pixels():
    text = '<think>at [10, 10]</think><answer>[{"bbox_2d": [100, 200, 500, 1000], "point_2d": [333, 1]}]</answer>'
    found = json.loads(readable(text, example(THOUSANDTHS)).partition("<answer>")[2].removesuffix("</answer>"))
    assert found == [{"bbox_2d": [56.0, 168.0, 280.0, 840.0], "point_2d": [186.48, 0.84]}]
    assert readable(text, example(THOUSANDTHS)).startswith("<think>at [10, 10]</think>"), "the thought stays"
    assert readable(text, example(PIXELS)) == text
    prediction = Prediction.of(example(THOUSANDTHS), text)
    assert readable(text, prediction) == readable(text, example(THOUSANDTHS))


@pytest.mark.parametrize(
    ("label", "written"),
    [
        (
            '<answer>[{"bbox_2d": [56, 168, 280, 840]}]</answer>',
            '<answer>[{"bbox_2d": [100, 200, 500, 1000]}]</answer>',
        ),
        ('<answer>[{"point_2d":[186,1]}]</answer>', '<answer>[{"point_2d":[332,1]}]</answer>'),
        ("<answer>[{'Position': [56, 0, 560, 840]}]</answer>", "<answer>[{'Position': [100, 0, 1000, 1000]}]</answer>"),
        ("<answer>(56, 168), (280, 840)</answer>", "<answer>(100, 200), (500, 1000)</answer>"),
        ("<answer>[]</answer>", "<answer>[]</answer>"),
        ("<answer>No Objects</answer>", "<answer>No Objects</answer>"),
    ],
)
def test_labels_are_written_in_whole_thousandths(label, written):
    assert as_answered(label, example(THOUSANDTHS)) == written
    assert as_answered(label, example(PIXELS)) == label


@pytest.mark.parametrize("number", ["5e2", "500.00000000000001", "0.5E+3", "500.0"])
def test_numbers_of_json_are_read_however_they_are_written(number):
    text = f'<answer>[{{"point_2d": [{number}, 100]}}]</answer>'
    assert readable(text, example(THOUSANDTHS)) == '<answer>[{"point_2d": [280.0, 84.0]}]</answer>'


@pytest.mark.parametrize("text", ["<answer>[{'bbox_2d': [1e9999, 2]}]", '[{"bbox_2d": ["a", 1]}]', "(1", "", "(x, y)"])
def test_broken_answers_stay_broken(text):
    assert readable(text, example(THOUSANDTHS)) == text


def test_an_example_without_an_image_has_no_coordinates_to_convert():
    assert readable('[{"bbox_2d": [1, 2, 3, 4]}]', example(THOUSANDTHS, size=(0, 0))) == '[{"bbox_2d": [1, 2, 3, 4]}]'


BOXES = [[60, 90, 300, 420], [310, 500, 520, 800]]
OBJECTS = [{"bbox_2d": box, "point_2d": [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2]} for box in BOXES]
IN_THOUSANDTHS = [[round(value * 1000 / SIZE[axis % 2]) for axis, value in enumerate(box)] for box in BOXES]
CASES = {  # task: its reward, and the solution of a row
    "non_object": ("vision_reasoner", json.dumps(OBJECTS)),
    "anomaly": ("vision_reasoner", json.dumps(OBJECTS)),
    "lesion": ("vision_reasoner", json.dumps(OBJECTS[:1])),
    "gui_grounding": ("point_in_box", json.dumps(OBJECTS[:1])),
    "reasoning_segmentation": ("vision_reasoner", json.dumps(OBJECTS)),
    "detection": (
        "visual_rft_detection",
        str([{"Position": box, "Confidence": 1} for box in IN_THOUSANDTHS]),
    ),
    "grounding": ("visual_rft_grounding", "<answer>({},{}),({},{})</answer>".format(*IN_THOUSANDTHS[0])),
}


@pytest.fixture
def scene(tmp_path, processor):
    """Return a task, its reward and an example of one scene, for a model that answers in this unit."""
    Image.new("RGB", SIZE).save(tmp_path / "a.png")

    def make(name: str, unit: Coordinates):
        reward, solution = CASES[name]
        path = tmp_path / f"{name}.jsonl"
        problem = "Detect all objects belonging to the category 'dog' in the image." if name == "detection" else "dogs"
        path.write_text(json.dumps({"problem": problem, "solution": solution, "image": "a.png"}) + "\n")
        settings = [f"task={name}", f"reward={reward}", f"model.coordinates={unit}", "task.prompt=detailed"]
        config = load_config([*settings, f"task.train={path}", f"task.held_out={path}"])
        task = load_task(config.task, 0, model=config.model)
        loader = ExampleLoader(task, processor, seed=0, max_prompt_tokens=5000, put=lambda value: value)
        loader.check()
        return task, RewardSpec.of(config.reward).load(), loader.held_out_examples(None)[0]

    return make


@pytest.mark.parametrize("name", CASES)
def test_the_same_scene_earns_the_same_reward_in_both_units(name, scene):
    """For the label, and for answers that are shifted by more and more: thresholds stay what they are in pixels."""
    earned, measured, boxes = {}, {}, {}
    for unit in (PIXELS, THOUSANDTHS):
        task, reward, one = scene(name, unit)
        assert one.answered is unit and one.compared is task.compared
        label = task.label(one, task.styles[0])
        in_pixels = replace(one, compared=PIXELS)  # what the model means
        answers = [label]
        for shift in (4, 14, 60):
            moved = as_answered(_moved(readable(label, in_pixels), shift), replace(one, compared=PIXELS))
            answers.append(moved)
        earned[unit] = [reward(readable(answer, one), one.ground_truth).parts for answer in answers]
        predictions = [Prediction.of(one, answer) for answer in answers]
        measured[unit] = task.score(predictions)
        boxes[unit] = task.shown_boxes(label, one)
        asked = task.question(type("Row", (), {"problem": "dog", "solution": "[]"})()) if name != "detection" else "in "
        assert name == "detection" or ("in pixels" in asked) is (unit is PIXELS)
    for ours, theirs in zip(earned[PIXELS], earned[THOUSANDTHS], strict=True):
        assert ours == pytest.approx(theirs, abs=5e-3)
    assert measured[PIXELS] == pytest.approx(measured[THOUSANDTHS], abs=5e-3)
    assert len(set(map(str, earned[PIXELS]))) > 1, "shifts cost something"
    for ours, theirs in zip(boxes[PIXELS], boxes[THOUSANDTHS], strict=True):
        assert ours == pytest.approx(theirs, abs=1.5)
    assert boxes[PIXELS][0] == pytest.approx(task.true_boxes(one)[0], abs=1.5)


def _moved(answer: str, shift: int) -> str:
    """The answer with each number of its boxes and points larger by `shift` pixels."""
    return re.sub(r"(?<=[\[(,\s])\d+(?:\.\d+)?(?=\s*[,\])])", lambda found: f"{float(found[0]) + shift:.2f}", answer)


@pytest.mark.parametrize(
    ("model", "unit"), [("miniature", PIXELS), ("miniature model.coordinates=thousandths", THOUSANDTHS)]
)
def test_the_family_tells_the_unit_unless_it_is_set(model, unit):
    assert coordinates_of(load_config(f"model={model}".split()).model) is unit


def test_a_plain_prompt_of_visual_rft_keeps_the_unit_that_the_data_tell(scene, tmp_path):
    path = tmp_path / "a.jsonl"
    config = load_config(["task=grounding", "task.prompt=plain", f"task.held_out={path}", f"task.train={path}"])
    assert load_task(config.task, 0, model=config.model).answered is THOUSANDTHS


def test_questions_are_normalised_on_request():
    config = load_config(
        ["task=vqa", "task.prompt=plain", "model.question=normalised", "task.train=a", "task.held_out=a"]
    )
    task = load_task(config.task, 0, model=config.model)
    assert task.question(type("Row", (), {"problem": "Where is the Dog?"})()) == "where is the dog"
