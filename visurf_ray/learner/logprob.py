"""Log-probabilities and entropies of tokens from hidden states and the output head, without the logits.

The logits of all tokens for a chunk of the vocabulary live only while it is computed: memory is O(T · chunk) and not
O(T · V), and the chunk stays in the cache. The normaliser is built up chunk by chunk, as in online softmax (Milakov and
Gimelshein, arXiv 1805.02867).
"""

from collections.abc import Iterator, Sequence
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
        chosen, peak, mass, moment = (hidden.new_zeros(len(hidden), dtype=_accumulate(hidden)) for _ in range(4))
        peak -= torch.inf  # largest z so far; mass = Σ exp(z - peak), moment = Σ exp(z - peak) (z - peak)
        for begin, end, z in _scaled_logits(hidden, weight, banned, temperature, chunk):
            inside = ((target >= begin) & (target < end)).nonzero()[:, 0]
            chosen[inside] = z[inside, target[inside] - begin]
            highest = torch.maximum(peak, z.amax(-1))
            shift = (peak - highest).clamp_min_(torch.finfo(z.dtype).min)  # -inf at first, where mass and moment are 0
            p = z.sub_(highest[:, None]).exp()
            moment = (moment + mass * shift) * shift.exp() + torch.linalg.vecdot(p, z)
            mass = mass * shift.exp() + p.sum(-1)
            peak = highest
        normaliser = peak + mass.log()
        entropy = mass.log() - moment / mass
        ctx.save_for_backward(hidden, weight, target, normaliser, entropy)
        ctx.banned, ctx.temperature, ctx.chunk = banned, temperature, chunk
        return chosen - normaliser, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprob: Tensor, grad_entropy: Tensor):  # type: ignore[override]
        hidden, weight, target, normaliser, entropy = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden, dtype=_accumulate(hidden))
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        # Gradients by z, the scaled logits, divided by the temperature are those by the logits.
        of_entropy = -grad_entropy[:, None] / ctx.temperature
        of_target = grad_logprob / ctx.temperature
        constant = of_entropy * entropy[:, None] - of_target[:, None]
        for begin, end, z in _scaled_logits(hidden, weight, ctx.banned, ctx.temperature, ctx.chunk):
            p = z.sub_(normaliser[:, None]).exp()
            grad = p.mul_(torch.addcmul(constant, z, of_entropy))
            inside = ((target >= begin) & (target < end)).nonzero()[:, 0]
            grad[inside, target[inside] - begin] += of_target[inside]
            grad = grad.to(weight.dtype)
            grad_hidden += grad @ weight[begin:end]
            if grad_weight is not None:
                torch.matmul(grad.T, hidden, out=grad_weight[begin:end])
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None


def _accumulate(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _scaled_logits(
    hidden: Tensor, weight: Tensor, banned: list[int], temperature: float, chunk: int
) -> Iterator[tuple[int, int, Tensor]]:
    """First word, end and logits (T, words) of each chunk of the vocabulary."""
    for begin in range(0, len(weight), chunk):
        end = min(begin + chunk, len(weight))
        z = (hidden @ weight[begin:end].T).to(_accumulate(hidden))
        z[:, [word - begin for word in banned if begin <= word < end]] += BANNED_BIAS
        yield begin, end, z if temperature == 1.0 else z.div_(temperature)


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
    chunk: int = 256,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Log-probability of each target, and the entropy (nats) of what it is drawn from; at least float32.

    Both are differentiable in `hidden` and `weight`. banned: token ids that are never sampled. chunk: words of the
    vocabulary whose logits are held at once; memory and speed, never the result.
    """
    return _ChunkedLogprob.apply(hidden, weight, target, list(banned), temperature, chunk)
