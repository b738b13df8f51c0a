"""PyTorch's flash attention with its log-sum-exp, forward and backward, for tokens in a row (L, heads, D).

The CPU's kernel takes batches of equal length. CUDA's takes sequences of any lengths in one call, and needs half
precision. Both read keys and values of grouped heads where they are. The backward passes take an output and a
log-sum-exp over *all* keys that a query sees, of which the given keys may be a part: they return that part's share of
the gradients.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visurf_ray.learner.sequences import Run, Sequences

Row = Float[Tensor, "L heads D"]
LogSumExp = Float[Tensor, "heads L"]
Ends = Int[Tensor, "2 2"]  # (0, number of queries), (0, number of keys)
Gradients = tuple[Tensor, Tensor, Tensor]  # of queries, keys and values

_aten = torch.ops.aten
_cpu_forward = _aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = _aten._scaled_dot_product_flash_attention_for_cpu_backward


def has_flash(query: Tensor) -> bool:
    """Return whether flash attention exists for the device, dtype and head size of a query (its last axis)."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    size = query.shape[-1]
    return query.device.type == "cpu" or (_on_cuda(query) and half and size % 8 == 0 and size <= 256)


def causal(query: Row, key: Row, value: Row, sequences: Sequences, scale: float) -> tuple[Row, LogSumExp]:
    """Each sequence attends to itself, causally."""
    if _on_cuda(query):
        ends, longest = sequences.cumulative, sequences.longest
        return _cuda_forward(query, key, value, ends, ends, longest, longest, True, scale)
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[1], len(query), dtype=torch.promote_types(query.dtype, torch.float32))
    for run in sequences.runs:
        batch = (_batch(tensor, run) for tensor in (query, key, value))
        run_out, run_lse = _cpu_forward(*batch, 0.0, True, scale=scale)
        _batch(out, run).copy_(run_out)
        _batch_lse(lse, run).copy_(run_lse)
    return out, lse


def causal_backward(
    grad: Row, query: Row, key: Row, value: Row, out: Row, lse: LogSumExp, sequences: Sequences, scale: float
) -> Gradients:
    if _on_cuda(query):
        ends, longest = sequences.cumulative, sequences.longest
        return _cuda_backward(grad, query, key, value, out, lse, ends, ends, longest, longest, True, scale)
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for run in sequences.runs:
        batch = (_batch(tensor, run) for tensor in (grad, query, key, value, out))
        found = _cpu_backward(*batch, _batch_lse(lse, run), 0.0, True, scale=scale)
        for gradient, part in zip(gradients, found, strict=True):
            _batch(gradient, run).copy_(part)
    return gradients


def full(query: Row, key: Row, value: Row, ends: Ends, scale: float) -> tuple[Row, LogSumExp]:
    """Every query attends to every key."""
    if _on_cuda(query):
        return _cuda_forward(query, key, value, ends[0], ends[1], len(query), len(key), False, scale)
    batch = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    out, lse = _cpu_forward(*batch, 0.0, False, scale=scale)
    return out[0].transpose(0, 1), lse[0]


def full_backward(
    grad: Row, query: Row, key: Row, value: Row, out: Row, lse: LogSumExp, ends: Ends, scale: float
) -> Gradients:
    if _on_cuda(query):
        sizes = len(query), len(key)
        return _cuda_backward(grad, query, key, value, out, lse, ends[0], ends[1], *sizes, False, scale)
    batch = (tensor.transpose(0, 1)[None] for tensor in (grad, query, key, value, out))
    of_query, of_key, of_value = _cpu_backward(*batch, lse[None], 0.0, False, scale=scale)
    return of_query[0].transpose(0, 1), of_key[0].transpose(0, 1), of_value[0].transpose(0, 1)


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _batch(row: Row, run: Run) -> Float[Tensor, "count heads length D"]:
    return row[run.span].unflatten(0, (run.count, run.length)).transpose(1, 2)


def _batch_lse(lse: LogSumExp, run: Run) -> Float[Tensor, "count heads length"]:
    return lse[:, run.span].unflatten(1, (run.count, run.length)).transpose(0, 1)


def _cuda_forward(
    query: Row,
    key: Row,
    value: Row,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
    is_causal: bool,
    scale: float,
) -> tuple[Row, LogSumExp]:
    out, lse, *_ = _aten._flash_attention_forward(
        query, key, value, query_ends, key_ends, most_queries, most_keys, 0.0, is_causal, False, scale=scale
    )
    return out, lse


def _cuda_backward(
    grad: Row,
    query: Row,
    key: Row,
    value: Row,
    out: Row,
    lse: LogSumExp,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
    is_causal: bool,
    scale: float,
) -> Gradients:
    unused = query.new_empty(2, dtype=torch.uint64)  # the state of dropout's random numbers
    return _aten._flash_attention_backward(
        grad,
        query,
        key,
        value,
        out,
        lse.contiguous(),  # the kernel reads (heads, L) without strides
        query_ends,
        key_ends,
        most_queries,
        most_keys,
        0.0,
        is_causal,
        unused,
        unused,
        scale=scale,
    )
