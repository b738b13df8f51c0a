"""Tables of other programs, recognised by their columns: conversations, several pictures, and their solutions."""

import base64
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.conftest import TRUTH, encoded, picture
from visurf_ray.data.conversations import Turn
from visurf_ray.data.rows import read_rows
from visurf_ray.errors import DataError


@pytest.fixture
def read(tmp_path):
    """Reads rows from JSON lines, and the same from parquet where its types allow it."""
    picture().save(tmp_path / "a.png")
    picture(40, 20).save(tmp_path / "b.png")

    def make(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_rows(str(path))

    return make


def said(user, assistant=None, system=None, keys=("role", "content"), names=("system", "user", "assistant")):
    told = zip(names, (system, user, assistant), strict=True)
    return [dict(zip(keys, (role, text), strict=True)) for role, text in told if text is not None]


def test_verls_parquet(tmp_path):
    rows = [
        {
            "data_source": "hiyouga/geometry3k",
            "prompt": said("<image>Find x.", system="Think first."),
            "images": [{"bytes": encoded(picture()), "path": None}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "extra_info": {"answer": "3", "index": 0, "question": "<image>Find x.", "split": "train"},
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    (row,) = read_rows(str(tmp_path / "train.parquet"))
    assert (row.problem, row.solution, row.system, row.turns) == ("Find x.", "3", "Think first.", ())
    assert row.open_image().size == (100, 60)


def test_verls_cell_with_a_path_and_a_truth_that_is_not_text(read):
    truth = json.loads(TRUTH)
    images = [{"image": "a.png"}]
    (row,) = read({"prompt": said("<image>Find."), "images": images, "reward_model": {"ground_truth": truth}})
    assert json.loads(row.solution) == truth and row.open_image().size == (100, 60)
    with pytest.raises(DataError, match=r"row 0: the reward_model must be an object with a ground_truth"):
        read({"prompt": said("Find."), "images": images, "reward_model": {"style": "rule"}})


def test_ms_swifts_messages_and_a_column_of_solutions(read):
    (row,) = read({"messages": said("<image>Which?", system="Be short."), "images": ["a.png"], "solution": "left"})
    assert (row.problem, row.solution, row.system) == ("Which?", "left", "Be short.")
    (row,) = read({"messages": said("Which?", "no"), "images": ["a.png"], "solution": "left"})
    assert row.solution == "left", "the column comes before the message"


def test_ms_swifts_objects(read, make_task):
    boxes = [[10, 10, 50, 40], [60, 20, 90, 50]]
    row = {
        "messages": said("<image>Where is the <ref-object>?", "<bbox><bbox>"),
        "images": ["a.png"],
        "objects": {"ref": ["dog"], "bbox": boxes},
    }
    (found,) = read(row)
    assert found.problem == "Where is the dog?"
    task = make_task("x.jsonl")
    task.check(found)
    assert [(target.bbox_2d, target.point_2d) for target in task.targets(found)] == [
        ((10, 10, 50, 40), (30, 25)),
        ((60, 20, 90, 50), (75, 35)),
    ]
    for change, complaint in (
        ({"objects": {"ref": ["dog"], "bbox": boxes[:1]}}, "2 <bbox> and objects.bbox has 1"),
        ({"objects": {"ref": [], "bbox": boxes}}, "more <ref-object> than objects.ref"),
        ({"messages": said("What is in <bbox>?", "a dog")}, "<bbox> may stand in the answer alone"),
        ({"objects": json.dumps({"bbox": boxes})}, "the objects must be an object with ref and bbox, not"),
    ):
        with pytest.raises(DataError, match=rf"row 0: .*{re.escape(complaint)}"):
            read(row | change)


SHAREGPT = {"keys": ("from", "value"), "names": ("system", "human", "gpt")}


def test_llama_factorys_sharegpt_and_qwens_finetuning_rows(read):
    (row,) = read({"conversations": said("<image>How many?", "Two.", **SHAREGPT), "images": ["a.png"], "system": "Hm."})
    assert (row.problem, row.solution, row.system) == ("How many?", "Two.", "Hm.")
    (row,) = read({"image": "a.png", "conversations": said("<image>\nHow many?", "Two.", **SHAREGPT)})
    assert (row.problem, row.solution, row.system) == ("How many?", "Two.", None)
    pictures = ["a.png", "b.png"]
    (row,) = read({"image": pictures, "conversations": said("<image>\n<image>\nAlike?", "No.", **SHAREGPT)})
    assert row.problem == "Alike?" and [image.size for image in row.open_images()] == [(100, 60), (40, 20)]
    (row,) = read({"messages": said("<image>How many?", "Two."), "images": ["a.png"]})
    assert (row.problem, row.solution) == ("How many?", "Two.")


def test_a_conversation_may_be_given_as_text_of_json(read):
    """As tools without nested columns write it. Other text in brackets is a question."""
    talk = said("<image>How many?", system="Hm.")
    (row,) = read({"prompt": json.dumps(talk), "images": ["a.png"], "answer": "2"})
    assert (row.problem, row.system) == ("How many?", "Hm.")
    (row,) = read({"messages": json.dumps(said("How many?", "Two.", **SHAREGPT)), "images": ["a.png"]})
    assert (row.problem, row.solution) == ("How many?", "Two.")
    for text in ('[{"role": who?', "[1, 2] or [3]?", '["role"]'):
        assert read({"prompt": text, "answer": "2"})[0].problem == text


def test_earlier_turns_belong_to_the_prompt(read):
    talk = [*said("<image>What is this?", "A dog."), *said("And <image> this?", "A cat.")]
    (row,) = read({"messages": talk, "images": ["a.png", "b.png"]})
    assert row.turns == (Turn("user", "What is this?"), Turn("assistant", "A dog."))
    assert (row.problem, row.solution) == ("And <image> this?", "A cat.")


def test_reasoning_in_the_last_message_is_the_thinking(read):
    answer = "<think>\nIt barks.\n</think>\n\n<answer>dog</answer>"
    (row,) = read({"messages": said("<image>What?", answer), "images": ["a.png"]})
    assert (row.thinking, row.solution) == ("It barks.", "<answer>dog</answer>")
    (row,) = read({"messages": said("<image>What?", answer), "images": ["a.png"], "thinking": "given"})
    assert (row.thinking, row.solution) == ("given", answer)


def test_pictures_in_the_messages_themselves(read):
    """OpenAI's and Qwen's forms."""
    parts = [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text", "text": "and"},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "Alike?"},
    ]
    (row,) = read({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "No."}]})
    assert row.problem == "and<image>Alike?" and [image.size for image in row.open_images()] == [(100, 60), (40, 20)]
    (row,) = read({"prompt": [{"role": "user", "content": parts[3:]}], "image": "a.png", "answer": "1"})
    assert row.problem == "Alike?"


def test_a_picture_in_a_message_with_its_bytes_and_its_path_is_one(read):
    part = {"type": "image", "path": "somewhere.png", "bytes": base64.b64encode(encoded(picture())).decode()}
    (row,) = read({"prompt": [{"role": "user", "content": [part, {"text": "What?"}]}], "answer": "1"})
    assert row.problem == "What?" and [image.size for image in row.open_images()] == [(100, 60)]


def test_rows_with_and_without_pictures_in_one_table(read):
    """LLaVA's rows of text have no key `image`; files that were joined name it in two ways."""
    rows = read(
        {"problem": "What?", "image": "a.png", "answer": "1"},
        {"problem": "<image>What?", "images": ["b.png"], "answer": "1"},
        {"problem": "2 + 2?", "answer": "4"},
        {"problem": "2 + 3?", "image": [], "answer": "5"},
    )
    assert [[image.size for image in row.open_images()] for row in rows] == [[(100, 60)], [(40, 20)], [], []]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"image": None}, r"the image is empty; a row without pictures must have \[\] there"),
        ({"img": "a.png"}, "its pictures must be in image or images, not in img"),
        ({"image": None, "image_path": "a.png"}, "its pictures must be in image or images, not in image_path"),
        ({"problem": "<image>What?"}, "the text has 1 times <image>, but the row has 0 images"),
    ],
)
def test_a_row_whose_picture_is_lost_is_refused(read, row, complaint):
    with pytest.raises(DataError, match=rf"row 1: {complaint}"):
        read({"problem": "What?", "image": "a.png", "answer": "1"}, {"problem": "What?", "answer": "1"} | row)


@pytest.mark.parametrize(
    ("text", "images", "problem"),
    [
        ("<image>What?", 1, "What?"),
        ("What?", 1, "What?"),
        ("What <image> is?", 1, "What <image> is?"),
        ("What? <image>", 1, "What? <image>"),
        ("<image> <image>\nWhat?", 2, "What?"),
        ("<image>A and <image> B?", 2, "A and <image> B?"),
        ("What?", 3, "What?"),
        ("What?", 0, "What?"),
        ("<image>What?", 2, None),
        ("<image><image>What?", 1, None),
        ("<image>What?", 0, None),
    ],
)
def test_marks_are_the_places_of_pictures(read, text, images, problem):
    row = {"id": 7, "problem": text, "images": ["a.png"] * images, "answer": "1"}
    if problem is None:
        with pytest.raises(DataError, match=rf"row 0 \(id 7\): the text has \d times <image>, but .* {images} images"):
            read(row)
    else:
        (found,) = read(row)
        assert found.problem == problem and len(found.images) == images


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": said("a")}, "the last message of the assistant is empty"),
        ({"messages": []}, "roles are"),
        ({"messages": [*said("a"), *said("b", "c")]}, r"roles are \['user', 'user', 'assistant'\]"),
        ({"messages": said(None, "a")}, r"roles are \['assistant'\]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "roles are"),
        ({"messages": [{"role": "user"}]}, "not a conversation"),
        ({"messages": [{"content": "a"}]}, "not a conversation"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "not a conversation"),
        ({"messages": [{"role": "user", "content": [{"text": None, "image": None}]}]}, "not a conversation"),
        ({"messages": [{"role": "user", "content": 7}]}, "not a conversation"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]}, "videos are not"),
        ({"messages": {"role": "user"}}, "must be text or a conversation"),
        ({"messages": None}, "the messages is empty"),
        ({"problem": {"role": "user"}, "answer": "1"}, "must be text or a conversation"),
        ({"problem": 7, "answer": "1"}, "must be text or a conversation"),
        ({"problem": "  ", "answer": "1"}, "the question is empty"),
        ({"problem": "<image>", "answer": "1"}, "the question is empty"),
        ({"problem": "a", "answer": "1", "thinking": ["b"]}, "the thinking must be text"),
        ({"problem": "a", "answer": True}, "the answer must be .*not true"),
        ({"messages": [{"role": "user", "content": "x" * 10**6}] * 2, "id": "y" * 10**6}, "roles are"),
    ],
)
def test_what_is_no_row_is_refused(read, row, complaint):
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 0.*: .*{complaint}") as caught:
        read({"image": "a.png"} | row)
    assert len(str(caught.value)) < 1000


MESSAGE = {"role": "assistant", "content": "heavy truck"}


@pytest.mark.parametrize(
    ("task", "solution"),
    [
        *[(task, MESSAGE) for task in ("classification", "grounding", "detection", "math", "vqa", "non_object")],
        *[(task, [MESSAGE]) for task in ("classification", "grounding", "detection", "math", "vqa", "non_object")],
        *[(task, json.dumps(MESSAGE)) for task in ("classification", "grounding", "detection", "math", "non_object")],
        ("vqa", json.dumps(MESSAGE)),
        *[(task, True) for task in ("classification", "grounding", "detection", "math", "vqa", "non_object")],
        ("classification", 3),
        ("classification", ["dog"]),
        ("classification", json.dumps(["dog"])),
        ("grounding", 3.5),
        ("math", ["3"]),
        ("math", float("nan")),
        ("vqa", [["a"]]),
        ("vqa", [None]),
        ("vqa", [True]),
        ("non_object", 7),
        ("non_object", ["dog"]),
    ],
)
@pytest.mark.parametrize("column", ["solution", "answer"])
def test_a_solution_of_another_type_is_refused_by_row(tmp_path, make_task, task, solution, column):
    picture().save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "Which?", "image": "a.png", column: solution}))
    found = make_task(str(path), name=task)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 0: the (solution|answer)"):
        found.check(found.train_rows()[0])


@pytest.mark.parametrize(
    ("task", "solution", "label"),
    [
        ("classification", "dog", "<answer>dog</answer>"),
        ("classification", "<answer>7</answer>", "<answer>7</answer>"),
        ("math", 3, r"\boxed{3}"),
        ("math", 3.5, r"\boxed{3.5}"),
        ("math", 3.0, r"\boxed{3}"),
        ("math", "[1, 2]", r"\boxed{[1, 2]}"),
        ("vqa", ["a", "b"], "<answer>a</answer>"),
        ("vqa", [7], "<answer>7</answer>"),
        ("vqa", "7", "<answer>7</answer>"),
    ],
)
def test_a_solution_of_the_right_type_becomes_the_label(tmp_path, make_task, task, solution, label):
    from tests.unit.groups import example

    picture().save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "Which?", "image": "a.png", "solution": solution}))
    found = make_task(str(path), name=task)
    (row,) = found.train_rows()
    found.check(row)
    assert found.render(example(found.ground_truth(row, 1.0, 1.0)), "spaced") == label


@pytest.mark.parametrize(
    "solution",
    [
        [{"bbox_2d": [10, 10, 50, 40], "point_2d": [30, 25]}],
        [{"bbox_2d": [10, 10, 50, 40]}],
        [{"bbox_2d": [10, 10, 50, 40], "point_2d": None, "label": "dog"}],
        {"bbox_2d": [10, 10, 50, 40]},
        {"objects": [{"bbox_2d": [10, 10, 50, 40]}]},
        [[10, 10, 50, 40]],
        [10, 10, 50, 40],
        [10.4, 9.6, 50.49, 39.5],
        "<answer>[[10, 10, 50, 40]]</answer>",
    ],
)
@pytest.mark.parametrize("written", ["as JSON", "as text"])
def test_boxes_as_users_write_them(tmp_path, make_task, solution, written):
    picture().save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    given = json.dumps(solution) if written == "as text" and not isinstance(solution, str) else solution
    path.write_text(json.dumps({"problem": "it", "image": "a.png", "solution": given}))
    task = make_task(str(path))
    (row,) = task.train_rows()
    task.check(row)
    assert task.ground_truth(row, 1.0, 1.0) == TRUTH


def test_a_point_alone_is_refused_by_tasks_of_boxes(tmp_path, make_task):
    picture().save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "it", "image": "a.png", "solution": [{"point_2d": [3, 4]}]}))
    task = make_task(str(path))
    with pytest.raises(DataError, match=r"row 0: the solution item 0 needs bbox_2d .*only task=gui_grounding takes a"):
        task.check(task.train_rows()[0])


@pytest.mark.parametrize(
    "box",
    [[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 0.5], [0.25, 0, 1, 1], [-0.02, 0.1, 1.03, 0.9]],
    ids=["inside", "edges", "mixed", "beyond"],
)
@pytest.mark.parametrize("task", ["non_object", "gui_grounding", "detection"])
def test_boxes_in_shares_of_the_image_are_refused(tmp_path, make_task, task, box):
    picture().save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    item = {"Position": box, "Confidence": 1} if task == "detection" else {"bbox_2d": box, "point_2d": [0.3, 0.4]}
    path.write_text(json.dumps({"problem": "it", "image": "a.png", "solution": [item]}))
    found = make_task(str(path), name=task)
    with pytest.raises(DataError, match=r"row 0: the solution has coordinates between 0 and 1"):
        found.check(found.train_rows()[0])
