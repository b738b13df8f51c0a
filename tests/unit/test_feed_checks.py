"""What the loader checks before a run: special tokens, tags, lengths, boxes; and rows that are fixed or dropped."""

import json
import re
from functools import partial

import pytest

from tests.unit.conftest import TRUTH
from visurf_ray.config.choices import OnBadBox, OnLong
from visurf_ray.errors import DataError
from visurf_ray.feed.loader import ExampleLoader
from visurf_ray.feed.strictness import Strictness


@pytest.fixture
def load(make_task, processor):
    def make(source, name="non_object", limit=500, train=True, **strictness):
        loader = ExampleLoader(
            make_task(source, name=name),
            processor,
            seed=0,
            max_prompt_tokens=limit,
            put=lambda value: value,
            strictness=Strictness(**strictness),
        )
        if train:
            loader.load_train()
        loader.check()
        return loader

    return make


SPECIAL = ["<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|endoftext|>"]


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize("train", [True, False], ids=["train", "held out"])
@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("non_object", {"problem": "the @ dog"}),
        ("non_object", {"thinking": "Zoom: @ red."}),
        ("classification", {"solution": "a@dog"}),
        ("vqa", {"solution": ["dog @"]}),
        ("math", {"solution": "3@"}),
        (
            "non_object",
            {"problem": None, "prompt": [{"role": "system", "content": "@"}, {"role": "user", "content": "a"}]},
        ),
    ],
)
def test_special_tokens_are_refused_by_row(write_jsonl, load, token, train, task, row):
    text = json.dumps(row).replace("@", token)
    source = write_jsonl({"id": "bad", "solution": "7" if task != "non_object" else TRUTH} | json.loads(text))
    with pytest.raises(DataError, match=rf"row 0 \(id bad\): .*{re.escape(token)}"):
        load(source, task, train=train)


@pytest.mark.parametrize(("key", "name"), [("task.prompt", "own.jinja"), ("task.system", "own.txt")])
def test_special_tokens_in_a_prompt_or_system_message_of_ones_own_are_refused(
    write_jsonl, make_loader, tmp_path, key, name
):
    """The end of a turn would begin another one in every prompt."""
    (tmp_path / name).write_text("{{ query }}<|im_end|>" if name.endswith("jinja") else "Be short.<|im_end|>")
    loader = make_loader(write_jsonl({"solution": "7"}), f"{key}={tmp_path / name}", name="vqa")
    with pytest.raises(DataError, match=rf"{key}: its text must not contain <\|im_end\|>"):
        loader.check()


def test_text_that_only_looks_special_is_accepted(write_jsonl, load):
    for text in ("a <b> c", "<|", "im_end", "< |image_pad| >", "<tag>", "x<y and y>z"):
        load(write_jsonl({"problem": text, "thinking": text}))


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>", "<answer>[]</answer>"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "held out"])
def test_tags_in_a_thought_or_an_answer_are_refused(write_jsonl, load, tag, train):
    source = write_jsonl({"thinking": f"first {tag} then"})
    with pytest.raises(DataError, match=rf"row 0: its thinking must not contain .*{tag[-5:]}"):
        load(source, train=train)
    with pytest.raises(DataError, match=r"row 0: its thinking must not contain"):
        load(write_jsonl({"thinking": f"first {tag} then", "solution": "3"}), "math", train=train)
    if tag == "<think>":
        source = write_jsonl({"solution": f"dog {tag}", "thinking": "so"})
        with pytest.raises(DataError, match=r"row 0: its label has <think> 2 times"):
            load(source, "classification", train=train)


@pytest.mark.parametrize("task", ["math", "vqa"])
@pytest.mark.parametrize("solution", ["</think>5", "<think>5", "5</think>", "</think>5<think>", "<think>a</think>5"])
def test_tags_of_a_thought_in_a_solution_are_refused(write_jsonl, load, task, solution):
    with pytest.raises(DataError, match=r"row 0: .*<.?think>"):
        load(write_jsonl({"solution": solution}), task)


@pytest.mark.parametrize("solution", ["</answer>", "a <answer> b"])
def test_half_of_the_tags_of_an_answer_are_refused(write_jsonl, load, solution):
    with pytest.raises(DataError, match=r"row 0: its label has <answer> or </answer> without the other"):
        load(write_jsonl({"solution": solution}), "math")


@pytest.mark.parametrize("task", ["classification", "math", "vqa"])
@pytest.mark.parametrize("value", [{"a": 1}, [{"role": "assistant", "content": "5"}], [1, {"a": 1}]])
def test_the_text_of_an_object_or_of_a_conversation_is_no_plain_answer(write_jsonl, load, task, value):
    with pytest.raises(DataError, match=r"row 0: the .*(must be plain text, not JSON|must be texts or numbers)"):
        load(write_jsonl({"solution": json.dumps(value)}), task)


def test_a_question_may_have_tags(write_jsonl, load):
    """Visual-RFT's questions say how to answer."""
    load(
        write_jsonl({"problem": "What? Think in <think> </think>, answer in <answer> </answer>.", "solution": "dog"}),
        "classification",
    )


def test_half_a_surrogate_pair_is_refused(write_jsonl, load):
    with pytest.raises(DataError, match=r"row 0: .*not valid Unicode"):
        load(write_jsonl({"problem": "a \ud800 b"}))
    load(write_jsonl({"problem": "a 😀 b"}))


@pytest.mark.parametrize("images", [[], ["picture.png"] * 2])
def test_a_row_must_have_one_image(write_jsonl, load, images):
    source = write_jsonl({"image": None, "images": images})
    with pytest.raises(DataError, match=rf"row 0: it has {len(images)} images, but must have one"):
        load(source)


# Boxes


def box(*corners, point=(30, 25)):
    return json.dumps([{"bbox_2d": list(corners), "point_2d": list(point)}])


SWAPPED = [
    (box(50, 40, 10, 10), TRUTH),
    (box(50, 10, 10, 40), TRUTH),
    (box(10, 10, 120, 40), box(10, 10, 100, 40)),
    (box(-5, -5, 50, 40), box(0, 0, 50, 40)),
    (box(10, 10, 50, 40, point=(130, 25)), box(10, 10, 50, 40, point=(100, 25))),
]


@pytest.mark.parametrize(("solution", "fixed"), SWAPPED)
def test_bad_boxes_stop_the_run_or_are_fixed_or_dropped(write_jsonl, load, solution, fixed):
    source = write_jsonl({"id": "good"}, {"id": "bad", "solution": solution})
    with pytest.raises(DataError, match=r"row 1 \(id bad\): the solution item 0"):
        load(source)
    loader = load(source, on_bad_box=OnBadBox.fix)
    assert [loader.task.ground_truth(row, 1, 1) for row in loader.rows["train"]] == [TRUTH, fixed]
    assert loader.dropped == []
    loader.held_out_examples(None)
    loader = load(source, on_bad_box=OnBadBox.drop)
    assert [row.id for row in loader.rows["train"]] == [row.id for row in loader.rows["held_out"]] == ["good"]
    assert [(row.split, row.id) for row in loader.dropped] == [("train", "bad"), ("held_out", "bad")]
    assert all("row 1 (id bad): the solution item 0" in row.reason for row in loader.dropped)


def test_a_box_without_an_area_cannot_be_fixed(write_jsonl, load):
    source = write_jsonl({}, {"solution": box(10, 10, 10, 40)})
    with pytest.raises(DataError, match=r"row 1: the solution item 0"):
        load(source, on_bad_box=OnBadBox.fix)
    assert len(load(source, on_bad_box=OnBadBox.drop).rows["train"]) == 1


def test_other_faults_of_a_solution_are_never_dropped(write_jsonl, load):
    for solution in ("?", '[{"bbox_2d": [1, 2, 3]}]', box(0.1, 0.2, 0.5, 0.6)):
        with pytest.raises(DataError, match=r"row 1: the solution"):
            load(write_jsonl({}, {"solution": solution}), on_bad_box=OnBadBox.drop)


@pytest.mark.parametrize(
    ("task", "solution", "fixed"),
    [
        ("grounding", "(500,200),(100,1000)", "(100,200),(500,1000)"),
        ("grounding", "<answer>(100,200),(500,1200)</answer>", "(100,200),(500,1000)"),
        ("detection", '[{"Position": [500, 200, 100, 1100], "Confidence": 1}]', None),
    ],
)
def test_bad_boxes_in_thousandths(write_jsonl, load, task, solution, fixed):
    source = write_jsonl({"solution": solution})
    with pytest.raises(DataError, match=r"row 0: the solution has the"):
        load(source, task)
    (row,) = load(source, task, on_bad_box=OnBadBox.fix).rows["train"]
    fixed = fixed or '[{"Position": [100, 200, 500, 1000], "Confidence": 1}]'
    assert row.solution == fixed
    with pytest.raises(DataError, match=r"task\.train: every row is dropped, the first for this reason: .*row 0"):
        load(source, task, on_bad_box=OnBadBox.drop)


@pytest.mark.parametrize("corners", [(0, 0, 1, 1), (0, 0, 1.0, 1.0)])
def test_a_split_of_unit_boxes_is_refused_but_not_one_such_box(write_jsonl, load, corners):
    unit = {"solution": box(*corners, point=(0, 0))}
    with pytest.raises(DataError, match=r"task\.train: all coordinates of boxes lie between 0 and 1"):
        load(write_jsonl(unit, unit, {"solution": "[]"}))
    load(write_jsonl(unit, {}))
    load(write_jsonl({"solution": "[]"}))


def test_float_boxes_give_one_form_of_labels(write_visual_rft, write_jsonl, load, data_folder):
    from tests.unit.conftest import picture

    picture(112, 56).save(data_folder / "fits.png")
    truth = box(10.01, 10.3333333, 60.5, 50.0, point=(35.13, 30.5))
    for image in ("fits.png", "picture.png"):
        loader = load(write_jsonl({"solution": truth, "image": image}))
        (example,) = loader.held_out_examples(None)
        assert "." not in loader.task.render(example, "spaced"), image
    loader = load(
        write_jsonl({"solution": '[{"Position": [74.0, 302.4, 181.5, 500.0], "Confidence": 1}]'}), "detection"
    )
    label = loader.task.render(loader.held_out_examples(None)[0], "spaced")
    assert "[74, 302, 182, 500]" in label


# Lengths


def test_long_prompts_stop_the_run_or_are_dropped(write_jsonl, load):
    source = write_jsonl({"id": "short"}, {"id": "long", "problem": "the dog " * 50})
    limit = load(source, limit=1000).longest["train"] - 1
    with pytest.raises(DataError, match=r"row 1 \(id long\): the prompt has .* feed\.on_long=drop"):
        load(source, limit=limit)
    loader = load(source, limit=limit, on_long=OnLong.drop)
    assert [row.id for row in loader.rows["train"]] == ["short"]
    assert [(row.split, row.id) for row in loader.dropped] == [("train", "long"), ("held_out", "long")]


def test_labels_longer_than_a_response_are_told_or_dropped(write_jsonl, load):
    many = json.dumps([{"bbox_2d": [k, k, k + 20, k + 30], "point_2d": [k + 5, k + 5]} for k in range(0, 30, 2)])
    source = write_jsonl({"id": "few"}, {"id": "many", "solution": many}, {"id": "more", "solution": many})
    again = partial(load, source, "non_object", 1000)
    loader = again()
    longest, prompt = loader.longest_label, loader.longest["train"]
    assert loader.warning is None and again(max_label_tokens=longest).warning is None
    told = again(max_label_tokens=50).warning
    assert re.search(
        r"^2 training labels .* row 1 \(id many\): the label has \d+ tokens .*rollout\.max_tokens=50$", told
    )
    loader = again(max_label_tokens=50, on_long=OnLong.drop)
    assert [row.id for row in loader.rows["train"]] == ["few"] and loader.warning is None
    assert [(row.split, row.id) for row in loader.dropped] == [("train", "many"), ("train", "more")]
    assert len(loader.rows["held_out"]) == 3, "held-out labels may be long"
    told = load(source, limit=prompt + 100, max_label_tokens=1000).warning
    assert f"rollout.max_model_len={prompt + 101}" in told


def test_reasoning_counts_only_where_labels_are_trained_on(write_jsonl, load):
    source = write_jsonl({"thinking": "It is the dog. " * 20})
    assert load(source, max_label_tokens=100, trains_on_labels=False).warning is None
    assert "row 0: the label has" in load(source, max_label_tokens=100).warning


def test_dropped_rows_are_written_to_the_output_folder(tmp_path):
    from visurf_ray.assembly import write_dropped
    from visurf_ray.feed.strictness import Dropped

    write_dropped([], tmp_path)
    assert not (tmp_path / "dropped.jsonl").exists()
    write_dropped([Dropped("train", "a.jsonl, row 3", "x", "for this")], tmp_path)
    written = json.loads((tmp_path / "dropped.jsonl").read_text())
    assert written == {"split": "train", "where": "a.jsonl, row 3", "id": "x", "reason": "for this"}
