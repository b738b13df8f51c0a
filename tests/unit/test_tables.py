"""Tables: encodings, types that are not guessed, lists of files, patterns and addresses."""

import errno
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.conftest import TRUTH, encoded, picture
from visurf_ray.config.load import load_config
from visurf_ray.data.rows import read_rows
from visurf_ray.data.tables import expand
from visurf_ray.errors import DataError
from visurf_ray.tasks import load_task

ROW = {"problem": "the café", "solution": TRUTH, "image": "a.png"}
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def folder(tmp_path):
    picture().save(tmp_path / "a.png")
    return tmp_path


def lines(path, *rows, encoding="utf-8", before=b"", end="\n"):
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end
    path.write_bytes(before + text.encode(encoding))
    return str(path)


# Encodings


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_a_byte_order_mark_is_no_part_of_the_text(folder, name, end):
    source = lines(folder / name, ROW, ROW | {"problem": "b"}, before=BOM, end=end)
    assert [row.problem for row in read_rows(source)] == ["the café", "b"]


def test_files_that_were_joined_have_a_mark_in_the_middle(folder):
    first = (BOM + json.dumps(ROW).encode() + b"\n") * 2
    (folder / "rows.jsonl").write_bytes(first)
    assert len(read_rows(str(folder / "rows.jsonl"))) == 2


def test_a_list_in_json_with_a_mark(folder):
    (folder / "rows.json").write_bytes(BOM + json.dumps([ROW], indent=1).encode())
    (folder / "rows.jsonl").write_bytes(BOM + json.dumps([ROW]).encode())
    assert len(read_rows(str(folder / "rows.json"))) == len(read_rows(str(folder / "rows.jsonl"))) == 1


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_wide_encodings_are_named(folder, encoding, named, name):
    source = lines(folder / name, ROW, encoding=encoding)
    with pytest.raises(DataError, match=rf"{re.escape(source)} cannot be read: its encoding is {named}.*UTF-8"):
        read_rows(source)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_a_line_in_latin_1_is_named(folder, name, encoding):
    good = json.dumps(ROW).encode() + b"\n"
    bad = json.dumps(ROW, ensure_ascii=False).encode(encoding) + b"\n"
    (folder / name).write_bytes(good + bad)
    with pytest.raises(DataError, match=r"line 2 is not UTF-8, but perhaps Latin-1 .* byte 0xe9 after .*caf"):
        read_rows(str(folder / name))


def test_marks_before_the_files_of_authors(folder):
    """MathVista's JSON, DocVQA's, OmniACT's index, script and boxes, Real-IAD's classes, ReasonSeg's annotations."""
    math = {"question": "2+2?", "image": "a.png", "choices": None, "unit": None, "precision": None, "answer": "4"}
    vqa = {"data": [{"questionId": 1, "question": "What?", "image": "a.png", "answers": ["it"]}]}
    index = {"1": {"task": "task.txt", "image": "a.png", "box": "box.json"}}
    part = {"category": "nut", "image_path": "a.png", "mask_path": None, "anomaly_class": "OK"}
    real = {"meta": {"prefix": ""}, "train": [part], "test": [part]}
    seg = {"text": ["what?"], "shapes": [{"label": "target", "points": [[10, 10], [60, 10], [60, 50]]}]}
    boxes = {"x": {"top_left": [10, 10], "bottom_right": [50, 40], "label": "x"}}
    script = "Task: press x\nOutput Script:\npyautogui.click(20, 20)"
    (folder / "seg").mkdir()
    picture().save(folder / "seg" / "a.png")
    for name, content in (
        ("math.json", json.dumps({"1": math})),
        ("vqa.json", json.dumps(vqa)),
        ("index.json", json.dumps(index)),
        ("box.json", json.dumps(boxes)),
        ("task.txt", script),
        ("real.json", json.dumps(real)),
        ("seg/a.json", json.dumps(seg)),
    ):
        (folder / name).write_bytes(BOM + content.encode())
    for task, source in (
        ("math", "math.json"),
        ("vqa", "vqa.json"),
        ("gui_grounding", "index.json"),
        ("anomaly", "real.json:train"),
        ("reasoning_segmentation", "seg"),
    ):
        (row,) = load(task, str(folder / source)).train_rows()
        assert row.open_image().size == (100, 60), task
    for name in ("math.json", "real.json", "task.txt", "seg/a.json"):
        (folder / name).write_bytes((folder / name).read_bytes().removeprefix(BOM).decode().encode("utf-16"))
    for task, source in (
        ("math", "math.json"),
        ("anomaly", "real.json:train"),
        ("gui_grounding", "index.json"),
        ("reasoning_segmentation", "seg"),
    ):
        with pytest.raises(DataError, match=r"UTF-16"):
            load(task, str(folder / source)).train_rows()


def load(task, train, *more):
    return load_task(
        load_config([f"task={task}", f"task.train={quoted(train)}", "task.held_out=x.jsonl", *more]).task, 0
    )


def quoted(value):
    return f"[{','.join(map(quoted, value))}]" if isinstance(value, list) else f"'{value}'"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"problem": "a"', r"line 1 is not JSON"),
        (json.dumps(ROW).encode() + b"\n[1, 2]\n", r"line 2 must be an object, not \[1, 2\]"),
        (json.dumps(ROW).encode() + b"\n" + b"x" * 10**6, r"line 2 is not JSON"),
        (b"[" * 100_000, r"nested too deeply|not JSON"),
        (b"7", r"line 1 must be an object, not 7"),
    ],
)
def test_lines_that_are_no_rows_are_named(folder, text, complaint):
    (folder / "rows.jsonl").write_bytes(text)
    with pytest.raises(DataError, match=rf"rows\.jsonl cannot be read: .*{complaint}") as caught:
        read_rows(str(folder / "rows.jsonl"))
    assert len(str(caught.value)) < 1000


# Types


@pytest.mark.parametrize("first", [None, "absent", []])
@pytest.mark.parametrize("column", ["thinking", "id", "solution"])
def test_a_column_may_be_empty_for_the_first_megabytes(folder, first, column):
    if (first == [] and column != "solution") or (first is None and column == "solution"):
        return
    early = ROW | {"problem": "x" * 1000, column: first}
    if first == "absent":
        early.pop(column)
        if column == "solution":
            early["answer"] = "[]"
    late = ROW | {column: [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]}] if column == "solution" else "because"}
    source = lines(folder / "rows.jsonl", *[early] * 12000, late)
    if column == "solution" and first == "absent":
        with pytest.raises(DataError, match=r"row 0: the solution is empty"):
            read_rows(source)
        return
    rows = read_rows(source)
    assert len(rows) == 12001
    last = rows[-1]
    assert {"thinking": last.thinking, "id": last.id, "solution": json.loads(last.solution)}[column] == late[column]


def test_numbers_stay_what_they_are_beside_others(folder):
    solutions = [[{"bbox_2d": [1, 2, 30, 40], "point_2d": [2, 3]}], [{"bbox_2d": [1.5, 2, 30, 40]}], []]
    source = lines(folder / "rows.jsonl", *[ROW | {"solution": solution} for solution in solutions])
    assert [row.solution for row in read_rows(source)] == [json.dumps(solution) for solution in solutions]


def test_a_column_of_several_types_is_read(folder):
    solutions = [TRUTH, json.loads(TRUTH), {"objects": []}, []]
    source = lines(
        folder / "rows.jsonl", *[ROW | {"solution": solution, "id": n} for n, solution in enumerate(solutions)]
    )
    assert [json.loads(row.solution) for row in read_rows(source)] == [json.loads(TRUTH)] * 2 + solutions[2:]


def test_two_files_of_a_folder_may_differ_in_types(folder):
    (folder / "set").mkdir()
    png = encoded(picture())
    columns = {"problem": ["it"], "solution": ["[]"], "image": [png]}
    pq.write_table(pa.table(columns | {"thinking": pa.nulls(1)}), folder / "set" / "train-0.parquet")
    pq.write_table(pa.table(columns | {"thinking": ["so"]}), folder / "set" / "train-1.parquet")
    assert [row.thinking for row in read_rows(str(folder / "set"))] == [None, "so"]


@pytest.mark.parametrize("split", ["", ":train", ":test"])
def test_the_rows_of_a_folder_of_images_are_read_like_other_json(folder, split):
    for name in ("train", "test"):
        (folder / "set" / name).mkdir(parents=True)
        picture().save(folder / "set" / name / "x.PNG")
        row = {"file_name": "x.PNG", "problem": name, "solution": "[]"}
        lines(folder / "set" / name / "metadata.jsonl", row | {"thinking": None}, row | {"thinking": "so"}, before=BOM)
    rows = read_rows(f"{folder}/set{split}")
    assert [(row.problem, row.thinking) for row in rows] == [(split[1:] or "train", None), (split[1:] or "train", "so")]
    assert rows[0].open_image().size == (100, 60)


def test_classes_are_written_by_their_names(folder):
    import datasets

    features = datasets.Features(
        {
            "problem": datasets.Value("string"),
            "solution": datasets.ClassLabel(names=["cat", "dog"]),
            "image": datasets.Image(),
        }
    )
    columns = {"problem": ["it"] * 2, "solution": [1, 0], "image": [{"bytes": encoded(picture()), "path": None}] * 2}
    source = str(folder / "rows.parquet")
    datasets.Dataset.from_dict(columns, features=features).to_parquet(source)
    assert [row.solution for row in load("classification", source).train_rows()] == ["dog", "cat"]


def test_a_large_file_of_data_urls_holds_no_pictures(folder):
    import base64
    import tracemalloc

    url = "data:image/png;base64," + base64.b64encode(encoded(picture(200, 200))).decode()
    source = lines(folder / "rows.jsonl", *[ROW | {"image": {"url": url}, "id": n} for n in range(200)])
    tracemalloc.start()
    rows = read_rows(source)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2e6 < 200 * len(url) / 10
    assert rows[150].open_image().size == (200, 200)


# Sources


def test_a_list_of_sources_is_read_in_its_order(folder, write_parquet):
    first = lines(folder / "a.jsonl", ROW | {"id": "a"})
    second = write_parquet({"id": "b"}, name="b.parquet")
    assert [row.id for row in load("non_object", [second, first]).train_rows()] == ["b", "a"]
    with pytest.raises(DataError, match=r"task\.train: there is no data file .*none\.jsonl"):
        load("non_object", [first, str(folder / "none.jsonl")]).train_rows()
    with pytest.raises(DataError, match=r"task\.train: \[\] must be a data file"):
        load("non_object", []).train_rows()


def test_patterns_match_files(folder):
    for name in ("part-1.jsonl", "part-0.jsonl", "other.json", "odd[1].jsonl"):
        lines(folder / name, ROW | {"id": name})
    (folder / "deep" / "er").mkdir(parents=True)
    lines(folder / "deep" / "er" / "x.jsonl", ROW | {"id": "x", "image": "a.png"})
    read = lambda source: [row.id for row in load("non_object", f"{folder}/{source}").train_rows()]  # noqa: E731
    assert read("part-*.jsonl") == ["part-0.jsonl", "part-1.jsonl"]
    assert read("part-?.jsonl") == ["part-0.jsonl", "part-1.jsonl"]
    assert read("part-[1-9].jsonl") == ["part-1.jsonl"]
    assert read("odd[1].jsonl") == ["odd[1].jsonl"], "the name of a file that exists is no pattern"
    assert read("**/x.jsonl") == ["x"]
    with pytest.raises(DataError, match=r"task\.train: no file matches .*none-\*\.jsonl"):
        read("none-*.jsonl")
    assert expand(f"{folder}/part-*.jsonl:test") == [f"{folder}/part-{n}.jsonl:test" for n in (0, 1)]


@pytest.fixture
def served(folder):
    """The folder under an address of a server in this process."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_tables_and_pictures_at_an_address(folder, served, write_parquet):
    """Relative paths start from the address of the table's folder."""
    lines(folder / "rows.jsonl", ROW, ROW | {"image": {"url": f"{served}/a.png"}})
    write_parquet({"problem": "p"}, name="rows.parquet")
    rows = read_rows(f"{served}/rows.jsonl?download=true")
    assert [row.open_image().size for row in rows] == [(100, 60)] * 2
    assert rows[0].where.startswith(f"{served}/rows.jsonl")
    assert read_rows(f"{served}/rows.parquet")[0].problem == "p"
    lines(folder / "rows.jsonl", ROW | {"problem": "after, and longer"})
    assert read_rows(f"{served}/rows.jsonl")[0].problem == "after, and longer", "a file that changes is fetched again"
    with pytest.raises(DataError, match=r"none\.jsonl cannot be fetched"):
        read_rows(f"{served}/none.jsonl")
    lines(folder / "rows.jsonl", ROW | {"image": "none.png"})
    with pytest.raises(DataError, match=r"rows\.jsonl, row 0: .*none\.png cannot be fetched"):
        read_rows(f"{served}/rows.jsonl")[0].open_image()


def test_addresses_of_files_and_of_other_protocols(folder):
    source = lines(folder / "a b.jsonl", ROW)
    (row,) = read_rows(f"file://{source.replace(' ', '%20')}")
    assert row.open_image().size == (100, 60)
    with fsspec.open("memory://set/rows.jsonl", "wb") as file:
        file.write(json.dumps(ROW).encode())
    with fsspec.open("memory://set/a.png", "wb") as file:
        file.write(encoded(picture()))
    (row,) = read_rows("memory://set/rows.jsonl")
    assert row.open_image().size == (100, 60)
    for address, complaint in (
        ("nowhere://a/rows.jsonl", "fetched: .*not known"),
        ("https://here/rows.csv", "must end in .parquet"),
        ("s3://bucket/rows.jsonl", "s3fs"),
    ):
        with pytest.raises(DataError, match=rf"^{re.escape(address)} cannot be .*{complaint}"):
            read_rows(address)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_a_lack_of_memory_does_not_look_like_data_that_cannot_be_fetched(monkeypatch, error):
    monkeypatch.setattr(fsspec, "url_to_fs", Mock(side_effect=error))
    with pytest.raises(type(error)):
        read_rows("memory://set/lacking.jsonl")


def test_a_lack_of_memory_does_not_look_like_a_damaged_table(folder, write_parquet, monkeypatch):
    """`datasets` hides what it has met behind an error of its own."""
    source = write_parquet({"problem": "p"}, name="rows.parquet")
    generation = datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")
    for lack in (MemoryError(), pa.ArrowMemoryError("malloc of size 128 failed")):
        generation.__cause__ = lack
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=generation))
        with pytest.raises(datasets.exceptions.DatasetGenerationError):
            read_rows(source)


def test_pictures_below_an_address_of_their_own(folder):
    with fsspec.open("memory://pictures/a.png", "wb") as file:
        file.write(encoded(picture()))
    source = lines(folder / "rows.jsonl", ROW)
    (row,) = load("non_object", source, "task.image_root=memory://pictures").train_rows()
    assert row.images == ("memory://pictures/a.png",) and row.open_image().size == (100, 60)


def test_a_text_of_parquet_in_latin_1_is_named_by_row(folder):
    texts = pa.array([b"the cup", "the café".encode("latin-1")]).view(pa.string())
    columns = {"problem": texts, "solution": pa.array(["[]", "[]"]), "image": pa.array(["a.png", "a.png"])}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet, row 1: the problem is not UTF-8 .*byte 0xe9.*save the file"):
        read_rows(str(folder / "rows.parquet"))


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl:train", "rows.arrow:test"])
def test_a_file_of_another_kind_or_with_a_split_is_told_what_its_name_must_be(folder, name):
    (folder / name.partition(":")[0]).write_text("problem\n")
    with pytest.raises(DataError, match=r"rows\..* cannot be read: a file's name must end in \.parquet, .*:split"):
        read_rows(str(folder / name))


def test_a_folder_of_save_to_disk_is_read(folder):
    import datasets

    table = {"problem": ["it"], "solution": ["[]"], "image": ["a.png"]}
    datasets.Dataset.from_dict(table).save_to_disk(str(folder / "saved"))
    picture().save(folder / "saved" / "a.png")
    (row,) = read_rows(str(folder / "saved"))
    assert (row.problem, row.open_image().size) == ("it", (100, 60))


def test_a_parquet_file_may_lie_in_any_store_of_fsspec(write_parquet):
    """`memory://` stands for `s3://`, `gs://` and `hf://`, whose libraries need a network."""
    with open(write_parquet({}, {}), "rb") as file:
        fsspec.filesystem("memory").pipe("/bucket/rows.parquet", file.read())
    rows = read_rows("memory://bucket/rows.parquet")
    assert [row.open_image().size for row in rows] == [(100, 60)] * 2
    assert rows[1].where == "memory://bucket/rows.parquet, row 1 (id row-1)"
    with pytest.raises(DataError, match=r"memory://bucket/none\.parquet cannot be fetched"):
        read_rows("memory://bucket/none.parquet")
