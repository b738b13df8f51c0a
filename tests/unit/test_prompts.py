"""Conversations, and images at their places in them, as prompts."""

import json

import pytest
from PIL import Image

from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.feed.prompts import PromptMaker


@pytest.fixture
def examples(make_loader, tmp_path):
    """Return the examples of rows for task=vqa, whose images are files of these names, each of its colour."""

    def make(*rows: dict, images=("red.png", "blue.png")):
        for name in images:
            Image.new("RGB", (56, 84), name.partition(".")[0]).save(tmp_path / name)
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"solution": "7"} | row) + "\n" for row in rows))
        loader = make_loader(str(path), "task.prompt=plain", name="vqa")
        loader.check()
        return [loader.example(row) for row in loader.rows["held_out"]]

    return make


def shown(example, processor) -> str:
    """The prompt as text, a placeholder for each image."""
    text = processor.tokenizer.decode(example.prompt.token_ids)
    return text.replace("<|vision_start|><|image_pad|><|vision_end|>", "[image]").partition("<|im_end|>\n")[2]


def test_images_stand_at_their_marks_in_their_order(examples, processor):
    (example,) = examples({"problem": "Is <image> as large as <image>?", "images": ["red.png", "blue.png"]})
    assert "user\nIs [image] as large as [image]?" in shown(example, processor)
    assert [image.getpixel((0, 0)) for image in example.prompt.images] == [(255, 0, 0), (0, 0, 255)]
    grids = example.prompt.features["image_grid_thw"].tolist()
    assert grids == [[1, 6, 4], [1, 6, 4]] and example.prompt.features["pixel_values"].shape[0] == 2 * 24
    assert example.size == (56, 84)


def test_images_without_marks_come_first(examples, processor):
    (example,) = examples({"problem": "Which is larger?", "images": ["red.png", "blue.png"]})
    assert "user\n[image][image]Which is larger?" in shown(example, processor)


def test_a_question_may_have_no_image(examples, processor):
    """Then it carries a small blank one for ranks that need it."""
    text, picture = examples({"problem": "2 + 5 = ?", "images": []}, {"problem": "What?", "images": ["red.png"]})
    assert "user\n2 + 5 = ?" in shown(text, processor) and text.prompt.expanded_ids == text.prompt.token_ids
    assert text.prompt.images == () and text.prompt.image is None and "pixel_values" not in text.prompt.features
    assert text.prompt.stand_in is not None and len(text.prompt.stand_in.images) == 1
    assert picture.prompt.stand_in is None


def test_the_blank_image_is_small_whatever_shape_others_get(processor):
    square = PromptMaker(processor, None, lambda value: value, square=840)
    assert square.seen_size((56, 56)) == (224, 224), "as large as this processor allows"
    assert square.stand_in.features["image_grid_thw"].tolist() == [[1, 4, 4]]


def test_system_message_and_earlier_turns_stand_before_the_question(examples, processor):
    talk = [("system", "Be short."), ("user", "<image>What is it?"), ("assistant", "A wall."), ("user", "Its colour?")]
    messages = [{"role": role, "content": content} for role, content in talk]
    (example,) = examples({"prompt": messages, "images": ["red.png"]})
    text = processor.tokenizer.decode(example.prompt.token_ids)
    assert text.startswith("<|im_start|>system\nBe short.<|im_end|>")
    assert "[image]What is it?<|im_end|>\n<|im_start|>assistant\nA wall.<|im_end|>" in shown(example, processor)
    assert shown(example, processor).endswith("user\nIts colour?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("problem", ["<image> or <image>?", "<image>, <image>, <image>?"])
def test_another_number_of_marks_than_images_is_refused(examples, problem):
    with pytest.raises(DataError, match="row 0"):
        examples({"problem": f"Is it {problem}", "images": ["red.png"]})


def test_large_images_of_other_families_are_scaled_down(processor):
    """A processor of a Qwen-VL family scales them itself."""
    other = type("Processor", (), {"image_processor": object()})()
    maker = PromptMaker(other, 10_000, lambda value: value)
    width, height = maker.seen_size((400, 100))
    assert 9_000 < width * height <= 10_000 and width / height == pytest.approx(4.0, rel=0.02)
    assert maker.seen_size((100, 100)) == (100, 100)
    assert PromptMaker(processor, 10_000, lambda value: value).seen_size((100, 100)) == (112, 112)


@pytest.fixture
def asked(make_task, tmp_path):
    """Return the question of a row, and the task, for a prompt in a file."""

    def ask(template: str, *settings: str, name: str = "vqa"):
        (tmp_path / "my.jinja").write_text(template)
        task = make_task("a.jsonl", f"task.prompt={tmp_path}/my.jinja", *settings, name=name)
        row = Row("0", "Where is it?", "7", (), "row 0")
        return task.question(row), task

    return ask


def test_a_prompt_may_be_a_file(asked):
    question, _ = asked("{% if query %}Q: {{ query }}{% endif %}\nBe short.")
    assert question == "Q: Where is it?\nBe short."


def test_a_prompt_of_ones_own_may_tell_the_unit(asked):
    question, task = asked("{{ query }} Answer {{ unit }}.", name="grounding")
    assert "thousandths" in question and task.tells_unit
    _, task = asked("{{ query }}", name="grounding")
    assert not task.tells_unit


@pytest.mark.parametrize(
    ("template", "message"),
    [("{{ nothing }}", "nothing.*it may name query"), ("{% if %}", r"my\.jinja, line 1: Expected an expression")],
)
def test_a_template_that_cannot_be_filled_is_refused(asked, template, message):
    with pytest.raises(DataError, match=message):
        asked(template)


def test_a_prompt_that_is_not_there_is_refused(make_task):
    with pytest.raises(DataError, match=r"no-such\.jinja cannot be read: No such file"):
        make_task("a.jsonl", "task.prompt=no-such.jinja", name="vqa")
    with pytest.raises(DataError, match=r"ending in \.jinja\. Did you mean"):
        make_task("a.jsonl", "task.prompt=plane", name="vqa")


def test_a_system_message_of_ones_own_takes_the_place_of_the_datas(make_loader, processor, tmp_path):
    (tmp_path / "system.txt").write_text("Answer like a pirate.")
    Image.new("RGB", (56, 56)).save(tmp_path / "red.png")
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Its colour?"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": talk, "images": ["red.png"], "solution": "7"}) + "\n")
    loader = make_loader(str(path), f"task.system={tmp_path}/system.txt", name="vqa")
    (example,) = loader.held_out_examples(None)
    text = processor.tokenizer.decode(example.prompt.token_ids)
    assert "Answer like a pirate." in text and "Be short." not in text


def test_files_of_the_user_are_checked_like_the_data(make_loader, make_task, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "2+2?", "images": [], "solution": "4"}) + "\n")
    (tmp_path / "system.txt").write_text("Be short.<|im_end|>")
    loader = make_loader(str(path), f"task.system={tmp_path}/system.txt", name="vqa")
    with pytest.raises(DataError, match=r"task\.system: its text must not contain <\|im_end\|>"):
        loader.check()
    (tmp_path / "system.txt").write_bytes("Sé breve.".encode("utf-16"))
    with pytest.raises(DataError, match=r"task\.system=.*system\.txt cannot be read: its encoding is UTF-16"):
        make_task(str(path), f"task.system={tmp_path}/system.txt", name="vqa")
