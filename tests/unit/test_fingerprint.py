"""Whether the training rows are still those with which a run has begun."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.feed.fingerprint import Fingerprint, check_rows

CHECKPOINT = Path("runs/a/checkpoints/step_000004")


def row(number: int, **more) -> Row:
    return Row(**{"id": str(number), "problem": "the dog", "solution": "[]", "images": (), "where": "a.jsonl"} | more)


ROWS = [row(number) for number in range(200)]


def compare(before: list[Row], now: list[Row], *, override: bool = False, part: str = "") -> str | None:
    written = json.loads(json.dumps({part: asdict(Fingerprint.of(before, len(before)))}))
    return check_rows(written, {part: Fingerprint.of(now, len(now))}, CHECKPOINT, override=override)


def test_the_same_rows_pass_without_a_word():
    assert compare(ROWS, [replace(each, where="b.jsonl") for each in ROWS]) is None
    assert compare([], []) is None


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (ROWS[:-1], r"task\.train: it has 199 rows \(before: 200\)"),
        ([*ROWS, row(200)], r"task\.train: it has 201 rows \(before: 200\)"),
        ([], r"task\.train: it has 0 rows \(before: 200\)"),
        ([*ROWS[:100], row(100, solution="[1]"), *ROWS[101:]], r"of 200 rows, rows 100 to 102 have changed"),
        ([*ROWS[:199], row(199, problem="the cat")], r"of 200 rows, rows 196 to 199 have changed"),
        ([*ROWS[:9], row(9, thinking="so"), *ROWS[10:150], row(0), *ROWS[151:]], r"rows 9 to 11 .* 1 further block"),
        (ROWS[::-1], r"rows 0 to 2 have changed, and 63 further blocks"),
    ],
)
def test_rows_that_have_changed_are_refused_and_named(now, told):
    with pytest.raises(DataError, match=told) as caught:
        compare(ROWS, now)
    assert "step_000004" in str(caught.value) and "train.resume_override=true" in str(caught.value)
    line = compare(ROWS, now, override=True)
    assert line is not None and line.startswith("resumed with other training rows: ")


def test_a_part_is_named():
    with pytest.raises(DataError, match=r"task\.parts\.docs\.train: of 3 rows, row 1 has changed"):
        compare(ROWS[:3], [ROWS[0], row(7), ROWS[2]], part="docs")
    found = {"docs": Fingerprint.of(ROWS, 0)}
    with pytest.raises(DataError, match=r"task\.parts\.docs\.train: it has 200 rows, and there was no such part"):
        check_rows({}, found, CHECKPOINT, override=False)


def test_a_picture_counts_by_its_name_and_size_and_a_copy_is_the_same(tmp_path):
    def rows(folder: Path) -> list[Row]:
        return [row(0, images=(folder / "a.png",))]

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    os.utime(tmp_path / "two" / "a.png", (1, 1))
    assert compare(rows(tmp_path / "one"), rows(tmp_path / "two")) is None
    before = Fingerprint.of(rows(tmp_path / "one"), 1)
    Image.effect_noise((8, 8), 50).save(tmp_path / "one" / "a.png")
    assert Fingerprint.of(rows(tmp_path / "one"), 1) != before
    (tmp_path / "one" / "a.png").unlink()
    Fingerprint.of(rows(tmp_path / "one"), 1)  # what is missing is told of by the check of rows


@pytest.mark.parametrize("pictures", [(b"1", b"2"), ("https://a/b.png", "https://a/c.png")])
def test_pictures_of_other_kinds_count(pictures):
    one, other = ([row(0, images=(picture,))] for picture in pictures)
    with pytest.raises(DataError, match=r"of 1 rows, row 0 has changed"):
        compare(one, other)
