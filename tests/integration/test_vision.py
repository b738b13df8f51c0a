"""The vision tower's attention against transformers' own: one call of SDPA for each window or picture."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.integration.architectures import ARCHITECTURES, configuration, make_model
from visurf_ray.config.schema import ModelSource
from visurf_ray.learner import vision
from visurf_ray.learner.policy import load_model
from visurf_ray.learner.vision import VISION, vision_arguments

PICTURES = {  # frames, and patches downwards and across
    "one window": [(1, 4, 4)],
    "equal windows": [(1, 8, 16)],
    "odd windows": [(1, 10, 14)],
    "several pictures": [(1, 6, 8), (1, 4, 4), (1, 18, 10), (1, 6, 8)],
    "frames": [(3, 6, 10), (1, 8, 8)],
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tower(request):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(configuration(request.param), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # so that attention is far from uniform
    return model.model.visual


def outputs_and_gradients(tower, implementation, pictures, arguments):
    """Of every layer's output and of the merged tokens."""
    config = tower.config
    tower.zero_grad()
    config._attn_implementation = implementation
    generator = torch.Generator().manual_seed(1)
    channels = 3 * config.temporal_patch_size * config.patch_size**2
    patches = sum(frames * height * width for frames, height, width in pictures)
    pixels = torch.randn(patches, channels, generator=generator).requires_grad_()
    outputs = tower(pixels, grid_thw=torch.tensor(pictures), **arguments)
    merged = [outputs.pooler_output, *(getattr(outputs, "deepstack_features", None) or [])]
    sum((tensor * torch.randn(tensor.shape, generator=generator)).sum() for tensor in merged).backward()
    gradients = [pixels.grad, *(parameter.grad.clone() for parameter in tower.parameters())]
    return [tensor.detach() for tensor in merged], gradients


def stripped(arguments):
    """As the model passes them to its tower."""
    return {name.removeprefix("image_"): value for name, value in arguments.items()}


@pytest.mark.parametrize("pictures", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("planned", [True, False])
def test_outputs_and_gradients_are_those_of_transformers(tower, pictures, planned):
    expected, their_gradients = outputs_and_gradients(tower, "sdpa", pictures, {})
    grid = torch.tensor(pictures)
    arguments = stripped(vision_arguments(tower.config, grid, torch.device("cpu"))) if planned else {}
    found, our_gradients = outputs_and_gradients(tower, VISION, pictures, arguments)
    for ours, theirs in zip(found + our_gradients, expected + their_gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_equal_windows_share_a_call_and_lengths_stay_on_the_host(monkeypatch):
    """A picture of 30 × 30 tokens has 49 windows of 4 × 4, 14 of 4 × 2 and one of 2 × 2."""
    config = configuration("qwen2_5_vl").vision_config
    config.window_size = 8 * config.patch_size
    arguments = vision_arguments(config, torch.tensor([[1, 60, 60], [1, 60, 60]]), torch.device("cpu"))
    windows, pictures = arguments["image_cu_window_seqlens"], arguments["image_cu_seqlens"]
    assert [(run.count, run.length) for run in windows.runs] == [(1, 16), (14, 32), (49, 64)] * 2
    assert [(run.count, run.length) for run in pictures.runs] == [(2, 3600)]
    assert windows.cumulative.dtype is torch.int32 and windows.cumulative[-1] == pictures.cumulative[-1] == 7200
    assert torch.equal(arguments["image_window_index"].sort().values, torch.arange(1800))
    batches = []

    def count(query, *others, **kwargs):
        batches.append(tuple(query.shape))
        return query

    monkeypatch.setattr(vision, "scaled_dot_product_attention", count)
    row = torch.randn(1, 2, 7200, 8)
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    vision.vision_attention(None, row, row, row, None, scaling=1.0, cu_seq_lens_q=windows)
    assert batches == [(1, 2, 16, 8), (14, 2, 32, 8), (49, 2, 64, 8)] * 2


def test_the_learner_loads_models_with_it(tmp_path):
    for architecture in ARCHITECTURES:
        folder = make_model(architecture, tmp_path / architecture)
        model = load_model(ModelSource(folder), dtype=torch.float32, gradient_checkpointing=False)
        assert model.model.visual.config._attn_implementation == VISION
