"""Reading data: every kind of file, and errors that name a bad row by file, row and id."""

import json
import re
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.conftest import TRUTH, encoded, picture
from visurf_ray.data.rows import read_rows
from visurf_ray.data.stored import StoredImage
from visurf_ray.errors import DataError, UserError
from visurf_ray.groups import Example, Prompt
from visurf_ray.tasks.task import Task


def solution(box, point=(30, 25)) -> str:
    return json.dumps([{"bbox_2d": list(box), "point_2d": list(point)}])


# Good data


def test_six_columns_of_parquet_with_embedded_images(write_parquet):
    source = write_parquet({}, {"problem": "the cat", "solution": "[]", "id": "x"})
    first, second = read_rows(source)
    assert (first.id, first.problem, first.solution) == ("row-0", "the dog", TRUTH)
    assert (second.id, second.problem, second.solution) == ("x", "the cat", "[]")
    assert second.where == f"{source}, row 1 (id x)"
    assert first.open_image().size == (100, 60)
    assert first.open_image().tobytes() == picture().tobytes()


def test_reasoning_is_read_where_it_is_given_and_comes_before_the_labels_answer(write_jsonl, make_task):
    source = write_jsonl({"thinking": "It barks."}, {"thinking": None})
    first, second = read_rows(source)
    assert (first.thinking, second.thinking) == ("It barks.", None)
    task = make_task(source)
    prompt = Prompt([], [])
    label = task.render(Example("a", "the dog", "[]", prompt, (84, 84), first.thinking), "spaced")
    assert label == "<think>It barks.</think><answer>[]</answer>"


def test_relative_paths_start_from_the_files_own_folder_or_image_root(write_jsonl, data_folder):
    (data_folder / "images").mkdir()
    picture(28, 28).save(data_folder / "images" / "small.png")
    source = write_jsonl({"image": "images/small.png"}, {"image": str(data_folder / "picture.png")})
    assert [row.open_image().size for row in read_rows(source)] == [(28, 28), (100, 60)]
    source = write_jsonl({"image": "small.png"})
    assert read_rows(source, str(data_folder / "images"))[0].open_image().size == (28, 28)


def test_rows_without_an_id_are_numbered(write_jsonl):
    source = write_jsonl({}, {})
    assert [(row.id, row.where) for row in read_rows(source)] == [("0", f"{source}, row 0"), ("1", f"{source}, row 1")]


def test_an_id_may_be_a_number_and_a_file_json(write_jsonl):
    source = write_jsonl({"id": 7}, name="data.json")
    assert [(row.id, row.where) for row in read_rows(source)] == [("7", f"{source}, row 0 (id 7)")]


def test_images_come_in_rgb(write_jsonl, data_folder):
    Image.new("LA", (30, 30), (100, 128)).save(data_folder / "grey.png")
    image = read_rows(write_jsonl({"image": "grey.png"}))[0].open_image()
    assert image.mode == "RGB" and image.getpixel((3, 3)) == (177, 177, 177), "half of it is the white behind"


def test_a_file_that_changes_is_read_anew(write_jsonl):
    read_rows(write_jsonl({"problem": "before"}))
    assert read_rows(write_jsonl({"problem": "after"}))[0].problem == "after"


@pytest.fixture
def folder(write_parquet, data_folder):
    """As data sets are laid out on the hub: two files of one split, one of another."""
    (data_folder / "set" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_parquet({"id": name}, name=f"set/data/{name}.parquet")
    return str(data_folder / "set")


def test_a_folder_of_files_is_one_data_set(folder):
    assert [row.id for row in read_rows(folder)] == ["train-00000-of-00002", "train-00001-of-00002"]
    (row,) = read_rows(f"{folder}:test")
    assert row.where == f"{folder}/data/test-00000-of-00001.parquet, row 0 (id test-00000-of-00001)"
    assert row.open_image().tobytes() == picture().tobytes()


def test_a_folder_below_the_home_or_the_present_one(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(folder).parent))
    monkeypatch.chdir(Path(folder).parent)
    assert len(read_rows("~/set")) == len(read_rows("set")) == len(read_rows("./set/data")) == 2


def test_a_folder_of_images_beside_their_rows(data_folder):
    for name in ("a.png", "b.png"):
        picture(30, 20).save(data_folder / name)
    lines = [json.dumps({"file_name": name, "problem": name, "solution": "[]"}) for name in ("a.png", "b.png")]
    (data_folder / "metadata.jsonl").write_text("\n".join(lines))
    rows = read_rows(str(data_folder))
    assert [(row.problem, row.open_image().size) for row in rows] == [("a.png", (30, 20)), ("b.png", (30, 20))]


def test_relative_paths_in_a_folder_start_from_it(write_jsonl, data_folder):
    (data_folder / "rows").mkdir()
    write_jsonl({"image": "../picture.png"}, name="rows/train.jsonl")
    assert read_rows(str(data_folder / "rows"), outside=True)[0].open_image().size == (100, 60)


# General schemas, known by their columns


def test_easyr1s_columns_in_json_lines_and_the_images_place_in_the_problem_is_removed(tmp_path):
    picture(28, 28).save(tmp_path / "small.png")
    path = tmp_path / "train.jsonl"
    record = {"images": ["small.png"], "problem": "<image>How many dogs?", "answer": "2"}
    path.write_text(json.dumps(record) + "\n" + json.dumps(record | {"answer": "3"}) + "\n")
    first, second = read_rows(str(path))
    assert (first.problem, first.solution, second.solution) == ("How many dogs?", "2", "3")
    assert first.open_image().size == (28, 28)


def test_easyr1s_columns_in_parquet_with_a_list_of_embedded_images(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    table = {"images": [[picture()]], "problem": ["<image> Which?"], "answer": ["the left one"]}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "data.parquet"))
    (row,) = read_rows(str(tmp_path / "data.parquet"))
    assert (row.problem, row.solution) == ("Which?", "the left one")
    assert isinstance(row.images[0], StoredImage) and row.open_image().tobytes() == picture().tobytes()


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ([{"role": "user", "content": "How many?"}], "How many?"),
        ([{"role": "system", "content": "Think."}, {"role": "user", "content": "How many?"}], "How many?"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}], "How many?"),
        ("How many?", "How many?"),
    ],
)
@pytest.mark.parametrize("image", [{"image": "picture.png"}, {"image": None, "images": ["picture.png"]}])
@pytest.mark.parametrize("solution", [{"solution": "2"}, {"solution": None, "answer": "2"}])
def test_trls_columns(write_jsonl, prompt, problem, image, solution):
    (row,) = read_rows(write_jsonl({"problem": None, "prompt": prompt, **image, **solution}))
    assert (row.problem, row.solution) == (problem, "2") and row.open_image().size == (100, 60)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"problem": None, "prompt": [{"role": "assistant", "content": "2"}]}, r"alternate, but .* \['assistant"),
        ({"problem": None, "prompt": [{"role": "user", "content": "a"}] * 2}, r"roles are \['user', 'user'\]"),
        ({"problem": None, "prompt": []}, r"roles are \[\]"),
        ({"problem": None, "prompt": ["How many?"]}, 'the prompt is not a conversation: ."How many'),
    ],
)
def test_a_row_outside_the_schemas_is_named(write_jsonl, row, complaint):
    source = write_jsonl(row | {"id": "bad"})
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 0 \(id bad\): .*{complaint}"):
        read_rows(source)


def test_a_solution_that_is_not_text_is_written_as_json(write_jsonl):
    source = write_jsonl({"solution": [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]}]})
    assert json.loads(read_rows(source)[0].solution) == [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]}]


def test_a_tasks_own_columns_and_its_extra_columns(write_jsonl):
    columns = {"problem": ("question", "problem"), "solution": ("solution",), "image": ("image",), "unit": ("unit",)}
    first = read_rows(write_jsonl({"question": "How long?", "unit": "cm"}), columns=columns)[0]
    assert (first.id, first.problem, first.extra) == ("0", "How long?", {"unit": "cm"})
    assert read_rows(write_jsonl({}), columns=columns)[0].extra == {"unit": None}


def test_a_folder_of_a_data_sets_splits_is_read_by_split(write_parquet, data_folder):
    (data_folder / "data").mkdir()
    for split in ("train", "test"):
        write_parquet({"problem": split}, name=f"data/{split}-00000-of-00001.parquet")
    folder = str(data_folder / "data")
    assert [read_rows(folder + wanted)[0].problem for wanted in ("", ":train", ":test")] == ["train", "train", "test"]


def test_good_rows_pass_the_check(write_parquet, make_task):
    task = make_task(write_parquet({}, {"solution": "[]"}, {"solution": solution((0, 0, 100, 60), (100, 0))}))
    for row in task.train_rows() + task.held_out_rows():
        task.check(row)


# Bad files


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "none.csv"])
def test_a_missing_file_is_named(data_folder, name):
    with pytest.raises(UserError, match=re.escape(str(data_folder / name))):
        read_rows(str(data_folder / name))


@pytest.mark.parametrize("key", ["train", "held_out"])
@pytest.mark.parametrize("source", ["a/b", "nowhere", "nowhere/at/all", "a/b:test"])
def test_a_source_that_is_neither_a_folder_nor_on_the_hub_is_named_with_its_key(make_task, key, source):
    """A misspelt folder `a/b` looks like a data set's id."""
    task = make_task(source)
    with pytest.raises(DataError, match=rf"task\.{key}: {source} .*no such folder.*no such Hugging Face data set"):
        (task.train_rows if key == "train" else task.held_out_rows)()


def test_an_empty_folder_and_a_missing_split_are_named(folder, data_folder):
    (data_folder / "empty").mkdir()
    for source in (str(data_folder / "empty"), f"{folder}:validation"):
        with pytest.raises(DataError, match=rf"^{re.escape(source)} cannot be read: (?!there is no such folder)"):
            read_rows(source)


def test_a_file_of_another_kind_is_named(data_folder):
    path = data_folder / "data.csv"
    path.write_text("problem,solution,image\n1,2,3\n")
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_rows(str(path))


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet", "data.json"])
def test_an_empty_file_is_named(data_folder, name):
    (data_folder / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{re.escape(str(data_folder / name))} is empty"):
        read_rows(str(data_folder / name))


@pytest.mark.parametrize(("name", "text"), [("data.jsonl", "\n\n"), ("data.json", "[]")])
def test_a_file_without_rows_is_named(data_folder, name, text):
    (data_folder / name).write_text(text)
    with pytest.raises(DataError, match=rf"{re.escape(str(data_folder / name))}.*no (rows|data)"):
        read_rows(str(data_folder / name))


def test_a_parquet_file_without_rows_is_named(write_parquet):
    source = write_parquet()
    with pytest.raises(DataError, match=rf"{re.escape(source)}.*no (rows|data)"):
        read_rows(source)


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_a_file_whose_content_contradicts_its_suffix_is_named(data_folder, name):
    (data_folder / name).write_text("these are no rows at all\n")
    with pytest.raises(DataError, match=rf"{re.escape(str(data_folder / name))} cannot be read"):
        read_rows(str(data_folder / name))


def test_a_missing_column_is_named_with_the_existing_ones(write_jsonl):
    source = write_jsonl({"solution": None, "reply": "[]"})
    with pytest.raises(DataError, match=rf"{re.escape(source)} has no column solution or answer; it has .*reply"):
        read_rows(source)


# Bad rows


def check_last(task: Task) -> None:
    *good, last = task.train_rows()
    for row in good:
        task.check(row)
    task.check(last)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"image": "nowhere.png"}, "there is no image .*nowhere.png"),
        ({"image": "text.png"}, "text.png cannot be read as an image"),
        ({"image": "."}, "cannot be read as an image"),
        ({"solution": "two dogs"}, "the solution is not JSON"),
        ({"solution": "7"}, "the solution must be a JSON list"),
        ({"solution": solution((1, 2, 3))}, "item 0 needs bbox_2d with 4 numbers"),
        ({"solution": solution("1234")}, "item 0 needs bbox_2d with 4 numbers"),
        ({"solution": solution((50, 10, 10, 40))}, "x1 < x2"),
        ({"solution": solution((10, 10, 101, 40))}, "outside the image of 100.60"),
        ({"solution": solution((10, 10, 50, 40), (30, 61))}, "outside the image of 100.60"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_id(write_jsonl, data_folder, make_task, row, complaint):
    (data_folder / "text.png").write_text("I am no picture")
    source = write_jsonl({"id": "good"}, {"id": "bad"} | row)
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 1 \(id bad\): .*{complaint}"):
        check_last(make_task(source))


def test_a_bad_row_without_an_id_is_named_by_file_and_row(write_jsonl, make_task):
    source = write_jsonl({}, {}, {"solution": "?"})
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 2: the solution is not JSON"):
        check_last(make_task(source))


def test_embedded_bytes_that_are_not_an_image_are_named(write_parquet, make_task):
    source = write_parquet({}, {"image": {"bytes": b"I am no picture", "path": None}})
    with pytest.raises(
        DataError, match=rf"^{re.escape(source)}, row 1 \(id row-1\): the embedded bytes cannot be read"
    ):
        check_last(make_task(source))


@pytest.mark.parametrize("column", ["problem", "solution", "image"])
def test_an_empty_cell_is_named_by_row_and_column(write_parquet, make_task, column):
    source = write_parquet({}, {column: None})
    with pytest.raises(DataError, match=rf"^task\.train: {re.escape(source)}, row 1 \(id row-1\): .*{column}"):
        check_last(make_task(source))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_named_when_it_is_decoded(write_parquet, kind):
    whole = encoded(picture(), kind)
    source = write_parquet({}, {"image": {"bytes": whole[: len(whole) // 2], "path": None}})
    row = read_rows(source)[1]
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 1 \(id row-1\): the image is damaged"):
        row.open_image()


def test_an_image_above_pillows_pixel_limit_is_named(write_parquet):
    """A head that promises 100,000 x 100,000 pixels: Pillow refuses it with an error of its own kind."""
    head = bytearray(encoded(picture()))
    head[16:24] = (100_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    row = read_rows(write_parquet({"image": {"bytes": bytes(head), "path": None}}))[0]
    with pytest.raises(DataError, match=r"row 0 \(id row-0\)"):
        row.open_image()
