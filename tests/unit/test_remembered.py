"""What the check of rows has found is remembered, and forgotten when anything changes that it depends on."""

import json
import os
from io import StringIO

import pytest
from rich.console import Console

from tests.unit.conftest import encoded, picture
from visurf_ray.config.load import load_config
from visurf_ray.errors import DataError
from visurf_ray.feed import progress, remembered
from visurf_ray.feed.loader import ExampleLoader
from visurf_ray.feed.mixture import Findings, Mixture

SWAPPED = json.dumps([{"bbox_2d": [50, 40, 10, 10], "point_2d": [30, 25]}])


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Returns what a run finds, and how many rows it has checked for that."""
    looked = []
    check = ExampleLoader._check
    monkeypatch.setattr(
        ExampleLoader, "_check", lambda self, row, **more: looked.append(row) or check(self, row, **more)
    )

    def open_(source: str, *overrides: str, name: str = "non_object") -> tuple[Findings, int]:
        looked.clear()
        data = [f"task={name}", f"task.train={source}", f"task.held_out={source}", "model.max_pixels=50176"]
        config = load_config([*data, f"feed.cache={tmp_path}/cache", *overrides])
        return Mixture(config, train=True, put=lambda value: value).findings, len(looked)

    return open_


@pytest.fixture
def source(write_jsonl):
    rows = [{"id": "good"}, {"id": "swapped", "solution": SWAPPED}, {"id": "long", "problem": "a dog " * 900}]
    return write_jsonl(*rows)


DROPS = ["feed.on_bad_box=fix", "feed.on_long=drop"]


def test_a_second_run_checks_nothing_and_finds_the_same(opened, source):
    first, looked = opened(source, *DROPS)
    assert looked == 6 and [row.id for row in first.dropped] == ["long", "long"]
    assert opened(source, *DROPS) == (first, 0)
    assert first.rows == {"": {"train": 2, "held_out": 2}}


def test_boxes_that_were_repaired_stay_so(opened, source, tmp_path):
    for _ in range(2):
        opened(source, *DROPS)
        data = ["task=non_object", f"task.train={source}", f"task.held_out={source}", "model.max_pixels=50176"]
        config = load_config([*data, f"feed.cache={tmp_path}/cache", *DROPS])
        good, swapped = Mixture(config, train=True, put=lambda value: value).held_out_examples(None)
        assert swapped.ground_truth == good.ground_truth


@pytest.mark.parametrize(
    "change",
    [
        "rollout.max_model_len=500",
        "rollout.max_tokens=100",
        "model.max_pixels=25088",
        "task.prompt=plain",
        "method=rlvr",
        "feed.on_bad=drop",
        "model.coordinates=thousandths",
    ],
)
def test_settings_that_a_check_depends_on_make_it_anew(opened, source, change):
    opened(source, *DROPS)
    assert opened(source, *DROPS, change)[1] == 6


def test_settings_that_it_does_not_depend_on_leave_it(opened, source):
    opened(source, *DROPS)
    others = ["train.steps=3", "seed=5", "learner.learning_rate=1e-4", "feed.workers=2", "output_dir=elsewhere"]
    assert opened(source, *DROPS, *others)[1] == 0


def test_a_picture_that_has_changed_is_checked(opened, source, data_folder):
    opened(source, *DROPS)
    file = data_folder / "picture.png"
    os.utime(file, ns=(1, 1))
    assert opened(source, *DROPS)[1] == 6
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"row 0 .*is damaged"):
        opened(source, *DROPS)


def test_a_prompt_of_ones_own_that_has_changed_is_checked(opened, source, tmp_path):
    prompt = tmp_path / "own.jinja"
    for text, checked in (("{{ query }}", 6), ("{{ query }}", 0), ("{{ query }}!", 6)):
        prompt.write_text(text)
        assert opened(source, *DROPS, f"task.prompt={prompt}")[1] == checked


def test_the_code_is_part_of_it(opened, source, monkeypatch):
    opened(source, *DROPS)
    monkeypatch.setattr(remembered, "_code", lambda: "another version")
    assert opened(source, *DROPS)[1] == 6


def test_tables_are_known_by_their_files(opened, write_parquet):
    rows = [{"id": str(number)} for number in range(3)]
    assert opened(write_parquet(*rows))[1] == 6 and opened(write_parquet(*rows[:2]))[1] == 4
    source = write_parquet(*rows, name="other.parquet")
    assert opened(source)[1] == 6 and opened(source)[1] == 0

    source = write_parquet(
        *rows[:2], rows[2] | {"image": {"bytes": encoded(picture(seed=3)), "path": None}}, name="other.parquet"
    )
    assert opened(source)[1] == 6


def test_only_the_first_rows_are_checked_and_remembered(opened, source):
    assert opened(source, *DROPS, "feed.check=2")[1] == 4
    assert opened(source, *DROPS, "feed.check=2")[1] == 0
    found, looked = opened(source, *DROPS, "feed.check=off")
    assert looked == 0 and found.longest == {"train": 0, "held_out": 0} and found.most_images == 1
    assert found.rows == {"": {"train": 3, "held_out": 3}}


def test_a_check_that_fails_is_not_remembered(opened, write_jsonl):
    source = write_jsonl({}, {"solution": "?"})
    for _ in range(2):
        with pytest.raises(DataError, match="row 1"):
            opened(source)


def test_what_cannot_be_read_or_written_is_checked_anew(opened, source, tmp_path, capsys):
    opened(source, *DROPS)
    for file in (tmp_path / "cache" / "checks").iterdir():
        file.write_text('{"rows": 3, "new": 1}')
    assert opened(source, *DROPS)[1] == 6
    (tmp_path / "file").write_text("")
    assert opened(source, *DROPS, f"feed.cache={tmp_path}/file")[1] == 6
    assert "the check of the rows is not remembered in" in capsys.readouterr().out


def test_the_cache_is_the_users_unless_it_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("VISURF_RAY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remembered.folder_of(load_config([])) == tmp_path / "visurf_ray"
    monkeypatch.setenv("VISURF_RAY_CACHE", str(tmp_path / "own"))
    assert remembered.folder_of(load_config([])) == tmp_path / "own"
    assert remembered.folder_of(load_config([f"feed.cache={tmp_path}/mine"])) == tmp_path / "mine"


# Progress


def shown(monkeypatch, terminal: bool, *times: float) -> str:
    """What is shown of 1,000 rows, of which 10 are checked in each second."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    console = Console(force_terminal=terminal, width=80, file=StringIO(), record=True)
    with progress.CheckProgress(console) as bar:
        for seconds in times:
            clock[0] = 100.0 + seconds
            bar.show(int(seconds * 10), 1000)
            if bar._bar:
                bar._bar.refresh()
    return console.export_text()


def test_nothing_is_shown_of_a_short_check(monkeypatch):
    assert shown(monkeypatch, False, 0.5, 1.9) == shown(monkeypatch, True, 0.5, 1.9) == ""


def test_a_line_is_shown_now_and_then(monkeypatch):
    lines = shown(monkeypatch, False, *range(25)).splitlines()
    assert lines == ["data  100 of 1,000 rows checked", "data  200 of 1,000 rows checked"]


def test_a_terminal_has_a_bar(monkeypatch):
    assert "checking rows" in shown(monkeypatch, True, 1, 3, 5)
