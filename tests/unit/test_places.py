"""Relative paths of the user's are absolute wherever the configuration names a file or a folder."""

from dataclasses import fields, is_dataclass

import pytest

from visurf_ray.config.fields import PathRule
from visurf_ray.config.load import load_config
from visurf_ray.config.places import absolute
from visurf_ray.config.schema import EvaluateConfig


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The user's folder; the run works in another one, as a job does."""
    folder = tmp_path / "mine (1)"
    for name in ("model", "sam2", "pictures", "miniature"):
        (folder / name).mkdir(parents=True)
    for name in ("train.jsonl", "my_rewards.py"):
        (folder / name).touch()
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("VISURF_RAY_FOLDER", str(folder))
    return folder


def test_every_file_and_folder_of_the_configuration_becomes_absolute(mine):
    config = load_config(
        [
            *(
                "task=non_object",
                "task.train=train.jsonl",
                "task.held_out=./nothing.jsonl",
                "task.image_root=pictures/../pictures",
            ),
            *("task.segmenter=sam2", "reward=segmentation_mask", "reward.options.model=sam2"),
            *(
                "reward.function=my_rewards.py:score",
                "model.path=model",
                "output_dir=runs/a",
                "train.resume=runs/a/step",
            ),
        ]
    )
    task, reward = config.task, config.reward
    found = [task.train, task.held_out, task.image_root, task.segmenter, reward.options["model"], reward.function]
    names = ["train.jsonl", "nothing.jsonl", "pictures", "sam2", "sam2", "my_rewards.py:score"]
    assert found == [f"{mine}/{name}" for name in names]
    assert [config.model.path, config.output_dir, config.train.resume] == [
        f"{mine}/model",
        f"{mine}/runs/a",
        f"{mine}/runs/a/step",
    ]


def test_what_is_no_path_stays_as_it_is(mine):
    config = load_config(["train.resume=auto", "task.train=32", "reward.function=my_rewards:score"])
    assert (config.train.resume, config.task.train, config.model.path) == ("auto", 32, "miniature")
    assert (config.reward.function, config.task.image_root) == ("my_rewards:score", None)
    config = load_config(["task=non_object", "task.train=s3://a/b.jsonl", "task.image_root=s3://a/pictures"])
    assert (config.task.train, config.task.image_root) == ("s3://a/b.jsonl", "s3://a/pictures")
    config = load_config(["task=non_object", "task.train=owner/name:train", "model.path=Qwen/Qwen2.5-VL-7B-Instruct"])
    assert (config.task.train, config.model.path) == ("owner/name:train", "Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("pictures:test", "{mine}/pictures:test"),
        ("*.jsonl", "{mine}/*.jsonl"),
        ("~/data", "{home}/data"),
        ("/data/a b.jsonl", "/data/a b.jsonl"),
        ("hf://owner/name/*.parquet", "hf://owner/name/*.parquet"),
        (["train.jsonl", "owner/name"], ["{mine}/train.jsonl", "owner/name"]),
        (f"owner/{'x' * 300}", f"owner/{'x' * 300}"),
        ("~nobody-of-this-name/data", "{mine}/~nobody-of-this-name/data"),
    ],
)
def test_data_may_be_a_split_a_pattern_or_a_list(mine, monkeypatch, text, path):
    monkeypatch.setenv("HOME", "/home/me")
    filled = [part.format(mine=mine, home="/home/me") for part in ([path] if isinstance(path, str) else path)]
    assert absolute(text, PathRule(hub=True)) == (filled[0] if isinstance(path, str) else filled)


def test_a_run_that_is_no_job_starts_from_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("VISURF_RAY_FOLDER", raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_config(["output_dir=runs/a"]).output_dir == f"{tmp_path}/runs/a"


def test_the_schema_says_of_every_path_that_it_is_one():
    """Texts that are no paths are listed here: a new one is either named there, or a path."""

    def texts(section, prefix=""):
        for field in fields(section):
            if is_dataclass(field.type):
                yield from texts(field.type, f"{prefix}{field.name}.")
            elif field.type in (str, str | None) and "path" not in field.metadata:
                yield prefix + field.name

    assert set(texts(EvaluateConfig)) == {
        *("cluster.address", "feed.check", "monitor.project", "monitor.paper_row", "method.name"),
        *("task.name", "reward.name", "train.keep_best", "train.push_to_hub"),
    }


def test_a_prompts_name_is_no_path_even_beside_a_folder_of_its_name(mine):
    (mine / "plain").mkdir()
    (mine / "my.jinja").write_text("{{ query }}")
    assert absolute("plain", PathRule(ending=".jinja")) == "plain"
    assert absolute("my.jinja", PathRule(ending=".jinja")) == f"{mine}/my.jinja"
