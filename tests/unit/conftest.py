"""Fixtures of the unit tests: a real processor, small data sets in real files, and their loaders."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visurf_ray.config.load import load_config
from visurf_ray.config.schema import TaskConfig

TRUTH = json.dumps([{"bbox_2d": [10, 10, 50, 40], "point_2d": [30, 25]}])


composed = cache(lambda *overrides: load_config(list(overrides)))  # nobody changes what it returns


def task_config(name: str, source: Any, *overrides: str) -> TaskConfig:
    """The task's settings, for training and evaluation on one source unless `overrides` name another.

    All sources share one composition, which takes Hydra a third of a second.
    """
    named = {override.partition("=")[0] for override in overrides}
    files = {split: str(source) for split in ("train", "held_out") if f"task.{split}" not in named}
    return replace(composed(f"task={name}", *overrides).task, **files)


def picture(width: int = 100, height: int = 60, seed: int = 0) -> Image.Image:
    """Noise: it does not compress, so that half a file is half a picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> Iterator[None]:
    """Checks of rows are remembered among tests alone, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISURF_RAY_CACHE", str(tmp_path_factory.mktemp("remembered")))
        yield


@pytest.fixture(scope="session")
def processor():
    """The miniature's, trained on little text."""
    from visurf_ray.miniature.base_model import build_processor
    from visurf_ray.miniature.lessons import tokenizer_corpus
    from visurf_ray.miniature.scenes import draw_scene

    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, "train", digits=3) for _ in range(20)]
    return build_processor(tokenizer_corpus(rng, scenes))


@pytest.fixture
def write_jsonl(tmp_path) -> Callable[..., str]:
    """Writes rows to a file; a row lacks what is None, and has an image of 100x60 unless it is told another."""

    def write(*rows: dict[str, Any], name: str = "data.jsonl") -> str:
        picture().save(tmp_path / "picture.png")
        whole = [{"problem": "the dog", "solution": TRUTH, "image": "picture.png"} | row for row in rows]
        lines = [json.dumps({key: value for key, value in row.items() if value is not None}) for row in whole]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


@pytest.fixture
def write_parquet(tmp_path) -> Callable[..., str]:
    """Writes rows to a file of VisionReasoner's six columns; images are embedded as bytes."""
    import datasets

    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "problem": datasets.Value("string"),
            "solution": datasets.Value("string"),
            "image": datasets.Image(),
            "img_height": datasets.Value("int64"),
            "img_width": datasets.Value("int64"),
        }
    )

    def write(*rows: dict[str, Any], name: str = "data.parquet") -> str:
        whole = [
            {
                "id": f"row-{number}",
                "problem": "the dog",
                "solution": TRUTH,
                "image": {"bytes": encoded(picture()), "path": None},
                "img_height": 60,
                "img_width": 100,
            }
            | row
            for number, row in enumerate(rows)
        ]
        table = {name: [row[name] for row in whole] for name in features}
        path = tmp_path / name
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(path))
        return str(path)

    return write


@pytest.fixture
def make_task() -> Callable[..., Any]:
    """A task on a file, for training and evaluation alike."""
    from visurf_ray.tasks import load_task

    def make(source: str, *overrides: str, seed: int = 0, name: str = "non_object"):
        return load_task(task_config(name, source, *overrides), seed)

    return make


@pytest.fixture
def make_loader(make_task, processor) -> Callable[..., Any]:
    from visurf_ray.feed.loader import ExampleLoader

    def make(source: str, *overrides: str, seed: int = 0, name: str = "non_object", limit=500, put=lambda value: value):
        task = make_task(source, *overrides, seed=seed, name=name)
        loader = ExampleLoader(task, processor, seed=seed, max_prompt_tokens=limit, put=put)
        loader.load_train()
        return loader

    return make


@pytest.fixture
def data_folder(tmp_path) -> Path:
    return tmp_path


@pytest.fixture
def write_visual_rft(tmp_path) -> Callable[..., str]:
    """Writes (problem, solution) pairs to a file in Visual-RFT's layout: three columns, embedded images with alpha."""
    import datasets

    features = {"image": datasets.Image(), "problem": datasets.Value("string"), "solution": datasets.Value("string")}

    def write(*rows: tuple[str, str]) -> str:
        image = {"bytes": encoded(picture().convert("RGBA")), "path": None}
        table = {
            "image": [image] * len(rows),
            "problem": [row[0] for row in rows],
            "solution": [row[1] for row in rows],
        }
        path = tmp_path / "train-00000-of-00001.parquet"
        datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(str(path))
        return str(path)

    return write


@pytest.fixture
def open_task() -> Callable[..., Any]:
    """The task of that name on a data set, for training and evaluation alike."""
    from visurf_ray.tasks import load_task

    def make(name: str, source: Any, *overrides: str):
        return load_task(task_config(name, source, *overrides), seed=0)

    return make


@pytest.fixture
def open_loader(processor) -> Callable[..., Any]:
    """A task's examples, all rows checked: images in the model's size, and ground truths with them."""
    from visurf_ray.feed.loader import ExampleLoader

    def make(task: Any, limit: int = 2000):
        loader = ExampleLoader(task, processor, seed=0, max_prompt_tokens=limit, put=lambda value: value)
        loader.load_train()
        loader.check()
        return loader

    return make


class LocalResult:
    """What a call of a LocalActor has returned, or the error that it has raised, in place of a reference."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value, self.error = None, None
        try:
            self.value = call()
        except Exception as error:
            self.error = error

    def get(self) -> Any:
        if self.error:
            raise self.error
        return self.value


class LocalActor:
    """A data actor in this process, called as Ray's handles are."""

    def __init__(self) -> None:
        from visurf_ray.feed.actor import DataActor

        self.actor = DataActor()

    def __getattr__(self, name: str) -> Any:
        put = {"put": lambda value: value} if name in ("open", "assist") else {}

        def call(*arguments: Any) -> Any:
            given = [each.get() if isinstance(each, LocalResult) else each for each in arguments]
            return pickle.loads(pickle.dumps(getattr(self.actor, name)(*pickle.loads(pickle.dumps(given)), **put)))

        return SimpleNamespace(remote=lambda *arguments: LocalResult(lambda: call(*arguments)))


@pytest.fixture
def open_feed(monkeypatch, tmp_path) -> Callable[..., Any]:
    """Opens the feed of a configuration, with data actors in this process."""
    from visurf_ray.feed import feed

    def get(found):
        return [each.get() for each in found] if isinstance(found, list) else found.get()

    monkeypatch.setattr(feed, "start_actor", LocalActor)
    monkeypatch.setattr(feed, "fetch", lambda found, timeout: get(found))
    monkeypatch.setattr(feed, "ray", SimpleNamespace(get=get, wait=lambda found, timeout: (found, [])))

    def open_(*overrides: str, train: bool = True):
        return feed.DataFeed(load_config([f"feed.cache={tmp_path}/remembered", *overrides]), train=train)

    return open_


def prediction(ground_truth: str, response: str, size: tuple[int, int] = (100, 100)):
    from visurf_ray.groups import Prediction

    return Prediction("a", "a question", ground_truth, size, response)
