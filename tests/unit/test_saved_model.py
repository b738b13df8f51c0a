"""Models are written a file at a time, and loaded as they were."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from visurf_ray.config.load import load_config
from visurf_ray.errors import ConfigError
from visurf_ray.evaluation import as_model
from visurf_ray.miniature.base_model import BASE_MODEL
from visurf_ray.weights.source import gathered
from visurf_ray.weights.stored import save_model

HEADER = 50_000  # bytes, more than the names and shapes in a file


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(BASE_MODEL, dtype=torch.float32)


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("file_bytes", [2e6, 4e6, 1.0])
def test_many_files_hold_the_model_and_no_more_than_one_is_in_memory(model, tmp_path, file_bytes):
    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        given = 0
        for name, weight in gathered(dict(model.named_parameters())):
            assert given - total(tmp_path) <= max(file_bytes, largest), "what is not in files yet"
            given += weight.nbytes
            yield name, weight

    parameters = dict(model.named_parameters())
    largest = max(weight.nbytes for weight in parameters.values())
    save_model(model, weights(), tmp_path, file_bytes)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) > 1 and sorted(path.name for path in tmp_path.glob("*.safetensors")) == files
    assert all((tmp_path / file).stat().st_size <= max(file_bytes, largest) + HEADER for file in files)
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in parameters.values())
    found = dict(AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).named_parameters())
    assert found.keys() == parameters.keys()
    assert all(torch.equal(found[name], weight) for name, weight in parameters.items())


def test_a_small_model_is_one_file(model, tmp_path):
    save_model(model, model.named_parameters(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_the_folder_of_a_run_is_no_model_but_holds_some(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with ExitStack() as stack, pytest.raises(ConfigError, match=r"is the folder of a run: .* export/ or one of"):
        as_model(str(tmp_path), load_config([]).model, tmp_path, stack)
