"""The embedded default: disjoint splits of real scans, and correct scenes, questions and lessons."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from visurf_ray.answers.boxes import Target as BoxTarget
from visurf_ray.answers.boxes import dump_targets, parse_items, parse_targets
from visurf_ray.answers.responses import answer_text, has_thinking
from visurf_ray.config.load import load_config
from visurf_ray.data.rows import Row
from visurf_ray.miniature.drawn import FIND_PROMPT
from visurf_ray.miniature.lessons import FORMS, KINDS, Lesson, make_lesson, suitable
from visurf_ray.miniature.scenes import (
    CANVAS,
    CELL,
    Digit,
    Scene,
    absent_query,
    draw_scene,
    load_scans,
    present_query,
    seen,
)
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.tasks import load_task

GREEN = 1  # the canvas is lit from aside in red and blue alone
SPLITS = ("train", "validation", "test")


def scenes(count: int, split="train", seed: int = 0, **options) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, split, digits=1 + number % 4, **options) for number in range(count)]


# Scans


def test_no_scan_is_in_two_splits():
    """By content, and by index: the splits are disjoint and together all the scans that scikit-learn has."""
    data = load_digits()
    index = {(image / 16.0).astype(np.float32).tobytes(): number for number, image in enumerate(data.images)}
    assert len(index) == len(data.images) == 1797, "no scan is there twice"
    found = {}
    for split in SPLITS:
        ink, values = load_scans(split)
        found[split] = {index[scan.tobytes()] for scan in ink}
        assert len(found[split]) == len(ink)
        assert values.tolist() == [data.target[index[scan.tobytes()]] for scan in ink]
        assert set(values.tolist()) == set(range(10))
    assert set.union(*found.values()) == set(range(1797))
    assert sum(len(numbers) for numbers in found.values()) == 1797
    assert len(found["train"]) > 1300 and len(found["validation"]) > 150 and len(found["test"]) > 250


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_show_scans_of_their_own_split_alone(split):
    """Digits of 8x8 pixels are the scans themselves, up to shade: whose they are can be told from the canvas."""

    def normalised(rows: np.ndarray) -> np.ndarray:
        centred = rows - rows.mean(-1, keepdims=True)
        return centred / np.linalg.norm(centred, axis=-1, keepdims=True)

    everything = {name: normalised(load_scans(name)[0].reshape(-1, 64).astype(float)) for name in SPLITS}
    for scene in scenes(40, split, sizes=(8, 8)):
        for digit in scene.digits:
            x1, y1, x2, y2 = digit.box
            tile = normalised(scene.pixels[y1:y2, x1:x2, GREEN].astype(float).ravel())
            best = {name: (scans @ tile).max() for name, scans in everything.items()}
            assert best[split] > 0.9995 and max(best, key=best.__getitem__) == split


# Scenes


def test_digits_lie_on_the_canvas_and_apart():
    for scene in scenes(300):
        assert scene.pixels.shape == (CANVAS, CANVAS, 3) and scene.pixels.dtype == np.uint8
        assert len(scene.values()) == len(scene.digits), "all different"
        covered = np.zeros((CANVAS, CANVAS), dtype=int)
        for digit in scene.digits:
            x1, y1, x2, y2 = digit.box
            assert 0 <= x1 < x2 <= CANVAS and 0 <= y1 < y2 <= CANVAS
            assert x2 - x1 == y2 - y1 == digit.size and 20 <= digit.size <= 28
            covered[y1:y2, x1:x2] += 1
        assert covered.max() == 1, "boxes do not overlap"


def test_boxes_hold_all_the_ink():
    for scene in scenes(100):
        outside = np.ones((CANVAS, CANVAS), dtype=bool)
        for digit in scene.digits:
            x1, y1, x2, y2 = digit.box
            outside[y1:y2, x1:x2] = False
        background = scene.pixels[outside, GREEN]
        assert background.min() == background.max()
        for digit in scene.digits:
            x1, y1, x2, y2 = digit.box
            assert scene.pixels[y1:y2, x1:x2, GREEN].max() > int(background[0]) + 60, "a digit can be seen"


def test_colour_encodes_position():
    for scene in scenes(20):
        columns, rows = scene.pixels[:, :, 0].min(axis=0).astype(int), scene.pixels[:, :, 2].min(axis=1).astype(int)
        assert (np.diff(columns) >= 0).all() and columns[-1] > columns[0] + 60
        assert (np.diff(rows) >= 0).all() and rows[-1] > rows[0] + 60


def test_scenes_have_one_to_four_digits_in_reading_order():
    for number, scene in enumerate(scenes(100)):
        assert len(scene.digits) == 1 + number % 4
        cells = [((d.box[1] + d.box[3]) // 2 // CELL, (d.box[0] + d.box[2]) // 2 // CELL) for d in scene.digits]
        assert cells == sorted(cells) and len(set(cells)) == len(cells)


def test_place_size_and_shade_vary():
    drawn = scenes(200)
    assert len({digit.size for scene in drawn for digit in scene.digits}) == 9
    assert len({digit.box[:2] for scene in drawn for digit in scene.digits}) > 300
    assert len({int(scene.pixels.max()) for scene in drawn}) > 40
    assert len({int(scene.pixels[-1, -1, GREEN]) for scene in drawn}) > 20


def test_scenes_are_drawn_by_seed():
    first, again, other = scenes(8, seed=1), scenes(8, seed=1), scenes(8, seed=2)
    assert [scene.digits for scene in first] == [scene.digits for scene in again]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))
    assert [scene.digits for scene in first] != [scene.digits for scene in other]


def test_the_digits_of_a_scene_can_be_chosen():
    scene = draw_scene(np.random.default_rng(0), "train", digits=3, values=[4, 0, 9])
    assert scene.values() == {4, 0, 9}


def test_seen_names_every_digit_with_its_box():
    seven, three = Digit(7, (1, 2, 21, 22)), Digit(3, (60, 33, 80, 53))
    scene = Scene(np.zeros((CANVAS, CANVAS, 3), np.uint8), (seven, three))
    assert seen(scene) == "a 7 [1, 2, 21, 22], a 3 [60, 33, 80, 53]"
    assert seen(scene, [three]) == "a 7 no [1, 2, 21, 22], a 3 yes [60, 33, 80, 53]"
    assert seen(scene, []) == "a 7 no [1, 2, 21, 22], a 3 no [60, 33, 80, 53]"
    assert scene.image.size == (CANVAS, CANVAS) and scene.image.mode == "RGB"


# Questions


def meant(text: str, scene: Scene) -> set[Digit]:
    """The digits that a question means, by the words alone."""
    if text == "the largest digit":
        return {max(scene.digits, key=lambda digit: digit.size)}
    if match := re.fullmatch(r"all (even|odd) digits", text):
        return {digit for digit in scene.digits if digit.value % 2 == ("even", "odd").index(match[1])}
    match = re.fullmatch(r"the (\d)", text)
    assert match, text
    return {digit for digit in scene.digits if digit.value == int(match[1])}


def test_questions_for_present_digits_refer_to_exactly_these():
    rng = np.random.default_rng(0)
    kinds: Counter[str] = Counter()
    for scene in scenes(1500):
        query = present_query(rng, scene)
        kinds[re.sub(r"\d", "7", query.text)] += 1
        assert len(query.targets) == len(set(query.targets)) > 0
        assert set(query.targets) == meant(query.text, scene)
        if query.text == "the largest digit":
            sizes = sorted((digit.size for digit in scene.digits), reverse=True)
            assert len(sizes) == 1 or sizes[0] >= 1.2 * sizes[1], "clearly the largest"
    assert set(kinds) == {"the 7", "the largest digit", "all even digits", "all odd digits"}
    assert min(kinds.values()) > 30 and kinds["the 7"] > 900


def test_questions_for_absent_digits_refer_to_nothing():
    rng = np.random.default_rng(0)
    kinds: Counter[str] = Counter()
    for scene in scenes(1000):
        query = absent_query(rng, scene)
        kinds[re.sub(r"\d", "7", query.text)] += 1
        assert query.targets == () and meant(query.text, scene) == set()
    assert set(kinds) == {"the 7", "all even digits", "all odd digits"}
    assert min(kinds.values()) > 20


# The task's rows


def is_absent(row: Row) -> bool:
    return row.solution == "[]"


@pytest.fixture
def make_miniature():
    return lambda seed, *overrides: load_task(load_config([*overrides]).task, seed)


@pytest.mark.parametrize(("count", "share", "absent"), [(40, 0.25, 10), (40, 0.0, 0), (40, 1.0, 40), (41, 0.5, 20)])
def test_the_absent_share_is_exact(make_miniature, count, share, absent):
    rows = make_miniature(0, f"task.train={count}", f"task.absent_share={share}").train_rows()
    assert len(rows) == count and sum(map(is_absent, rows)) == absent


def test_training_rows_follow_seed_and_absent_share(make_miniature):
    def rows(seed: int) -> list[Row]:
        return make_miniature(seed, "task.train=40", "task.absent_share=0.3").train_rows()

    first, again, other = rows(1), rows(1), rows(2)
    assert sum(map(is_absent, first)) == sum(map(is_absent, other)) == 12
    assert [(r.id, r.problem, r.solution) for r in first] == [(r.id, r.problem, r.solution) for r in again]
    assert all(a.open_image().tobytes() == b.open_image().tobytes() for a, b in zip(first, again, strict=True))
    assert [r.solution for r in first] != [r.solution for r in other]
    positions = [number for number, row in enumerate(first) if is_absent(row)]
    assert positions != list(range(12)) and positions != list(range(28, 40)), "absent ones are mixed in"


def test_half_of_the_held_out_rows_are_absent_and_the_same_for_every_seed(make_miniature):
    first, other = (make_miniature(seed, "task.held_out=30").held_out_rows() for seed in (0, 5))
    assert sum(map(is_absent, first)) == 15
    assert [(r.id, r.problem, r.solution) for r in first] == [(r.id, r.problem, r.solution) for r in other]
    assert all(a.open_image().tobytes() == b.open_image().tobytes() for a, b in zip(first, other, strict=True))


def test_rows_of_both_splits_are_named_differently_and_pass_the_tasks_check(make_miniature):
    task = make_miniature(0, "task.train=60", "task.held_out=20")
    rows = task.train_rows() + task.held_out_rows()
    assert len({row.id for row in rows}) == 80
    for row in rows:
        task.check(row)
        assert row.id in row.where


def test_the_prompt_names_the_query_and_the_form_of_the_answer():
    text = FIND_PROMPT.format(query="the 7")
    assert all(part in text for part in ("the 7", "<think>", "<answer>", "JSON list", "bbox_2d", "point_2d"))


# Lessons


@pytest.fixture(scope="module")
def lessons() -> dict[str, list[Lesson]]:
    rng = np.random.default_rng(0)
    return {kind: [make_lesson(rng, kind, scene) for scene in scenes(400, seed=1)] for kind in KINDS}


def test_no_grounding_lesson_is_answered_with_the_empty_list(lessons):
    assert set(lessons) == {"read", "list", "count", "presence", "ground", "select"}
    for lesson in (lesson for kind in lessons if kind != "select" for lesson in lessons[kind]):
        text = re.sub(r"\s", "", lesson.question + lesson.answer)
        assert "[]" not in text and parse_items(lesson.answer) != []


def test_some_grounding_questions_are_answered_without_thinking():
    rng = np.random.default_rng(0)
    drawn = [make_lesson(rng, "ground", scene, direct=0.25) for scene in scenes(400)]
    direct = [lesson for lesson in drawn if not has_thinking(lesson.answer)]
    assert 70 < len(direct) < 130
    assert all(parse_items(lesson.answer) for lesson in direct)


def test_selecting_lists_the_digits_of_one_parity_and_nothing_else(lessons):
    for lesson in lessons["select"]:
        parity = int("odd" in lesson.question)
        chosen = tuple(digit for digit in lesson.scene.digits if digit.value % 2 == parity)
        assert answer_text(lesson.answer) == (seen(Scene(lesson.scene.pixels, chosen)) if chosen else "[]")
        assert lesson.answer.count(" yes ") == len(chosen)
    nothing = sum(answer_text(lesson.answer) == "[]" for lesson in lessons["select"])
    assert 60 < nothing < 140


def test_no_lesson_asks_for_the_box_of_an_absent_digit(lessons):
    prefix, _, suffix = lessons["ground"][0].question.partition(". Reason")
    assert prefix.startswith("Find ") and suffix
    for lesson in lessons["ground"]:
        query = lesson.question.removeprefix("Find ").partition(". Reason")[0]
        targets = meant(query, lesson.scene)
        assert targets, lesson.question
        answered = parse_targets(answer_text(lesson.answer) or "")
        assert set(answered) == {BoxTarget.around(digit.box) for digit in targets}
        assert answer_text(lesson.answer) == dump_targets(answered, "spaced")


def test_thinking_lists_every_digit_with_its_box_and_judges_it_when_digits_are_asked_for(lessons):
    for kind in ("count", "presence", "ground", "select"):
        for lesson in lessons[kind]:
            assert has_thinking(lesson.answer)
            asked = None
            if kind == "presence":
                asked = meant(lesson.question.replace("Is there a ", "the ").rstrip("?"), lesson.scene)
            elif kind in ("ground", "select"):
                asked = meant(lesson.question.removeprefix("Find ").partition(". Reason")[0], lesson.scene)
            assert lesson.answer.startswith(f"<think>{seen(lesson.scene, asked)}</think><answer>")


def test_presence_is_about_half_yes_and_always_right(lessons):
    answers: Counter[str | None] = Counter()
    for lesson in lessons["presence"]:
        match = re.fullmatch(r"Is there a (\d)\?", lesson.question)
        assert match
        answer = answer_text(lesson.answer)
        assert answer == ("yes" if int(match[1]) in lesson.scene.values() else "no")
        answers[answer] += 1
    assert 0.43 < answers["yes"] / 400 < 0.57


def test_reading_listing_and_counting_are_right(lessons):
    for lesson in lessons["read"]:
        values = (str(digit.value) for digit in lesson.scene.digits)
        assert answer_text(lesson.answer) == " ".join(["digits", *values])
    for lesson in lessons["list"]:
        assert answer_text(lesson.answer) == seen(lesson.scene)
    for lesson in lessons["count"]:
        assert answer_text(lesson.answer) == str(len(lesson.scene.digits))


# Other tasks' forms


@pytest.fixture(scope="module")
def forms() -> dict[str, list[Lesson]]:
    rng = np.random.default_rng(0)

    def draw() -> Scene:
        return draw_scene(rng, "train", digits=int(rng.integers(1, 5)))

    return {
        kind: [make_lesson(rng, kind, suitable(kind, draw)) for _ in range(100)]
        for kind in ("sum", "name", "detect", "corners")
    }


def test_only_easy_cases_of_other_tasks_are_taught(forms):
    """What lies beyond is left for post-training: larger sums, three names, two of a kind or none, looking further."""
    assert set(forms) == set(FORMS)
    shown = {kind: [lesson.scene.values() for lesson in forms[kind]] for kind in forms}
    assert {sum(values) for values in shown["sum"]} == set(range(10))
    assert set.union(*shown["name"]) == set(range(7)) and {len(values) for values in shown["name"]} == {1}
    assert {len(values) for values in shown["corners"]} == {1, 2}
    assert {len(values) for values in shown["detect"]} == {1, 2, 3, 4}
    assert not [lesson for lesson in forms["detect"] if "No Objects" in lesson.answer]


@pytest.mark.parametrize(
    ("kind", "task"),
    [("sum", "math"), ("name", "classification"), ("detect", "detection"), ("corners", "grounding")],
)
def test_forms_are_asked_for_and_answered_as_their_tasks_do(kind, task, forms):
    config = load_config([f"task=miniature_{task}"])
    prompt = load_task(config.task, 0).prompts["detailed"]
    reward = RewardSpec.of(config.reward).load()
    best = {"sum": 2.0, "name": 2.0, "detect": 3.0, "corners": 3.0}[kind]  # with its thinking
    for lesson in forms[kind]:
        truths = dict(truths_by_question(kind, lesson.scene))
        (query,) = (query for query in truths if lesson.question == prompt.format(query=query))
        assert reward(lesson.answer, truths[query]).total == pytest.approx(best)
        assert lesson.answer.startswith(f"<think>{seen(lesson.scene, meant_by(query, lesson.scene))}</think>")


def truths_by_question(kind: str, scene: Scene):
    if kind == "sum":
        yield "Add all digits.", str(sum(digit.value for digit in scene.digits))
    elif kind == "name":
        yield "Which digit is it?", ["zero", "one", "two", "three", "four", "five", "six"][scene.digits[0].value]
    else:
        for digit in scene.digits:
            x1, y1, x2, y2 = (round(edge * 1000 / CANVAS) for edge in digit.box)
            box = json.dumps([{"Position": [x1, y1, x2, y2]}]) if kind == "detect" else f"({x1}, {y1}), ({x2}, {y2})"
            yield f"{digit.value}s" if kind == "detect" else f"the {digit.value}", box


def meant_by(query: str, scene: Scene) -> list[Digit] | None:
    """None where a question is for no digit in particular, and thinking judges none."""
    value = re.search(r"\d", query)
    return [digit for digit in scene.digits if digit.value == int(value[0])] if value else None


def test_the_tokenizer_can_write_every_answer_exactly(processor, lessons):
    """The empty one included: the base model has never seen it, but must be able to say it."""
    texts = [lesson.answer for of_kind in lessons.values() for lesson in of_kind[:20]]
    for text in [*texts, "<answer>[]</answer>", '<answer>[{"bbox_2d":[1,2,3,4],"point_2d":[1,2]}]</answer>']:
        ids = processor.tokenizer(text, add_special_tokens=False).input_ids
        assert processor.tokenizer.decode(ids) == text
        assert len(ids) < 128, "an answer fits into rollout.max_tokens"


def test_the_corpus_gives_every_number_of_the_canvas_one_token(processor):
    """A digit's value ("the 7") is another token than the same number as a coordinate ("[7, 12]")."""
    for number in range(CANVAS + 1):
        assert len(processor.tokenizer(str(number)).input_ids) == 1
    for digit in range(10):
        value, coordinate = (processor.tokenizer.tokenize(text)[-1] for text in (f"the {digit}", f"[1, {digit}"))
        assert value != coordinate
    assert len(processor.tokenizer("[]").input_ids) == 1, "empty or not is decided at one token"
