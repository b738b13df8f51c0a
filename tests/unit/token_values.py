"""Response tokens made by hand, and a small policy with true gradients, for tests of the objective."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tests.unit.groups import ids
from visurf_ray.groups import Group, Source
from visurf_ray.method import LossConfig, TokenValues, token_losses, token_weights

VOCABULARY = 7


def some_tokens(count: int = 400) -> TokenValues:
    """Responses of one to twelve tokens, three of ten labels: ratios from 0.5 to 2, advantages of both signs."""
    generator = torch.Generator().manual_seed(0)

    def uniform(size: int = count) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, 13, (count,), generator=generator)
    response_T = torch.arange(count).repeat_interleave(lengths)[:count]
    is_label_T = (uniform() < 0.3)[response_T]
    old = -3 * uniform()
    normal = torch.randn(3, count, generator=generator, dtype=torch.float64)
    return TokenValues(
        logprob_T=old + (uniform() - 0.5) * 2 * math.log(2),
        old_logprob_T=old,
        advantage_T=normal[0][response_T],
        is_label_T=is_label_T,
        sampler_logprob_T=torch.where(is_label_T, torch.nan, old + normal[1] / 3),
        entropy_T=uniform(),
        response_T=response_T,
        reference_logprob_T=old + normal[2],
    )


def spans(tokens: TokenValues) -> list[range]:
    """The tokens of each response, found by a loop."""
    found: list[list[int]] = []
    for index, number in enumerate(tokens.response_T.tolist()):
        if not index or number != tokens.response_T[index - 1]:
            found.append([])
        found[-1].append(index)
    return [range(each[0], each[-1] + 1) for each in found]


def gradient_of(tokens: TokenValues, config: LossConfig) -> tuple[Tensor, Tensor]:
    """The loss of each token, and the derivative of the sum of all by each log-prob."""
    leaf = tokens.logprob_T.detach().clone().requires_grad_()
    losses = token_losses(replace(tokens, logprob_T=leaf), config)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


class SoftmaxPolicy:
    """The next token given the one before: a table of logits, in float64."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()

    def _distributions(self, token_ids: list[int]) -> Tensor:
        return self.logits.log_softmax(-1)[torch.tensor([0, *token_ids[:-1]])]

    def logprobs(self, token_ids: list[int]) -> Tensor:
        return self._distributions(token_ids)[range(len(token_ids)), token_ids]

    def entropies(self, token_ids: list[int]) -> Tensor:
        logprobs = self._distributions(token_ids)
        return -(logprobs.exp() * logprobs).sum(-1)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.logits)[0]


def weighted_loss(
    policy: SoftmaxPolicy,
    groups: Sequence[Group],
    weights: Sequence[Sequence[float]],
    config: LossConfig,
    *,
    old: SoftmaxPolicy | None = None,
    sampler: SoftmaxPolicy | None = None,
    reference: SoftmaxPolicy | None = None,
) -> Tensor:
    """The sum that a learner computes for a micro-batch of these groups, as rank.py does. Each policy is `policy`
    itself unless it is given."""
    responses = [response for one in groups for response in one.responses]

    def of(chosen: SoftmaxPolicy | None) -> Tensor:
        return torch.cat([(chosen or policy).logprobs(ids(response)) for response in responses])

    def each(values: Sequence[float]) -> Tensor:
        return torch.cat(
            [
                torch.full((r.length,), float(value), dtype=torch.float64)
                for r, value in zip(responses, values, strict=True)
            ]
        )

    is_label = each([response.source is Source.LABEL for response in responses]).bool()
    tokens = TokenValues(
        logprob_T=of(None),
        old_logprob_T=of(old).detach(),
        advantage_T=each([response.advantage for response in responses]),
        is_label_T=is_label,
        sampler_logprob_T=torch.where(is_label, torch.nan, of(sampler).detach()),
        entropy_T=torch.cat([policy.entropies(ids(response)) for response in responses]),
        response_T=each(range(len(responses))).long(),
        reference_logprob_T=of(reference).detach(),
    )
    weight_T = each([weight for of_group in weights for weight in of_group])
    return (token_losses(tokens, config) * weight_T).sum()


def whole_loss(policy: SoftmaxPolicy, groups: Sequence[Group], config: LossConfig, **others: SoftmaxPolicy) -> Tensor:
    """The loss of all groups in one micro-batch."""
    return weighted_loss(policy, groups, token_weights(groups, config), config, **others)
