"""The losses of label tokens, against loops over tokens, with their gradients."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.unit.token_values import gradient_of, some_tokens
from visurf_ray.config.choices import Clip, LabelTerm
from visurf_ray.method import LossConfig, TokenValues, token_losses

PPO = LossConfig(clip_low=0.1, clip_high=0.3, shaping=0.2)


@pytest.fixture
def tokens() -> TokenValues:
    return some_tokens()


def shaped(p: float, advantage: float, entropy: float) -> tuple[float, float]:
    """LUFFY: d/dlog p of -A p / (p + γ) is -A p γ / (p + γ)²; no clipping."""
    return -advantage * p / (p + 0.2), -advantage * p * 0.2 / (p + 0.2) ** 2


def cross_entropy(weight: Callable[[float, float], float]) -> Callable[[float, float, float], tuple[float, float]]:
    """-w log p with a weight of p and H that has no gradient."""

    def loss(p: float, advantage: float, entropy: float) -> tuple[float, float]:
        return -weight(p, entropy) * math.log(p), -weight(p, entropy)

    return loss


def srft(p: float, advantage: float, entropy: float) -> tuple[float, float]:
    supervised = cross_entropy(lambda p, entropy: 0.5 * math.exp(-entropy))
    terms = zip(shaped(p, advantage, entropy), supervised(p, advantage, entropy), strict=True)
    loss, slope = (sum(term) for term in terms)
    return loss, slope


LOSSES = {
    LabelTerm.shaped: shaped,
    LabelTerm.ce: cross_entropy(lambda p, entropy: 1.0),
    LabelTerm.dft: cross_entropy(lambda p, entropy: p),
    LabelTerm.chord: cross_entropy(lambda p, entropy: p * (1 - p)),
    LabelTerm.srft: srft,
}


def test_every_term_is_tried():
    assert {*LOSSES, LabelTerm.ppo} == set(LabelTerm)


@pytest.mark.parametrize("term", LOSSES)
@pytest.mark.parametrize("clip", [Clip.ppo, Clip.cispo])
def test_labels_have_the_terms_loss_and_rollouts_as_ever(tokens, term, clip):
    config = replace(PPO, clip=clip)
    losses, gradient = gradient_of(tokens, replace(config, label_term=term))
    plain_losses, plain_gradient = gradient_of(tokens, config)
    expected, slopes = [], []
    for index, is_label in enumerate(tokens.is_label_T.tolist()):
        p = math.exp(tokens.logprob_T[index].item())
        advantage, entropy = tokens.advantage_T[index].item(), tokens.entropy_T[index].item()
        if is_label:
            loss, slope = LOSSES[term](p, advantage, entropy)
        else:
            factor = 0.1 * math.exp(entropy) if term == LabelTerm.srft and advantage > 0 else 1.0
            loss, slope = factor * plain_losses[index].item(), factor * plain_gradient[index].item()
        expected.append(loss)
        slopes.append(slope)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert 50 < tokens.is_label_T.sum() < 350, "both sources must be there"


def test_dfts_gradient_is_that_of_the_probability(tokens):
    """-sg(p) log p has the gradient of -p: likelier tokens are learnt faster (arXiv 2508.05629, eq. 7)."""
    label = tokens.is_label_T
    _, gradient = gradient_of(tokens, LossConfig(label_term=LabelTerm.dft))
    logprob = tokens.logprob_T.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-logprob.exp().sum(), logprob)
    torch.testing.assert_close(gradient[label], expected[label], rtol=1e-12, atol=0)


def test_entropy_weights_have_no_gradient(tokens):
    entropy = tokens.entropy_T.clone().requires_grad_()
    logprob = tokens.logprob_T.clone().requires_grad_()
    losses = token_losses(replace(tokens, entropy_T=entropy, logprob_T=logprob), LossConfig(label_term=LabelTerm.srft))
    _, of_entropy = torch.autograd.grad(losses.sum(), [logprob, entropy], allow_unused=True)
    assert of_entropy is None
