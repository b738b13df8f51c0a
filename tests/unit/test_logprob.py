"""Log-probs and entropies without logits, against PyTorch's own distribution over the full logits."""

import pytest
import torch

from visurf_ray.config.choices import HeadDtype
from visurf_ray.learner.logprob import logprob_and_entropy


def naive(hidden, weight, target, banned, temperature):
    logits = hidden @ weight.T
    logits[:, banned] -= 100.0
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    return distribution.log_prob(target), distribution.entropy()


def inputs(tokens=37, vocabulary=101, width=16, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype).mul_(scale).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(10, vocabulary, (tokens,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 10, 37, 1000])
@pytest.mark.parametrize(("temperature", "banned"), [(1.0, []), (0.7, [3, 5])])
def test_values_and_gradients_equal_those_of_full_logits(chunk, temperature, banned):
    hidden, weight, target = inputs(dtype=torch.float64)
    found, expected = (
        logprob_and_entropy(hidden, weight, target, banned=banned, temperature=temperature, chunk=chunk),
        naive(hidden, weight, target, banned, temperature),
    )
    g = torch.randn(2, len(target), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad((a * g[0] + b * g[1]).sum(), (hidden, weight)) for a, b in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_gradcheck():
    hidden, weight, target = inputs(tokens=5, vocabulary=20, width=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: logprob_and_entropy(h, w, target, banned=[1], temperature=1.3, chunk=2), (hidden, weight)
    )


def test_float32_is_exact_to_its_own_rounding():
    hidden, weight, target = inputs(tokens=200, vocabulary=2000, width=64, scale=0.3)
    ours = logprob_and_entropy(hidden, weight, target, chunk=64)[0]
    exact = naive(hidden.double(), weight.double(), target, [], 1.0)[0]
    plain = naive(hidden, weight, target, [], 1.0)[0]
    error = ((ours - exact).norm() / exact.norm()).item()
    assert error < 3e-7
    found, expected = (torch.autograd.grad(value.sum(), (hidden, weight)) for value in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-6


def test_half_precision_heads_give_float32_logprobs():
    hidden, weight, target = inputs(dtype=torch.bfloat16)
    logprob, entropy = logprob_and_entropy(hidden, weight, target)
    assert logprob.dtype == entropy.dtype == torch.float32
    logprob.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_a_float32_head_does_not_round_logits_to_half_precision():
    hidden, weight, target = inputs(tokens=200, vocabulary=500, width=64, dtype=torch.bfloat16, scale=0.3)
    exact = naive(hidden.double(), weight.double(), target, [], 1.0)[0]
    errors = {
        dtype: (logprob_and_entropy(hidden, weight, target, head_dtype=dtype)[0] - exact).abs().mean().item()
        for dtype in HeadDtype
    }
    assert errors[HeadDtype.float32] < 1e-5 < 1e-3 < errors[HeadDtype.model]


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, target = inputs()
    weight.requires_grad_(False)
    logprob_and_entropy(hidden, weight, target)[0].sum().backward()
    assert weight.grad is None and hidden.grad is not None
