"""Code that comes with a model is run if the user trusts it, and never otherwise."""

import json
from pathlib import Path

import pytest
import torch

from tests.remote_code import save_model_with_code
from visurf_ray.checks import check
from visurf_ray.config.load import load_config
from visurf_ray.config.schema import ModelConfig, ModelSource
from visurf_ray.errors import UserError
from visurf_ray.learner.memory import measure
from visurf_ray.learner.policy import load_model
from visurf_ray.learner.trained import Trained
from visurf_ray.models import attends_causally, load_processor, model_config
from visurf_ray.weights.stored import save_model

TRUST = "model.trust_remote_code=true"


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_model_with_code(tmp_path / "model")


def ran(folder: Path) -> set[str]:
    return {path.name for path in (folder.parent / "ran").iterdir()}


def test_a_model_that_needs_code_is_refused_in_one_line(folder, capsys):
    with pytest.raises(UserError, match=r"model\.path=.*needs code of its own.*model\.trust_remote_code=true") as found:
        check(load_config([f"model.path={folder}"]))
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match=r"model\.trust_remote_code=true"):
        load_processor(ModelConfig(path=str(folder), max_pixels=None))
    for load in (
        lambda: load_model(ModelSource(str(folder)), dtype=torch.float32, gradient_checkpointing=False),
        lambda: measure(ModelSource(str(folder)), Trained()),
        lambda: Trained().check(ModelSource(str(folder))),
    ):
        with pytest.raises((ValueError, UserError), match="trust_remote_code"):
            load()
    assert ran(folder) == set()
    assert "[y/N]" not in capsys.readouterr().out, "nobody is asked"


def test_code_that_is_not_needed_is_not_run(folder):
    """A family and a processor that transformers has: their own classes are taken."""
    for name in ("config.json", "processor_config.json"):
        content = json.loads((folder / name).read_text())
        known = {"model_type": "qwen2_5_vl"} if name == "config.json" else {"processor_class": "Qwen2_5_VLProcessor"}
        (folder / name).write_text(json.dumps(content | known))
    check(load_config([f"model.path={folder}", f"output_dir={folder}/run"]))
    load_model(ModelSource(str(folder)), dtype=torch.float32, gradient_checkpointing=False)
    assert ran(folder) == set()


def test_a_model_is_loaded_and_exported_with_code_that_is_trusted(folder, tmp_path):
    config = load_config([f"model.path={folder}", TRUST, f"output_dir={tmp_path}/run"])
    processor = check(config).processor
    assert type(processor).__name__ == "OwnProcessor"
    trusted = ModelSource(str(folder), trust_remote_code=True)
    assert model_config(trusted).model_type == "own_vl"
    assert attends_causally(trusted)
    assert measure(trusted, Trained()).parameters > 1e6
    model = load_model(trusted, dtype=torch.float32, gradient_checkpointing=False)
    assert type(model).__name__ == "OwnForConditionalGeneration"
    assert ran(folder) == {"configuration_own.py", "modeling_own.py", "processing_own.py"}

    export = tmp_path / "export"
    save_model(model, model.named_parameters(), export)
    processor.save_pretrained(export)
    exported = ModelConfig(path=str(export), max_pixels=None, trust_remote_code=True)
    again = load_model(exported, dtype=torch.float32, gradient_checkpointing=False)
    assert type(again).__name__ == "OwnForConditionalGeneration"
    assert type(load_processor(exported)).__name__ == "OwnProcessor"


def test_code_that_fails_is_named(folder):
    (folder / "processing_own.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match=r"model\.path=.*no_such_package"):
        load_processor(ModelConfig(path=str(folder), max_pixels=None, trust_remote_code=True))
    (folder / "configuration_own.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"model\.path=.*division by zero"):
        model_config(ModelSource(str(folder), trust_remote_code=True))
