"""Cascade attention against softmax over the keys that each token sees, one token at a time."""

import math
from types import SimpleNamespace

import pytest
import torch

from visurf_ray.learner import flash
from visurf_ray.learner.attention import dense_mask, packed_attention
from visurf_ray.learner.cascade import CascadePlan, GroupLength, cascade
from visurf_ray.learner.sequences import Run, Sequences

ROWS = {
    "one group": [(37, (5, 1, 60))],
    "equal lengths": [(20, (7, 7, 7, 9, 9))],
    "one response": [(12, (30,)), (5, (4,))],
    "empty tails": [(9, (0, 0, 6, 8)), (4, (0, 3)), (3, (0, 0)), (6, ())],
    "several groups": [(37, (1, 5, 60)), (12, (3,)), (50, ()), (8, (7, 7, 7, 90)), (1, (1, 1))],
    "longer than a block of the kernel": [(600, (3, 300))],
}
SCALE = 0.3


def plan_of(row):
    return CascadePlan.of([GroupLength(prompt, responses) for prompt, responses in row])


def visible_keys(row):
    """Yield, for each token of the row, the indices of the keys that it sees."""
    begin = 0
    for prompt, responses in row:
        prompt_keys = list(range(begin, begin + prompt))
        for index in range(prompt):
            yield prompt_keys[: index + 1]
        begin += prompt
        for count in responses:
            for index in range(count):
                yield prompt_keys + list(range(begin, begin + index + 1))
            begin += count


def plain(query, key, value, row):
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    outputs = []
    for token, keys in enumerate(visible_keys(row)):
        scores = torch.einsum("hd,khd->hk", query[token], key[keys]) * SCALE
        outputs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), value[keys]))
    return torch.stack(outputs)


def make_row(row, heads=4, kv_heads=2, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    total = sum(prompt + sum(responses) for prompt, responses in row)
    shapes = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(total, count, size, generator=generator, dtype=torch.float64).to(dtype) for count in shapes]


def outputs_and_gradients(function, tensors, grad):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_outputs_and_gradients_are_those_of_plain_softmax(row, kv_heads):
    *tensors, grad = make_row(row, kv_heads=kv_heads)
    plan = plan_of(row)
    ours = outputs_and_gradients(lambda *qkv: cascade(*qkv, plan, SCALE), tensors, grad)
    theirs = outputs_and_gradients(lambda *qkv: plain(*qkv, row), tensors, grad)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_lower_precision_is_off_by_its_rounding(row, dtype, tolerance):
    *tensors, grad = make_row(row)
    plan = plan_of(row)
    exact = outputs_and_gradients(lambda *qkv: plain(*qkv, row), tensors, grad)
    low = [tensor.to(dtype) for tensor in tensors]
    found = outputs_and_gradients(lambda *qkv: cascade(*qkv, plan, SCALE), low, grad.to(dtype))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype is dtype
        assert (ours.double() - theirs).norm() < tolerance * theirs.norm()


def test_scores_far_from_zero_neither_overflow_nor_vanish():
    """The prompt takes all of the weight, or the response does: log-sum-exps differ by thousands."""
    row = [(5, (3, 4))]
    query, key, value, grad = make_row(row)
    for factor in (100.0, -100.0):
        tensors = query.abs(), key.abs() * factor, value
        ours = outputs_and_gradients(lambda *qkv: cascade(*qkv, plan_of(row), SCALE), tensors, grad)
        theirs = outputs_and_gradients(lambda *qkv: plain(*qkv, row), tensors, grad)
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_gradients_of_expanded_and_transposed_tensors():
    """As a sum's backward pass gives them, and as transformers lays out heads."""
    row = ROWS["several groups"]
    *tensors, _ = make_row(row)
    leaves = [tensor.transpose(0, 1).contiguous().requires_grad_() for tensor in tensors]
    cascade(*(leaf.transpose(0, 1) for leaf in leaves), plan_of(row), SCALE).sum().backward()
    expected = outputs_and_gradients(lambda *qkv: plain(*qkv, row), tensors, torch.ones_like(tensors[0]))[1:]
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad.transpose(0, 1), gradient, atol=1e-12, rtol=1e-10)


def emulated(query, key, value, query_ends, key_ends, most_queries, most_keys, dropout, causal, *_, scale):
    """Yield, for each sequence, its slices and scores (heads, queries, keys), as flash attention on CUDA takes them."""
    assert query_ends.dtype is key_ends.dtype is torch.int32 and dropout == 0.0
    group = query.shape[1] // key.shape[1]
    bounds = zip(*(zip(ends.tolist(), ends.tolist()[1:], strict=False) for ends in (query_ends, key_ends)), strict=True)
    for (query_begin, query_end), (key_begin, key_end) in bounds:
        queries, keys = slice(query_begin, query_end), slice(key_begin, key_end)
        assert query_end - query_begin <= most_queries and key_end - key_begin <= most_keys
        scores = torch.einsum("qhd,khd->hqk", query[queries], key[keys].repeat_interleave(group, 1)) * scale
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
        yield queries, keys, scores, value[keys].repeat_interleave(group, 1)


def emulated_forward(query, key, value, *rest, scale):
    meta = [tensor.to("meta") for tensor in (query, key, value, *rest[:2])]
    shapes = torch.ops.aten._flash_attention_forward(*meta, *rest[2:], scale=scale)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
    for queries, _, scores, values in emulated(query, key, value, *rest, scale=scale):
        out[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        lse[:, queries] = scores.logsumexp(-1)
    assert shapes[0].shape == out.shape and shapes[1].shape == lse.shape
    return out, lse, None, None, None


def emulated_backward(grad, query, key, value, out, lse, *rest, scale):
    meta = [tensor.to("meta") for tensor in (grad, query, key, value, out, lse, *rest[:2])]
    torch.ops.aten._flash_attention_backward(*meta, *rest[2:], scale=scale)
    assert all(tensor.is_contiguous() for tensor in (grad, out, lse)) and lse.shape == (query.shape[1], len(query))
    of_query, of_key, of_value = (torch.full_like(tensor, math.nan) for tensor in (query, key, value))
    for queries, keys, scores, values in emulated(query, key, value, *rest, scale=scale):
        weights = (scores - lse[:, queries, None]).exp()
        correction = (grad[queries] * out[queries]).sum(-1).T[..., None]
        of_scores = weights * (torch.einsum("qhd,khd->hqk", grad[queries], values) - correction) * scale
        group = query.shape[1] // key.shape[1]
        of_query[queries] = torch.einsum("hqk,khd->qhd", of_scores, key[keys].repeat_interleave(group, 1))
        parts = ((of_key, of_scores, query), (of_value, weights, grad))
        for gradient, factor, rows in parts:
            heads = torch.einsum("hqk,qhd->khd", factor, rows[queries])
            gradient[keys] = heads.unflatten(1, (-1, group)).sum(2)
    return of_query, of_key, of_value


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_calls_on_cuda_are_right_where_the_kernels_are(row, kv_heads, monkeypatch):
    """With plain PyTorch in place of the kernels; their operators check the arguments, on the meta device."""
    operators = {"_flash_attention_forward": emulated_forward, "_flash_attention_backward": emulated_backward}
    monkeypatch.setattr(flash, "_aten", SimpleNamespace(**operators))
    monkeypatch.setattr(flash, "_on_cuda", lambda tensor: True)
    *tensors, grad = make_row(row, kv_heads=kv_heads)
    ours = outputs_and_gradients(lambda *qkv: cascade(*qkv, plan_of(row), SCALE), tensors, grad)
    theirs = outputs_and_gradients(lambda *qkv: plain(*qkv, row), tensors, grad)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(
    ("device", "dtype", "size", "expected"),
    [
        ("cpu", torch.float32, 3, True),
        ("cuda", torch.bfloat16, 128, True),
        ("cuda", torch.float16, 80, True),
        ("cuda", torch.float32, 128, False),
        ("cuda", torch.bfloat16, 20, False),
        ("cuda", torch.bfloat16, 264, False),
        ("mps", torch.bfloat16, 128, False),
    ],
)
def test_where_flash_attention_exists(device, dtype, size, expected):
    query = SimpleNamespace(
        device=SimpleNamespace(type=device), is_cuda=device == "cuda", dtype=dtype, shape=(1, 2, 9, size)
    )
    assert flash.has_flash(query) is expected


def attend(row, tensors, mask=None, **kwargs):
    module = SimpleNamespace(num_key_value_groups=2, training=True)
    heads_first = (tensor.transpose(0, 1)[None] for tensor in tensors)
    return packed_attention(
        module, *heads_first, mask, scaling=SCALE, plan=plan_of(row).to(tensors[0].device), **kwargs
    )[0][0]


def test_a_mask_that_the_model_brings_is_kept_within_prompts_and_responses():
    """Tokens 2 to 5 of the prompt see each other, as those of a picture do in some models."""
    row = [(9, (4, 3))]
    *tensors, _ = make_row(row)
    total = len(tensors[0])
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[2:6, 2:6] = True
    seen = [set(keys) | (set(range(2, 6)) if 2 <= token < 6 else set()) for token, keys in enumerate(visible_keys(row))]
    allowed = torch.tensor([[key in keys for key in range(total)] for keys in seen])
    query, key, value = tensors
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(2, 1)) * SCALE
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(2, 1))
    torch.testing.assert_close(attend(row, tensors, mask[None, None]), expected, atol=1e-12, rtol=1e-10)
    assert not torch.allclose(attend(row, tensors), expected)


def test_dropout_is_not_ignored():
    *tensors, _ = make_row(ROWS["one group"])
    assert not torch.allclose(attend(ROWS["one group"], tensors, dropout=0.5), attend(ROWS["one group"], tensors))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_dense_mask_has_what_each_token_sees(row):
    groups = tuple(GroupLength(prompt, responses) for prompt, responses in row)
    mask = dense_mask(groups, torch.float32, torch.device("cpu"))[0, 0]
    assert [torch.nonzero(line == 0).flatten().tolist() for line in mask] == list(visible_keys(row))
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}


def test_a_plan_calls_as_little_as_it_can():
    plan = plan_of([(20, (7, 7, 7, 9)), (5, (0, 4)), (6, (0,))])
    assert plan.alone.lengths == (20, 7, 7, 7, 9, 9, 6)
    assert plan.alone.runs == (Run(0, 1, 20), Run(20, 3, 7), Run(41, 2, 9), Run(59, 1, 6))
    assert plan.alone.cumulative.tolist() == [0, 20, 27, 34, 41, 50, 59, 65]
    (shared,) = plan.shared
    assert (shared.keys, shared.queries) == (slice(0, 20), slice(20, 50))
    assert plan.ends.tolist() == [[[0, 30], [0, 20]]] and plan.ends.dtype is torch.int32


def test_runs_cover_the_row():
    sequences = Sequences.of([4, 4, 2, 4, 4, 4])
    assert sequences.runs == (Run(0, 2, 4), Run(8, 1, 2), Run(10, 3, 4))
    assert sequences.longest == 4
