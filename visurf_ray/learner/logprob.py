"""Log-probabilities and entropies of tokens from hidden states and the output head, without all logits in memory.

Logits are computed for one chunk of the vocabulary at a time: memory is O(T · chunk) instead of O(T · V), and a chunk
fits into the processor's cache. The normaliser is accumulated over chunks, as in online softmax (Milakov and
Gimelshein, arXiv 1805.02867).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from visurf_ray.config.choices import HeadDtype
from visurf_ray.models import BANNED_BIAS


class _ChunkedLogprob(torch.autograd.Function):
    """Saves each token's normaliser; the backward pass computes the logits again, chunk by chunk.

    With z = logits / temperature, p = softmax(z), log-prob l = z[target] - logsumexp(z) and entropy H = -Σ p log p:
    dl/dz = onehot(target) - p and dH/dz = -p (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        banned: list[int],
        temperature: float,
        chunk: int,
        head_dtype: HeadDtype,
    ) -> tuple[Tensor, Tensor]:
        chosen, peak, mass, moment = (hidden.new_zeros(len(hidden), dtype=_accumulate(hidden)) for _ in range(4))
        peak -= torch.inf  # largest z so far; mass = Σ exp(z - peak), moment = Σ exp(z - peak) (z - peak)
        for begin, end, z in _scaled_logits(hidden, weight, banned, temperature, chunk, head_dtype):
            inside, column = _columns(target, begin, end)
            chosen = torch.where(inside, z.gather(1, column)[:, 0], chosen)
            highest = torch.maximum(peak, z.amax(-1))
            shift = (peak - highest).clamp_min_(torch.finfo(z.dtype).min)  # -inf at first, where mass and moment are 0
            p = z.sub_(highest[:, None]).exp()
            moment = (moment + mass * shift) * shift.exp() + torch.linalg.vecdot(p, z)
            mass = mass * shift.exp() + p.sum(-1)
            peak = highest
        normaliser = peak + mass.log()
        entropy = mass.log() - moment / mass
        ctx.save_for_backward(hidden, weight, target, normaliser, entropy)
        ctx.banned, ctx.temperature, ctx.chunk, ctx.head_dtype = banned, temperature, chunk, head_dtype
        return chosen - normaliser, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprob, grad_entropy = gradients
        hidden, weight, target, normaliser, entropy = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden, dtype=_accumulate(hidden))
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        # Gradients by z, the scaled logits, divided by the temperature are those by the logits.
        of_entropy = -grad_entropy[:, None] / ctx.temperature
        of_target = grad_logprob / ctx.temperature
        constant = of_entropy * entropy[:, None] - of_target[:, None]
        for begin, end, z in _scaled_logits(hidden, weight, ctx.banned, ctx.temperature, ctx.chunk, ctx.head_dtype):
            p = z.sub_(normaliser[:, None]).exp()
            grad = p.mul_(torch.addcmul(constant, z, of_entropy))
            inside, column = _columns(target, begin, end)
            grad.scatter_add_(1, column, torch.where(inside, of_target, 0.0)[:, None])
            grad = grad.to(weight.dtype)
            grad_hidden += _product(grad, weight[begin:end], ctx.head_dtype)
            if grad_weight is not None:
                torch.matmul(grad.T, hidden, out=grad_weight[begin:end])
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None


def _accumulate(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _columns(target: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Return which targets lie in a chunk (T,), and each one's column there (T, 1), any column for the others.

    A mask needs no synchronisation with a GPU, where an index of the targets inside would need one.
    """
    column = (target - begin)[:, None]
    return ((target >= begin) & (target < end)), column.clamp(0, end - begin - 1)


def _scaled_logits(
    hidden: Tensor, weight: Tensor, banned: list[int], temperature: float, chunk: int, head_dtype: HeadDtype
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield, for each chunk of the vocabulary, its first index, its end, and logits / temperature (T, end - begin)."""
    for begin in range(0, len(weight), chunk):
        end = min(begin + chunk, len(weight))
        z = _product(hidden, weight[begin:end].T, head_dtype)
        z[:, [token - begin for token in banned if begin <= token < end]] += BANNED_BIAS
        yield begin, end, z if temperature == 1.0 else z.div_(temperature)


def _product(left: Tensor, right: Tensor, head_dtype: HeadDtype) -> Tensor:
    """Return the product in float32 (float64), rounded to the factors' dtype before with HeadDtype.model."""
    if head_dtype is HeadDtype.model:
        return (left @ right).to(_accumulate(left))
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)  # as vLLM does; PyTorch has it on CUDA alone
    return left.to(_accumulate(left)) @ right.to(_accumulate(right))


class LogprobHead(nn.Linear):
    """A language model's output head that returns log-probs and entropies; see `logprob_and_entropy`.

    It is a module in the head's place because ZeRO-3 gathers weights for the forward and backward pass of a module.
    """

    banned: list[int]
    temperature: float
    chunk: int
    head_dtype: HeadDtype

    def __init__(
        self, head: nn.Linear, *, banned: Sequence[int], temperature: float, chunk: int, head_dtype: HeadDtype
    ) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        if head.bias is not None:
            raise ValueError("an output head with a bias is not supported")
        self.weight = head.weight  # shared with the embedding where the model ties them
        self.banned, self.temperature, self.chunk, self.head_dtype = list(banned), temperature, chunk, head_dtype

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return logprob_and_entropy(
            hidden,
            self.weight,
            target,
            banned=self.banned,
            temperature=self.temperature,
            chunk=self.chunk,
            head_dtype=self.head_dtype,
        )


def logprob_and_entropy(
    hidden: Float[Tensor, "T hidden"],
    weight: Float[Tensor, "V hidden"],
    target: Int[Tensor, " T"],
    *,
    banned: Sequence[int] = (),
    temperature: float = 1.0,
    chunk: int = 256,
    head_dtype: HeadDtype = HeadDtype.float32,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Return the log-prob of each target under softmax(logits / temperature), and that distribution's entropy in nats.

    Both are differentiable in `hidden` and `weight`, and are computed in float32, or in float64 if `hidden` is.

    Args:
        banned: token ids that are never sampled: BANNED_BIAS is added to their logits.
        chunk: vocabulary entries whose logits are held at once; trades memory for speed. It changes the result by
            rounding alone.
        head_dtype: `float32` accumulates and keeps logits in float32 (or float64); `model` rounds them to the dtype of
            `hidden`.
    """
    return _ChunkedLogprob.apply(hidden, weight, target, list(banned), temperature, chunk, head_dtype)
