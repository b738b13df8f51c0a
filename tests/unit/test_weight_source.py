"""The weights that a learner sends: named as in a model's files, and named once, not at each transfer."""

import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from tests.integration.architectures import configuration
from visurf_ray.weights import stored
from visurf_ray.weights.source import ZeroSource


def test_weights_are_sent_by_the_names_of_the_models_files(tmp_path, monkeypatch):
    model = AutoModelForImageTextToText.from_config(configuration("qwen2_5_vl"))
    model.save_pretrained(tmp_path)
    source = ZeroSource(model)
    monkeypatch.setattr(stored, "revert_weight_conversion", None)
    sent = dict(source)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sent.keys() == set(file.keys()) == {meta.name for meta in source.metadata()}
        assert all(torch.equal(value, file.get_tensor(name)) for name, value in sent.items())
