"""Packed groups against plain rows and against a dense mask, on every supported architecture."""

import pytest
import torch

from tests.integration.architectures import ARCHITECTURES, TEXT, make_groups, make_model, plain_logprobs
from tests.unit.groups import held
from visurf_ray.config.schema import ModelSource
from visurf_ray.groups import Response, Source, TokenSpan
from visurf_ray.learner import attention
from visurf_ray.learner.packing import pack_prefix
from visurf_ray.learner.policy import Policy, load_model
from visurf_ray.method import LossConfig, token_weights
from visurf_ray.models import attends_causally


@pytest.fixture(scope="module", params=ARCHITECTURES)
def path(request, tmp_path_factory) -> str:
    return make_model(request.param, tmp_path_factory.mktemp(request.param))


def load(path, checkpointing=False, dtype=torch.float32):
    return load_model(ModelSource(path), dtype=dtype, gradient_checkpointing=checkpointing)


def ragged_groups(model):
    """Responses of one token, which enter no row; one that is longer than all others; groups of both kinds alone."""
    groups = make_groups(model)
    generator = torch.Generator().manual_seed(3)

    def responses(*lengths):
        ids = [torch.randint(0, 280, (length,), generator=generator).tolist() for length in lengths]
        return [Response(Source.ROLLOUT, "", TokenSpan.of(tokens, [-1.0] * len(tokens))) for tokens in ids]

    for group, lengths in zip(groups, ((90, 1, 4, 4, 1), (1, 1, 1), (1, 8)), strict=True):
        group.responses = responses(*lengths)
    return groups


GROUPS = (make_groups, ragged_groups)


def packed_logprobs(model, groups, dtype=torch.float32):
    packed = pack_prefix(groups, token_weights(groups, LossConfig()), model, fetch=held, dtype=dtype)
    return Policy(model, temperature=1.0, banned=(), chunk=7)(packed)[0]


def gradients(model, logprobs) -> dict[str, torch.Tensor]:
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(2))
    (logprobs * weights).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def relative_error(ours, theirs) -> float:
    assert ours.keys() == theirs.keys()
    difference = sum((ours[name] - theirs[name]).square().sum() for name in ours).sqrt()
    return float(difference / sum(value.square().sum() for value in theirs.values()).sqrt())


@pytest.fixture(scope="module", params=GROUPS)
def make(request):
    return request.param


@pytest.fixture(scope="module")
def plain(path, make):
    """Log-probs and gradients of the groups' plain rows, by transformers' own attention."""
    model = load(path)
    model.set_attn_implementation("sdpa")
    logprobs = torch.cat([plain_logprobs(model, group) for group in make(model)])
    return logprobs.detach(), gradients(model, logprobs)


def check(model, logprobs, plain) -> None:
    torch.testing.assert_close(logprobs, plain[0], atol=1e-5, rtol=1e-6)
    assert relative_error(gradients(model, logprobs), plain[1]) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_groups_equal_plain_rows(path, make, plain, checkpointing):
    model = load(path, checkpointing)
    check(model, packed_logprobs(model, make(model)), plain)


def test_the_dense_mask_computes_the_same(path, make, plain, monkeypatch):
    """As on CUDA in float32, where there is no flash attention."""
    monkeypatch.setattr(attention, "has_flash", lambda query: False)
    monkeypatch.setattr(attention, "cascade", None)
    model = load(path)
    check(model, packed_logprobs(model, make(model)), plain)


def test_one_group_at_a_time_gives_the_same_as_all_in_one_row(path, make, plain):
    groups = make(load(path))
    found = torch.cat([packed_logprobs(load(path), [group]) for group in groups])
    torch.testing.assert_close(found, plain[0], atol=1e-5, rtol=1e-6)


def test_supervised_rows_have_one_response(path):
    model = load(path)
    groups = make_groups(model)
    for group in groups:
        group.responses = group.responses[-1:]
    expected = torch.cat([plain_logprobs(model, group) for group in groups])
    torch.testing.assert_close(packed_logprobs(model, groups), expected, atol=1e-5, rtol=1e-6)


def test_a_frozen_vision_tower_changes_no_other_gradient(path, make, plain):
    model = load(path)
    model.model.visual.requires_grad_(False)
    found = gradients(model, packed_logprobs(model, make(model)))
    trained = {name: value for name, value in found.items() if value is not None}
    assert {name for name in found if name not in trained} == {name for name in found if ".visual." in name}
    assert relative_error(trained, {name: plain[1][name] for name in trained}) < 1e-5


def test_half_precision_is_as_close_as_half_precision_is(path, make, plain):
    """Packed rows in bfloat16 are no farther from float32 than plain rows in bfloat16, up to a half."""
    model = load(path, dtype=torch.bfloat16)
    groups = make(model)
    for group in groups:
        features = group.example.prompt.features
        features["pixel_values"] = features["pixel_values"].bfloat16()
    rows = torch.cat([plain_logprobs(model, group) for group in groups]).float()
    packed = packed_logprobs(model, groups, dtype=torch.bfloat16)
    assert (packed - plain[0]).abs().mean() < 1.5 * (rows - plain[0]).abs().mean()


def test_models_with_sliding_windows_share_no_prefix(tmp_path, processor):
    """Windows count tokens of the row, and would reach into other responses' place."""
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    models = [
        make_model("qwen2_vl", tmp_path / "with", text=TEXT | windows),
        make_model("qwen2_vl", tmp_path / "without"),
    ]
    for model in models:
        processor.save_pretrained(model)
    assert [attends_causally(ModelSource(model)) for model in models] == [False, True]
