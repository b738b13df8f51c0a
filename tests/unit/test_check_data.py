"""A look at a data set: the schema, the numbers, every bad row at once, the guessed task, and the page."""

import base64
import io
import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from tests.integration.runs import is_refused, run_here
from tests.unit.conftest import picture
from visurf_ray.data.bad_rows import listing
from visurf_ray.data.rows import read_rows
from visurf_ray.errors import DataError
from visurf_ray.inspection.schemas import schema_of

SWAPPED = json.dumps([{"bbox_2d": [50, 10, 10, 40]}])
OUTSIDE = json.dumps([{"bbox_2d": [10, 10, 500, 40]}])


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Looks at a data set in an empty folder; returns the console's text and the page."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(source: str, *overrides: str) -> tuple[str, str]:
        done = run_here("check_data", f"check='{source}'", *overrides)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 100 or "written to" in done.stdout.splitlines()[-1]
        text = re.sub(r"\s+", " ", done.stdout)
        return text, (folder / "data_check.html").read_text()

    return run


def test_every_bad_row_is_told_at_once(look, write_jsonl):
    bad = [
        *({"image": "none-1.png"}, {"image": "none-2.png"}, {"solution": "[{]"}, {"solution": None}),
        *({"solution": SWAPPED}, {"solution": OUTSIDE}, {"problem": "word " * 700}, {"problem": "<image><image>two"}),
        {"problem": "an <|im_end|>"},
    ]
    path = write_jsonl({}, *bad, {}, {})
    with open(path, "a") as file:
        file.write("{broken\n[1]\n")
    text, page = look(path, "task=non_object")
    assert "14: 3 can be used, 11 would stop a run" in text and "refused 2 " in text
    for reason in (
        "row 1: there is no image",
        "row 3: the solution is not JSON",
        "row 4: the solution is empty",
        "row 5: the solution item 0 has bbox_2d [50, 10, 10, 40]",
        "row 7: the prompt has",
        "row 8: the text has 2 times <image>, but the row has 1 images",
        "row 9: its text must not contain <|im_end|>",
        "line 13 is not JSON",
        "line 14 must be an object",
    ):
        assert reason in text and reason.replace("<", "&lt;").replace(">", "&gt;") in page


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["feed.on_bad_box=fix"], ["4: 4 can be used, 2 would be repaired", "repaired 2"]),
        (["feed.on_bad_box=drop"], ["4: 2 can be used, 2 would be dropped", "dropped"]),
        (["rollout.max_model_len=60", "feed.on_long=drop"], ["4: 0 can be used", "would be dropped"]),
        (["rollout.max_tokens=5"], ["would be warned of", "the label has", "rollout.max_tokens=5"]),
    ],
)
def test_the_settings_of_a_run_decide(look, write_jsonl, overrides, expected):
    text, _ = look(write_jsonl({}, {}, {"solution": SWAPPED}, {"solution": OUTSIDE}), "task=non_object", *overrides)
    assert all(part in text for part in expected)


def test_pictures_answers_and_boxes_are_measured(look, write_jsonl, tmp_path):
    picture(300, 200).save(tmp_path / "large.png")
    source = write_jsonl({}, {"solution": "[]"}, {"image": "large.png"})
    text, page = look(source)
    for part in (
        "VisionReasoner's and Visual-RFT's training sets (columns problem, solution, image)",
        "non_object, guessed: it accepts 3 of the first rows",
        "3 with one",
        "least 100×60, median 100×60, largest 300×200 pixels",
        "0 in 1, 1 in 2 rows",
        "box sizes",
        "rollout.max_model_len=512",
        "rollout.max_tokens=128",
        "A run would use every row.",
    ):
        assert part in text
    shown = [Image.open(io.BytesIO(base64.b64decode(text))) for text in re.findall(r"base64,([^\"]+)", page)]
    assert len(shown) == 3
    assert [(0, 184, 82) in {color for _, color in image.getcolors(10**6)} for image in shown] == [True, False, True]
    assert "&lt;answer&gt;[{" in page and "the dog" in page and "http" not in page.partition("</style>")[2]


def test_rows_with_no_or_several_pictures_are_counted(look, write_jsonl):
    rows = [
        {"problem": "two", "images": ["picture.png"] * count, "answer": "yes", "image": None} for count in (0, 1, 2)
    ]
    text, page = look(write_jsonl(*[row | {"solution": None} for row in rows]), "task=vqa")
    assert "1 without one, 1 with one, 1 with more" in text and "EasyR1's" in text
    assert "1 distinct; characters: median 3" in text and "'yes' 3×" in text
    assert page.count("<img") == 3 and "no picture" in page


_MESSAGES = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "a cat"}]
_SHARED = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a cat"}]
_BARE = dict.fromkeys(("problem", "solution", "image"))


@pytest.mark.parametrize(
    ("row", "schema", "task"),
    [
        ({}, "VisionReasoner's and Visual-RFT's training sets", "non_object"),
        ({"solution": "<answer>pink primrose</answer>"}, "VisionReasoner's and Visual-RFT's", "classification"),
        ({"solution": "<answer>(10,10),(500,400)</answer>"}, "VisionReasoner's and Visual-RFT's", "grounding"),
        (
            {"solution": "<answer>[{'Position': [1, 2, 30, 40], 'Confidence': 1}]</answer>"},
            "VisionReasoner's and Visual-RFT's",
            "detection",
        ),
        (_BARE | {"problem": "how many?", "answer": "12", "images": ["picture.png"]}, "EasyR1's", "math"),
        (_BARE | {"problem": "what?", "answer": "a red kettle", "images": ["picture.png"]}, "EasyR1's", "vqa"),
        (_BARE | {"prompt": "what?", "answer": "a cat", "image": "picture.png"}, "TRL's", "vqa"),
        (
            _BARE | {"prompt": _MESSAGES[:1], "images": ["picture.png"], "reward_model": {"ground_truth": "4"}},
            "verl's",
            "math",
        ),
        (_BARE | {"messages": _MESSAGES, "images": ["picture.png"]}, "ms-swift's and LLaMA-Factory's", "vqa"),
        (_BARE | {"messages": _MESSAGES[:1], "images": ["picture.png"], "solution": "cat"}, "ms-swift's", "vqa"),
        (_BARE | {"conversations": _SHARED, "images": ["picture.png"]}, "LLaMA-Factory's", "vqa"),
        (_BARE | {"conversations": _SHARED, "image": "picture.png"}, "LLaVA's and Qwen's", "vqa"),
        (_BARE | {"image": "picture.png", "question": "q?", "answers": ["a cat", "cat"]}, "DocVQA's", "vqa"),
        (_BARE | {"imgname": "picture.png", "query": "q?", "label": "12"}, "ChartQA's", "vqa"),
        (
            _BARE | {"image": "picture.png", "question": "q?", "choices": ["a", "b"], "answer": "b", "pid": "1"},
            "MathVista's",
            "math",
        ),
    ],
)
def test_schemas_are_told_and_tasks_guessed(look, write_jsonl, row, schema, task):
    source = write_jsonl(row, row)
    assert schema_of(source).name.startswith(schema)
    text, _ = look(source)
    assert f"task {task}, guessed" in text and "2: 2 can be used" in text


def test_the_files_of_authors_are_recognised(tmp_path):
    def folder(name: str) -> str:
        (tmp_path / name).mkdir()
        return str(tmp_path / name)

    isic, reasonseg, images = folder("isic"), folder("reasonseg"), folder("images")
    picture().save(f"{isic}/ISIC_1.jpg")
    picture().save(f"{reasonseg}/a.jpg")
    (tmp_path / "reasonseg/a.json").write_text('{"text": ["a"], "shapes": []}')
    picture().save(f"{images}/a.png")
    (tmp_path / "images/metadata.jsonl").write_text('{"file_name": "a.png", "problem": "p", "solution": "s"}\n')
    files = {
        "anomaly": {"meta": {"prefix": "a/"}, "train": [], "test": []},
        "gui_grounding": {"1": {"task": "a", "image": "b", "box": "c"}},
        "math": {"1": {"question": "q", "image": "b", "answer": "c"}},
        "vqa": {"data": [{"question": "q", "image": "b", "answers": ["c"]}]},
    }
    for task, content in files.items():
        (tmp_path / f"{task}.json").write_text(json.dumps(content))
        assert schema_of(f"{tmp_path}/{task}.json").task == task
    assert schema_of(f"{tmp_path}/anomaly.json:test").task == "anomaly"
    assert (schema_of(isic).task, schema_of(reasonseg).task) == ("lesion", "reasoning_segmentation")
    assert schema_of(images).name == "folder of images with metadata.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ["name the data to look at", "check=PATH"]),
        (["check=/nowhere/a.jsonl"], ["there is no data file /nowhere/a.jsonl"]),
        (["check=/nowhere"], ["/nowhere", "cannot be read"]),
        (["check=FILE", "output_dir=FILE/page"], ["output_dir=", "is no folder that can be written to"]),
        (["check=FILE", "task=miniature"], ["task=miniature draws its pictures"]),
        (["check=FILE", "task=mixture", "+task.parts.a.task=vqa"], ["task=mixture has the data of several tasks"]),
        (["check=FILE", "task=vqua"], ["vqua", "Did you mean 'vqa'?"]),
        (["check=FILE", "rollout.nn=3"], ["rollout.nn", "Did you mean 'rollout.n'?"]),
        (["check=FILE", "chek=3"], ["chek"]),
    ],
)
def test_what_cannot_be_looked_at_is_refused_in_one_line(write_jsonl, arguments, message):
    source = write_jsonl({})
    assert is_refused(run_here("check_data", *[text.replace("FILE", source) for text in arguments]), message)


def test_data_that_no_task_reads_tell_their_columns(write_jsonl):
    done = run_here("check_data", f"check={write_jsonl(_BARE | {'a': 1, 'b': 2})}")
    assert done.returncode == 2 and "no task can read it: give task=…. It has the columns a, b." in done.stderr


def test_one_of_several_files_may_be_unreadable(look, write_jsonl, tmp_path):
    write_jsonl({}, {}, name="a.jsonl")
    (tmp_path / "b.jsonl").write_text("nothing\nat all\n")
    (tmp_path / "c.jsonl").write_text('{"problem": "é"}', encoding="utf-16")
    text, _ = look(f"{tmp_path}/*.jsonl", "task=non_object")
    assert "2 can be used" in text and "b.jsonl cannot be read: line 1 is not JSON" in text and "UTF-16" in text
    for alone in ("b", "c"):
        assert is_refused(run_here("check_data", f"check={tmp_path}/{alone}.jsonl"), [f"{alone}.jsonl cannot be read"])
    done = run_here("check_data", f"check={tmp_path}/a.jsonl", "task=non_object", "output_dir=new/folder")
    assert done.returncode == 0 and (tmp_path / "work/new/folder/data_check.html").is_file()


def test_a_configuration_of_the_users_own_also_holds_where_the_task_is_guessed(write_jsonl, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text("defaults: [check_data]\nrollout:\n  max_model_len: 333\n")
    own = ["--config-dir", str(tmp_path / "own"), "--config-name", "mine"]
    done = run_here("check_data", *own, f"check={write_jsonl({})}", f"output_dir={tmp_path}")
    assert done.returncode == 0 and "rollout.max_model_len=333" in done.stdout, done.stderr


def test_ctrl_c_is_clean(write_jsonl, monkeypatch):
    from visurf_ray.feed.loader import ExampleLoader

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ExampleLoader, "measured", interrupted)
    done = run_here("check_data", f"check={write_jsonl({})}", "task=non_object")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_reading_stops_at_a_bad_row_unless_all_are_listed(write_jsonl):
    path = write_jsonl({}, {"solution": None}, {}, {"problem": ""})
    with pytest.raises(DataError, match="row 1: the solution is empty"):
        read_rows(path)
    with listing() as found:
        assert [row.id for row in read_rows(path)] == ["0", "2"]
    assert [str(error).rpartition(": ")[2] for error in found.errors] == [
        "the solution is empty",
        "the question is empty",
    ]
    with listing(limit=2):
        assert len(read_rows(path)) == 1
    with pytest.raises(DataError):
        read_rows(path)


def test_the_module_data_is_the_entry_point():
    done = subprocess.run([sys.executable, "-m", "visurf_ray.data"], capture_output=True, text=True, timeout=120)
    assert is_refused(done, ["check=PATH"])


def test_masks_are_read_on_after_a_bad_one(look, write_jsonl):
    bare = {"problem": None, "solution": None, "text": "all of it"}
    whole, nothing = [[True] * 100] * 60, [[False] * 100] * 60
    rows = [bare | {"mask": value} for value in (whole, "?", nothing, whole)]
    rows[0]["text"] = ""  # the masks of the others stay their own
    text, _ = look(write_jsonl(*rows))
    assert "VisionReasoner's evaluation sets, with masks" in text
    assert "4: 2 can be used, 2 would stop a run" in text and "0 in 1, 1 in 1 rows" in text
    assert "row 1: the mask must be" in text and "row 0: the question is empty" in text


def test_a_row_after_a_line_that_is_not_json_keeps_its_number(look, write_jsonl, tmp_path):
    path = write_jsonl({}, {}, {"solution": "?"})
    lines = (tmp_path / "data.jsonl").read_text().splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join([lines[0], "{broken", *lines[1:]]))
    text, _ = look(path, "task=non_object")
    assert "line 2 is not JSON" in text and "row 3: the solution" in text
