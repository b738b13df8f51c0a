"""From rows to examples: images resized with their boxes, prompts that fit, and epochs."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from tests.unit.conftest import encoded, picture
from visurf_ray.config.load import load_config
from visurf_ray.data.stored import StoredImage
from visurf_ray.errors import DataError, UserError
from visurf_ray.feed.loader import ExampleLoader
from visurf_ray.tasks import load_task


def identities(loader, position: int, size: int) -> list[str]:
    return [example.id for example in loader.train_batch(position, size)]


# Images, boxes, prompts


def test_boxes_are_scaled_as_the_image_is_resized(write_parquet, make_loader):
    """100x60 becomes 112x56, multiples of 28: x by 1.12, y by 0.9333, rounded half up."""
    boxes = [{"bbox_2d": [15, 16, 52, 40], "point_2d": [33, 25]}, {"bbox_2d": [10, 10, 55, 47], "point_2d": [30, 22]}]
    (example,) = make_loader(write_parquet({"solution": json.dumps(boxes)})).held_out_examples(None)
    assert example.prompt.images[0].size == (112, 56) and example.prompt.images[0].mode == "RGB"
    assert json.loads(example.ground_truth) == [
        {"bbox_2d": [17, 15, 58, 37], "point_2d": [37, 23]},
        {"bbox_2d": [11, 9, 62, 44], "point_2d": [34, 21]},
    ]


def test_an_image_of_a_fitting_size_is_not_resized_and_its_boxes_are_rounded(write_parquet, make_loader):
    image = picture(112, 56)
    truth = '[{"bbox_2d": [10.5, 10, 50, 40], "point_2d": [30, 25]}]'
    source = write_parquet({"image": {"bytes": encoded(image), "path": None}, "solution": truth})
    (example,) = make_loader(source).held_out_examples(None)
    assert example.ground_truth == truth.replace("10.5", "11")
    assert example.prompt.images[0].tobytes() == image.tobytes()


def test_the_empty_ground_truth_stays_empty(write_parquet, make_loader):
    assert make_loader(write_parquet({"solution": "[]"})).held_out_examples(None)[0].ground_truth == "[]"


def test_large_images_are_scaled_down_with_their_boxes(write_jsonl, make_loader, data_folder):
    """The processor takes 64 cells of 28x28 at most: 560x280 becomes 308x140 or less, and its boxes with it."""
    picture(560, 280).save(data_folder / "large.png")
    truth = '[{"bbox_2d": [0, 0, 560, 280], "point_2d": [280, 140]}]'
    loader = make_loader(write_jsonl({"image": "large.png", "solution": truth}))
    loader.check()
    (example,) = loader.held_out_examples(None)
    width, height = example.prompt.images[0].size
    assert width % 28 == height % 28 == 0 and width * height <= 64 * 28 * 28
    assert json.loads(example.ground_truth)[0]["bbox_2d"] == [0, 0, width, height]


def test_one_image_placeholder_becomes_one_per_visual_token(write_parquet, make_loader, processor):
    (example,) = make_loader(write_parquet({"problem": "the small dog"})).train_batch(0, 1)
    prompt, image_token = example.prompt, processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert Counter(prompt.token_ids)[image_token] == 1
    assert Counter(prompt.expanded_ids)[image_token] == 4 * 2  # 112x56 in cells of 28x28
    assert prompt.features["image_grid_thw"].tolist() == [[1, 4, 8]]
    assert len(prompt.features["pixel_values"]) == 4 * 8
    whole = processor(text=[processor.tokenizer.decode(prompt.token_ids)], images=list(prompt.images))
    assert prompt.expanded_ids == whole["input_ids"][0], "as the model's own processor expands it"
    text = processor.tokenizer.decode(prompt.token_ids)
    assert '"the small dog"' in text and text.endswith("<|im_start|>assistant\n")


def test_a_held_out_example_is_a_training_example_without_features(write_parquet, make_loader):
    loader = make_loader(write_parquet({}))
    (trained,), (held_out,) = loader.train_batch(0, 1), loader.held_out_examples(None)
    assert held_out.prompt.features is None and held_out.prompt.expanded_ids == trained.prompt.expanded_ids
    assert held_out.prompt.token_ids == trained.prompt.token_ids and held_out.ground_truth == trained.ground_truth
    assert held_out.prompt.images[0].tobytes() == trained.prompt.images[0].tobytes()


def test_an_example_holds_only_references_to_image_and_features(write_parquet, make_loader):
    store: list = []

    def put(value):
        store.append(value)
        return f"reference {len(store)}"

    (example,) = make_loader(write_parquet({}), put=put).train_batch(0, 1)
    assert {*example.prompt.images, example.prompt.features} == {"reference 1", "reference 2"}
    assert store[0].size == (112, 56) and set(store[1]) == {"mm_token_type_ids", "pixel_values", "image_grid_thw"}


def test_a_prompt_longer_than_the_model_takes_is_named(write_parquet, make_loader):
    source = write_parquet({}, {"problem": "the dog " * 20, "id": "long"})
    length = max(len(example.prompt.expanded_ids) for example in make_loader(source).held_out_examples(None))
    make_loader(source, limit=length).check()
    with pytest.raises(
        DataError, match=rf"^{re.escape(source)}, row 1 \(id long\): the prompt has {length} tokens.*max_model_len"
    ):
        make_loader(source, limit=length - 1).check()


def test_the_check_names_the_first_bad_row_of_either_split(write_parquet, make_loader):
    source = write_parquet({}, {"solution": "?"})
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 1"):
        make_loader(source).check()
    good = write_parquet({}, name="good.parquet")
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 1"):
        make_loader(good, f"task.held_out='{source}'").check()


@dataclass(frozen=True)
class CountedImage(StoredImage):
    reads: list[int] = field(default_factory=list)

    def read(self) -> bytes:
        self.reads.append(self.index)
        return super().read()


def test_an_image_is_opened_once_in_the_check_and_once_for_an_example(write_parquet, make_loader):
    loader = make_loader(write_parquet({}))
    (row,) = loader.rows["held_out"]
    image = CountedImage(row.images[0].cells, row.images[0].index)
    loader.rows = {"held_out": [replace(row, images=(image,))]}
    loader.check()
    assert image.reads == [0]
    loader.held_out_examples(None)
    assert image.reads == [0, 0]


def test_a_truncated_image_is_named(write_parquet, make_loader):
    whole = encoded(picture(), "JPEG")
    source = write_parquet({"image": {"bytes": whole[: len(whole) // 2], "path": None}})
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 0 \(id row-0\): the image is damaged"):
        make_loader(source).train_batch(0, 1)


def test_an_image_too_narrow_for_the_model_is_named(write_jsonl, data_folder, make_loader):
    """Qwen's resizing refuses sides more than 200 times one another."""
    picture(2, 500).save(data_folder / "narrow.png")
    source = write_jsonl({}, {"image": "narrow.png", "solution": "[]"})
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 1"):
        make_loader(source).check()


def test_a_question_that_holds_an_image_placeholder_is_refused(write_jsonl, make_loader):
    """A second placeholder without a second image breaks sampler and learner far from here."""
    source = write_jsonl({"problem": "the dog <|image_pad|>"})
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 0"):
        make_loader(source).check()


def test_a_task_without_data_names_the_key():
    with pytest.raises(UserError, match=r"task\.train"):
        load_task(load_config(["task=non_object", "task.held_out=a.jsonl"]).task, seed=0).train_rows()


# Epochs


@pytest.fixture
def seven(write_jsonl, data_folder):
    picture(28, 28).save(data_folder / "small.png")
    return write_jsonl(*[{"id": f"{n}", "image": "small.png", "solution": "[]"} for n in range(7)])


def test_every_row_comes_once_in_every_epoch(seven, make_loader):
    loader = make_loader(seven)
    order = [
        identity for begin in range(0, 21, 3) for identity in identities(loader, begin, 3)
    ]  # three epochs of seven
    epochs = [order[begin : begin + 7] for begin in (0, 7, 14)]
    assert all(sorted(epoch) == [str(n) for n in range(7)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2], "each is shuffled anew"


def test_a_batch_may_span_two_epochs_or_more(seven, make_loader):
    loader = make_loader(seven)
    order = [identities(loader, position, 1)[0] for position in range(21)]
    assert identities(loader, 6, 3) == order[6:9]
    assert identities(loader, 0, 20) == order[:20]


def test_batches_depend_only_on_seed_and_position(seven, make_loader):
    first, again, other = make_loader(seven, seed=3), make_loader(seven, seed=3), make_loader(seven, seed=4)
    later = identities(first, 5, 4)
    assert identities(again, 5, 4) == later, "a resumed run goes on with the same rows"
    assert identities(first, 5, 4) == later
    assert identities(first, 0, 21) != identities(other, 0, 21)


def test_held_out_examples_come_in_their_own_order(seven, make_loader):
    loader = make_loader(seven)
    assert [example.id for example in loader.held_out_examples(None)] == [str(n) for n in range(7)]


def test_a_limited_number_of_held_out_examples_is_the_same_for_every_seed(seven, make_loader):
    drawn = [example.id for example in make_loader(seven).held_out_examples(3)]
    assert drawn == sorted(set(drawn)) and len(drawn) == 3 and set(drawn) != {"0", "1", "2"}
    assert [example.id for example in make_loader(seven, seed=5).held_out_examples(3)] == drawn
    assert len(make_loader(seven).held_out_examples(100)) == 7


def test_the_miniature_loads_like_any_data(processor):
    task = load_task(load_config(["task.train=6", "task.held_out=4"]).task, seed=0)
    loader = ExampleLoader(task, processor, seed=0, max_prompt_tokens=500, put=lambda value: value)
    assert loader.load_train() == 6
    loader.check()
    held_out = loader.held_out_examples(None)
    for example in loader.train_batch(0, 6) + held_out:
        assert example.prompt.images[0].size == (84, 84), "nothing is resized"
    assert len(held_out) == 4


@pytest.mark.parametrize("key", ["train", "held_out"])
def test_a_miniature_without_scenes_names_the_key(processor, key):
    with pytest.raises(UserError, match=rf"task\.{key}"):
        task = load_task(load_config(["task.train=4", "task.held_out=4", f"task.{key}=0"]).task, seed=0)
        loader = ExampleLoader(task, processor, seed=0, max_prompt_tokens=500, put=lambda value: value)
        loader.load_train()
        loader.check()
