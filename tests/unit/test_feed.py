"""The feed: what its workers prepare does not depend on their number, or on a resume; bad rows are passed over."""

import json
from collections.abc import Sequence

import pytest

from tests.unit.conftest import composed, picture
from tests.unit.test_curriculum import MIXED
from visurf_ray.assembly import write_dropped
from visurf_ray.errors import ConfigError, DataError
from visurf_ray.feed.strictness import Dropped
from visurf_ray.groups import Example

SOME = ["task.train=7", "task.held_out=2"]


def told(examples: Sequence[Example]) -> list[tuple]:
    """What an example is, its pictures and its features included."""
    return [
        (
            one.part,
            one.row,
            one.epoch,
            one.id,
            one.ground_truth,
            one.prompt.expanded_ids,
            [image.tobytes() for image in one.prompt.images],
            {name: value.tolist() for name, value in (one.prompt.features or {}).items()},
        )
        for one in examples
    ]


def names(examples: Sequence[Example]) -> list[str]:
    return [one.id for one in examples]


@pytest.fixture
def some_bad(write_jsonl, data_folder):
    """The settings of a run whose rows 2 and 5, of 8, have lost their pictures."""
    picture(28, 28).save(data_folder / "small.png")
    rows = [{"id": f"{n}", "image": "none.png" if n in (2, 5) else "small.png", "solution": "[]"} for n in range(8)]
    good = write_jsonl({"image": "small.png", "solution": "[]"}, name="good.jsonl")
    return ["task=non_object", f"task.train={write_jsonl(*rows)}", f"task.held_out={good}", "model.max_pixels=50176"]


# Workers


def drawn(feed, sizes: Sequence[int], begin: int = 0) -> list[Example]:
    """Take batches of these sizes, of which every rollout solves the rows with even numbers."""
    feed.seek(begin, {}, {})
    taken = []
    for size in sizes:
        batch = feed.take(size)
        feed.note_solved([one for one in batch if one.row % 2 == 0])
        taken += batch
    return taken


@pytest.mark.parametrize("settings", [SOME, [*MIXED, "feed.curriculum=1"]], ids=["one task", "mixture, curriculum"])
def test_batches_do_not_depend_on_the_number_of_workers(open_feed, settings):
    one, *others = (open_feed(*settings, f"feed.workers={count}") for count in (1, 2, 3))
    found = told(drawn(one, (5, 4, 1, 7)))
    for feed in others:
        assert told(drawn(feed, (5, 4, 1, 7))) == found
        assert (feed.position, feed.left_out) == (one.position, one.left_out)
        assert told(feed.held_out(None)) == told(one.held_out(None))


def test_stored_pictures_reach_other_workers(open_feed, write_parquet):
    """Those of a table, of which a worker has no part."""
    source = write_parquet(*({"id": str(n)} for n in range(6)))
    settings = ["task=non_object", f"task.train={source}", f"task.held_out={source}", "model.max_pixels=50176"]
    one, three = (open_feed(*settings, f"feed.workers={count}") for count in (1, 3))
    assert told(one.take(6)) == told(three.take(6))
    rows = three._workers[0].actor.rows("train", [("", 0, 0)])
    assert three._workers[1].actor.loaders.parts[""].rows == {} and len(rows) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_run_goes_on_with_the_same_examples(open_feed, some_bad, workers):
    """Rows that are dropped in a run are passed over, wherever it begins."""
    settings = [*some_bad, "feed.check=off", "feed.on_bad=drop", f"feed.workers={workers}"]
    feed = open_feed(*settings)
    order, positions = [], []
    for _ in range(16):
        positions.append(feed.position)
        order += names(feed.take(1))
    assert not {"2", "5"} & set(order) and len(set(order)) == 6
    for position in positions[::3]:
        again = open_feed(*settings)
        again.seek(position, {}, {})
        begin = positions.index(position)
        assert names(again.take(3) + again.take(2))[: 16 - begin] == order[begin : begin + 5]


def test_a_resumed_run_counts_no_dropped_row_again(open_feed, some_bad):
    settings = [*some_bad, "feed.check=off", "feed.on_bad=drop"]
    feed = open_feed(*settings)
    feed.take(8)
    assert feed.dropped_state() == {"": sorted([2, 5])}
    again = open_feed(*settings)
    again.seek(feed.position, feed.solved_state(), feed.dropped_state())
    assert names(again.take(12)) == names(feed.take(12)) and again.dropped == []


def test_examples_are_made_once_whatever_is_taken_at_a_time(open_feed):
    """Batches of other sizes than prepared: at a stage's end, or when a batch is refilled."""
    feed = open_feed(*SOME)
    mixture = feed._workers[0].actor.mixture
    loader, made = mixture.parts[""], []
    make = loader.example
    loader.example = lambda row, **more: made.append(row.id) or make(row, **more)
    taken = [example for size in (3, 5, 1, 4) for example in feed.take(size)]
    assert len(made) == 17, "the last four were prepared ahead"
    assert names(taken) == names(mixture.train_batch(0, 13)) == made[:13]


def test_used_examples_are_forgotten_and_a_run_may_go_back(open_feed):
    feed = open_feed(*SOME)
    first = names(feed.take(5))
    assert sorted(feed._ahead) == [5, 6, 7, 8, 9]
    feed.seek(2, {}, {})
    assert names(feed.take(2)) == first[2:4]
    feed.seek(20, {}, {})
    feed.take(1)
    assert sorted(feed._ahead) == [21]


# Held-out examples


def test_held_out_examples_are_prepared_as_they_are_taken(open_feed):
    feed = open_feed("task.train=2", "task.held_out=60", "feed.workers=2")
    asked = []
    request = feed._request
    feed._request = lambda split, number, places: asked.extend(places) or request(split, number, places)
    held_out = feed.held_out(None)
    assert len(held_out) == 60 and not asked
    most = 0
    for number, example in enumerate(held_out):
        most = max(most, len(asked) - number)
        assert example.prompt.features is None and example.prompt.stand_in is None and example.prompt.images
    assert most <= 32 and len(asked) == 60
    assert not any(one.prompt.images for one in held_out.taken) and names(held_out.taken) == names(held_out)


def test_pictures_of_a_held_out_example_can_be_seen_again(open_feed, write_jsonl):
    source = write_jsonl({})
    feed = open_feed("task=non_object", f"task.train={source}", f"task.held_out={source}", "model.max_pixels=50176")
    held_out = feed.held_out(None)
    (example,) = held_out
    (image,) = feed.images(held_out.taken[0])
    assert image.tobytes() == example.prompt.images[0].tobytes() and image.size == example.size == (112, 56)
    assert feed.stored_image(held_out.taken[0]).get().tobytes() == picture().tobytes()


def test_a_limit_holds_for_each_part_and_set(open_feed):
    feed = open_feed(*MIXED, "+eval.sets.sums={task: miniature_math, held_out: 5}", train=False)
    assert [one.part for one in feed.held_out(1)] == ["find", "count", "sums"]
    assert len(feed.held_out(None)) == 2 + 2 + 5


# Bad rows


def test_a_bad_row_is_named_when_it_is_used(open_feed, some_bad):
    feed = open_feed(*some_bad, "feed.check=off")
    with pytest.raises(DataError, match=r"data\.jsonl, row (2|5) .*there is no image .*none\.png"):
        feed.take(8)


def test_bad_rows_are_dropped_and_told_once_each(open_feed, some_bad):
    feed = open_feed(*some_bad, "feed.check=off", "feed.on_bad=drop")
    found = []
    feed.on_drop = found.append
    batch = feed.take(20)
    assert len(batch) == 20 and feed.left_out == 0
    assert sorted(row.id for row in found) == ["2", "5"] and found == feed.dropped
    assert all("there is no image" in row.reason and row.split == "train" for row in found)


def test_a_run_without_any_row_left_ends(open_feed, some_bad, data_folder):
    feed = open_feed(*some_bad, "feed.on_bad=drop", "feed.check=1")
    (data_folder / "small.png").unlink()
    with pytest.raises(DataError, match=r"train: every row is dropped, the last for this reason: .*small\.png"):
        feed.take(2)


def test_rows_that_are_checked_when_they_are_used_are_checked_whole(open_feed, write_jsonl):
    """Their text and boxes as well as their pictures."""
    good = write_jsonl({}, name="good.jsonl")
    swapped = json.dumps([{"bbox_2d": [50, 40, 10, 10], "point_2d": [30, 25]}])
    rows = [{"id": "good"}, {"id": "special", "problem": "<|image_pad|>"}, {"id": "long", "problem": "a dog " * 900}]
    source = write_jsonl(*rows, {"id": "swapped", "solution": swapped})
    settings = ["task=non_object", f"task.train={source}", f"task.held_out={good}", "model.max_pixels=50176"]
    drops = ["feed.check=off", "feed.on_bad=drop", "feed.on_long=drop", "feed.on_bad_box=fix"]
    feed = open_feed(*settings, *drops)
    found = {one.id: one for one in feed.take(8)}
    assert found.keys() == {"good", "swapped"} and {row.id for row in feed.dropped} == {"special", "long"}
    assert found["swapped"].ground_truth == found["good"].ground_truth
    checked = open_feed(*settings, *drops[1:])
    assert {row.id for row in checked.findings.dropped} == {"special", "long"}
    again = {one.id: one for one in checked.take(8)}
    assert [again[name].ground_truth for name in found] == [one.ground_truth for one in found.values()]


def test_a_prompt_that_the_learner_cannot_hold_is_found_when_it_is_used(open_feed, write_jsonl):
    source = write_jsonl({"problem": "the dog " * 30})
    settings = ["task=non_object", f"task.train={source}", f"task.held_out={source}", "model.max_pixels=50176"]
    feed = open_feed(*settings, "feed.check=off", "learner.max_tokens_per_micro_batch=150")
    with pytest.raises(DataError, match=r"row 0: learner\.max_tokens_per_micro_batch=150 does not hold"):
        feed.take(1)


def test_a_held_out_row_that_is_bad_is_left_out_of_evaluations(open_feed, some_bad):
    train = next(setting for setting in some_bad if setting.startswith("task.train="))
    settings = [some_bad[0], train, train.replace("train", "held_out"), some_bad[3]]
    feed = open_feed(*settings, "feed.check=off", "feed.on_bad=drop")
    assert names(feed.held_out(None)) == ["0", "1", "3", "4", "6", "7"]
    assert {row.split for row in feed.dropped} == {"held_out"} and len(feed.held_out(None)) == 6


@pytest.mark.parametrize(("value", "rows"), [("all", None), ("off", 0), ("1000", 1000), ("7", 7)])
def test_which_rows_are_checked(value, rows):
    assert composed(f"feed.check={value}").feed.checked_rows == rows


@pytest.mark.parametrize("value", ["some", "-3", "0", "1.5"])
def test_other_values_are_refused(value):
    with pytest.raises(ConfigError, match=r"^feed\.check=.* must be all, off, or the number of rows to check"):
        composed(f"feed.check={value}")


def test_dropped_rows_of_a_resumed_run_are_added_to_the_file(tmp_path):
    rows = [Dropped("train", f"a.jsonl, row {number}", str(number), "it is bad") for number in range(3)]
    write_dropped([], tmp_path)
    assert not (tmp_path / "dropped.jsonl").exists()

    def written() -> list[str]:
        return [json.loads(line)["id"] for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]

    write_dropped(rows[:2], tmp_path)
    write_dropped(rows[1:], tmp_path, resumed=True)
    assert written() == ["0", "1", "2"]
    write_dropped(rows[2:], tmp_path)
    assert written() == ["2"], "another run in the same folder"
