"""Log-probabilities and entropies of tokens from hidden states and the output head, without the logits.

The logits of a chunk of tokens live only while that chunk is computed: memory is O(chunk · V) and not O(T · V), for
2,048 tokens of Qwen's 151,936 words 0.15 GB and not several GB.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from visurf_ray.models import BANNED_BIAS


class _ChunkedLogprob(torch.autograd.Function):
    """Saves each token's normaliser; the backward pass computes a chunk's logits again.

    With z = logits / temperature, p = softmax(z), log-prob l = z[target] - logsumexp(z) and entropy H = -Σ p log p:
    dl/dz = onehot(target) - p and dH/dz = -p (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, banned: list[int], temperature: float, chunk: int
    ):
        logprob, entropy, normaliser = (hidden.new_empty(len(hidden), dtype=_accumulate(hidden)) for _ in range(3))
        for part in _chunks(len(hidden), chunk):
            z = _scaled_logits(hidden[part], weight, banned, temperature)
            normaliser[part] = z.logsumexp(-1)
            logprob[part] = z.gather(-1, target[part, None])[:, 0] - normaliser[part]
            z -= normaliser[part, None]
            entropy[part] = -(z.exp().mul_(z)).sum(-1)
            del z  # else it lives on beside the next chunk's
        ctx.save_for_backward(hidden, weight, target, normaliser, entropy)
        ctx.banned, ctx.temperature, ctx.chunk = banned, temperature, chunk
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprob: Tensor, grad_entropy: Tensor):  # type: ignore[override]
        hidden, weight, target, normaliser, entropy = ctx.saved_tensors
        with_entropy = bool(grad_entropy.any())
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part in _chunks(len(hidden), ctx.chunk):
            z = _scaled_logits(hidden[part], weight, ctx.banned, ctx.temperature).sub_(normaliser[part, None])
            p = z.exp()
            if with_entropy:
                z.add_(entropy[part, None]).mul_(grad_entropy[part, None]).add_(grad_logprob[part, None])
                grad = p.mul_(z).neg_()
            else:
                grad = p.mul_(-grad_logprob[part, None])
            grad.scatter_add_(-1, target[part, None], grad_logprob[part, None])
            grad = grad.div_(ctx.temperature).to(weight.dtype)
            torch.matmul(grad, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[part])
            del z, p, grad
        return grad_hidden, grad_weight, None, None, None, None


def _accumulate(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, total)) for begin in range(0, total, size)]


def _scaled_logits(hidden: Tensor, weight: Tensor, banned: list[int], temperature: float) -> Tensor:
    z = (hidden @ weight.T).to(_accumulate(hidden))
    z[:, banned] += BANNED_BIAS
    return z.div_(temperature)


class LogprobHead(nn.Linear):
    """A language model's output head that returns log-probs and entropies; see `logprob_and_entropy`.

    A module of its own, in the head's place, so that ZeRO-3 gathers its weight for the forward and the backward pass.
    """

    banned: list[int]
    temperature: float
    chunk: int

    def __init__(self, head: nn.Linear, *, banned: Sequence[int], temperature: float, chunk: int) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        if head.bias is not None:
            raise ValueError("an output head with a bias is not supported")
        self.weight = head.weight  # shared with the embedding where the model ties them
        self.banned, self.temperature, self.chunk = list(banned), temperature, chunk

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return logprob_and_entropy(
            hidden, self.weight, target, banned=self.banned, temperature=self.temperature, chunk=self.chunk
        )


def logprob_and_entropy(
    hidden: Float[Tensor, "T hidden"],
    weight: Float[Tensor, "V hidden"],
    target: Int[Tensor, " T"],
    *,
    banned: Sequence[int] = (),
    temperature: float = 1.0,
    chunk: int = 128,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Log-probability of each target, and the entropy (nats) of what it is drawn from; at least float32.

    Both are differentiable in `hidden` and `weight`. banned: token ids that are never sampled. chunk: tokens whose
    logits are held at once; memory, never the result.
    """
    return _ChunkedLogprob.apply(hidden, weight, target, list(banned), temperature, chunk)
