"""The drawn tasks: questions can be answered from the picture, and solutions are right."""

import json
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label as components
from transformers import AutoProcessor

from visurf_ray.answers.boxes import parse_targets
from visurf_ray.config.load import load_config
from visurf_ray.feed.loader import ExampleLoader
from visurf_ray.groups import Prediction
from visurf_ray.miniature.base_model import BASE_MODEL
from visurf_ray.miniature.classification import NAMES
from visurf_ray.miniature.scenes import CANVAS, draw_scene, load_scans
from visurf_ray.monitor.charts import RATES, SCORES
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.tasks import TASKS, load_task

GREEN = 1  # the canvas is lit from aside in red and blue alone
NAMES_OF_TASKS = sorted(name for name in TASKS if name.startswith("miniature_"))
SCENES = {"miniature_math": (1, 3), "miniature_vqa": (1, 7), "miniature_grounding": (1, 5)}  # numbers of digits

every_task = pytest.mark.parametrize("name", NAMES_OF_TASKS)
composed = cache(lambda *overrides: load_config(list(overrides)))


@pytest.fixture
def make() -> Callable:
    def make(name: str, seed: int = 0, *overrides: str):
        return load_task(composed(f"task={name}", "task.train=40", "task.held_out=30", *overrides).task, seed)

    return make


@pytest.fixture(scope="module")
def base_processor():
    return AutoProcessor.from_pretrained(BASE_MODEL)


def contents(rows) -> list[tuple]:
    return [(row.id, row.problem, row.solution, row.open_image().tobytes()) for row in rows]


def one_box(solution: str) -> tuple[int, ...]:
    (target,) = parse_targets(solution)
    x, y = target.point_2d
    x1, y1, x2, y2 = box = tuple(int(edge) for edge in target.bbox_2d)
    assert x1 < x < x2 and y1 < y < y2
    return box


def in_pixels(box) -> tuple[int, ...]:
    return tuple(round(edge * CANVAS / 1000) for edge in box)


def nearest_scan(image: Image.Image, box) -> tuple[str, int, float]:
    """Split, value and correlation of the scan that is most like a square of the picture."""
    x1, y1, x2, y2 = box
    tile = _normalised(np.asarray(image)[y1:y2, x1:x2, GREEN].astype(float).ravel())
    found = []
    for split in ("train", "validation", "test"):
        likeness = _enlarged(split, x2 - x1) @ tile
        at = int(likeness.argmax())
        found.append((split, int(load_scans(split)[1][at]), float(likeness[at])))
    return max(found, key=lambda scan: scan[2])


@cache
def _enlarged(split: str, size: int) -> np.ndarray:
    ink, _ = load_scans(split)
    scans = [
        Image.fromarray((scan * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC) for scan in ink
    ]
    return _normalised(np.stack([np.asarray(scan, float).ravel() for scan in scans]))


def _normalised(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(-1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=-1, keepdims=True)


# All of them


@every_task
def test_the_same_seed_draws_the_same_rows_and_another_draws_others(name, make):
    first, again, other = (contents(make(name, seed).train_rows()) for seed in (1, 1, 2))
    assert first == again and len(first) == 40
    assert not {row[-1] for row in first} & {row[-1] for row in other}


@every_task
def test_held_out_rows_are_the_same_for_every_seed_and_no_training_rows(name, make):
    held_out = contents(make(name, 0).held_out_rows())
    assert held_out == contents(make(name, 5).held_out_rows()) and len(held_out) == 30
    assert not {row[-1] for row in held_out} & {row[-1] for row in contents(make(name, 0).train_rows())}


@pytest.mark.parametrize("name", [name for name in NAMES_OF_TASKS if name != "miniature_lesion"])
def test_each_split_shows_its_own_scans(name, make):
    """The same seed places the same digits, written by others. Whose scans a split has is tested with the scenes."""
    task = make(name)
    for seed in range(5):
        drawn = [task.draw(np.random.default_rng(seed), split, False) for split in ("train", "validation", "test")]
        assert len({drawing.image.tobytes() for drawing in drawn}) == 3
        assert len({drawing.problem for drawing in drawn}) == 1


@every_task
def test_every_prompt_and_label_fits_the_default_lengths_and_the_tokenizer_can_write_it(name, make, base_processor):
    """The loader checks every row, the lengths of prompts among them."""
    config = load_config([f"task={name}"])
    limit = config.rollout.max_model_len - config.rollout.max_tokens
    task = make(name)
    loader = ExampleLoader(task, base_processor, seed=0, max_prompt_tokens=limit, put=lambda value: value)
    loader.load_train()
    loader.check()
    for example in loader.train_batch(0, 20):
        text = task.render(example, task.styles[0])
        ids = base_processor.tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) < config.rollout.max_tokens and base_processor.tokenizer.decode(ids) == text
        assert example.size == (CANVAS, CANVAS), "nothing is resized"


@every_task
def test_the_plain_prompt_is_the_question(name, make):
    task = make(name, 0, "task.prompt=plain")
    for row in task.held_out_rows():
        assert task.question(row) == row.problem
    detailed = make(name)
    assert all(
        row.problem in detailed.question(row) and "<think>" in detailed.question(row) for row in task.train_rows()
    )


@every_task
def test_labels_earn_the_maximum_only_for_their_own_question(name, make, base_processor):
    """By the reward that the task chooses, and by the task's metrics."""
    config = load_config([f"task={name}"])
    reward = RewardSpec.of(config.reward).load()
    task = make(name)
    loader = ExampleLoader(task, base_processor, seed=0, max_prompt_tokens=400, put=lambda value: value)
    examples = loader.held_out_examples(None)
    labels = [task.render(example, task.styles[0]) for example in examples]
    full = {
        "vision_reasoner": {"accuracy": 3.0, "answer_format": 2.0},
        "point_in_box": {"accuracy": 1.0, "answer_format": 1.0},
        "visual_rft_detection": {"iou": 1.0, "confidence": 1.0},
        "visual_rft_grounding": {"giou": 2.0},
    }.get(config.reward.name, {"accuracy": 1.0})
    for example, text in zip(examples, labels, strict=True):
        parts = reward(text, example.ground_truth).parts
        assert {part: parts[part] for part in full} == pytest.approx(full)

    def scores(responses: list[str]) -> dict[str, float]:
        return task.metrics([Prediction.of(*pair) for pair in zip(examples, responses, strict=True)])

    assert scores(labels).keys() <= SCORES.keys() | RATES.keys() | {"empty_rate"}, "the report shows them"
    perfect, wrong = scores(labels), scores(labels[1:] + labels[:1])
    without = {"thinking_rate", "empty_rate"}
    assert {metric: value for metric, value in perfect.items() if metric not in without} == pytest.approx(
        {metric: 1.0 for metric in perfect.keys() - without}
    )
    assert perfect.get("empty_rate", 0.0) == 0.0
    thinks = np.mean([example.thinking is not None for example in examples])
    assert perfect.get("thinking_rate", thinks) == thinks
    for metric in perfect.keys() - without - {"format_rate", "t_acc"}:
        assert wrong[metric] < 0.8


@pytest.mark.parametrize(("name", "nothing"), [("miniature_anomaly", "[]"), ("miniature_detection", "[]")])
def test_the_share_of_questions_for_absent_objects_is_exact(name, nothing, make):
    task = make(name, 3, "task.absent_share=0.3")
    assert sum(row.solution == nothing for row in task.train_rows()) == 12
    assert sum(row.solution == nothing for row in task.held_out_rows()) == 15


# Each of them: the solution against the picture


def test_the_answer_is_the_frame_of_the_button_with_the_digit(make):
    sizes = set()
    for split, rows in (("train", make("miniature_gui").train_rows()), ("test", make("miniature_gui").held_out_rows())):
        for row in rows:
            x1, y1, x2, y2 = one_box(row.solution)
            green = np.asarray(row.images[0])[:, :, GREEN].astype(int)
            frame = np.concatenate([green[[y1, y2 - 1], x1:x2].ravel(), green[y1:y2, [x1, x2 - 1]].ravel()])
            assert len(set(frame)) == 1 and frame[0] > green[0, 0 if x1 > 1 or y1 > 1 else -1].min() + 50
            sizes.add((x2 - x1, y2 - y1))
            tiles = [(x1 + x2 - size) // 2 for size in range(20, 25)]
            found = [
                nearest_scan(row.images[0], (left, (y1 + y2 - size) // 2, left + size, (y1 + y2 - size) // 2 + size))
                for left, size in zip(tiles, range(20, 25), strict=True)
            ]
            source, value, likeness = max(found, key=lambda scan: scan[2])
            assert likeness > 0.999 and source == split
            assert row.problem == f"Click {value}."
    assert sizes == {(26, 26), (54, 26), (82, 26)}


def test_blemishes_lie_in_the_box_and_nowhere_else(make):
    kinds = {}
    for row in make("miniature_anomaly").train_rows() + make("miniature_anomaly").held_out_rows():
        pixels = np.asarray(row.images[0])
        blemish = (pixels == (30, 230, 30)).all(-1) | (pixels == 0).all(-1)
        judged = re.findall(r"yes (\[[^]]+])", row.thinking)
        if row.solution == "[]":
            assert not blemish.any() and not judged
            continue
        x1, y1, x2, y2 = one_box(row.solution)
        assert judged == [str([x1, y1, x2, y2])]
        assert blemish[y1:y2, x1:x2].sum() == blemish.sum() >= 30 and components(blemish)[1] == 1
        assert x2 - x1 == y2 - y1 and 20 <= x2 - x1 <= 28
        kinds[bool(pixels[blemish].any())] = True
    assert len(kinds) == 2, "blots and scratches"


def test_the_lesions_box_is_that_of_the_dark_blob(make):
    boxes = set()
    for row in make("miniature_lesion").train_rows():
        box = one_box(row.solution)
        dark = np.asarray(row.images[0])[:, :, GREEN] < 80
        rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
        assert np.abs(np.subtract(box, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))).max() <= 1
        assert components(dark)[1] == 1 and min(box) > 0 and max(box) < CANVAS
        x1, y1, x2, y2 = box
        assert 0.5 < dark.sum() / ((x2 - x1) * (y2 - y1)) < 0.95, "round, more or less"
        boxes.add(box)
    assert len(boxes) == 40


def scene_of(seed: int, low: int, high: int):
    """The scene of a task that draws how many digits, and then the digits."""
    rng = np.random.default_rng(seed)
    return draw_scene(rng, "train", digits=int(rng.integers(low, high)))


@pytest.mark.parametrize("name", SCENES)
def test_solutions_follow_from_the_scene(name, make):
    task, answers = make(name), set()
    for seed in range(60):
        scene = scene_of(seed, *SCENES[name])
        drawing = task.draw(np.random.default_rng(seed), "train", False)
        assert drawing.image.tobytes() == scene.image.tobytes()
        values = sorted(digit.value for digit in scene.digits)
        if name == "miniature_math":
            assert drawing.problem == "Add all digits." and int(drawing.solution) == sum(values)
        elif name == "miniature_vqa":
            kept = {
                "even": [v for v in values if v in (0, 2, 4, 6, 8)],
                "odd": [v for v in values if v in (1, 3, 5, 7, 9)],
            }
            assert int(drawing.solution) == len(kept.get(drawing.problem.split()[2], values))
        else:
            corners = [int(n) for n in drawing.solution.replace("(", "").replace(")", "").split(",")]
            (digit,) = (digit for digit in scene.digits if f"the {digit.value}" == drawing.problem)
            assert in_pixels(corners) == digit.box
        answers.add((drawing.problem, drawing.solution))
    assert len(answers) > 12


def test_the_class_is_the_digits_name(make):
    for seed in range(30):
        scene = draw_scene(np.random.default_rng(seed), "train", digits=1)
        drawing = make("miniature_classification").draw(np.random.default_rng(seed), "train", False)
        assert drawing.image.tobytes() == scene.image.tobytes()
        assert drawing.solution == NAMES[scene.digits[0].value]
    assert [len(name) for name in NAMES] == [4, 3, 3, 5, 4, 4, 3, 5, 5, 4]


def test_detected_boxes_hold_digits_of_the_value(make):
    counts = set()
    for row in make("miniature_detection").train_rows():
        boxes = [in_pixels(item["Position"]) for item in json.loads(row.solution)]
        for box in boxes:
            split, value, likeness = nearest_scan(row.images[0], box)
            assert likeness > 0.999 and split == "train" and row.problem == f"{value}s"
        counts.add(len(boxes))
    assert counts == {0, 1, 2}
