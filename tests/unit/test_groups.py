"""Spans of tokens: where they are held, and when they are fetched."""

import pytest

from visurf_ray.groups import Tokens, TokenSpan


def test_spans_divide_a_store():
    store = TokenSpan.of([1, 2, 3, 4, 5], [-0.5, -1.0, -1.5, -2.0, -2.5]).store
    found = [TokenSpan("reference", begin, end).resolve({"reference": store}.get) for begin, end in ((0, 2), (2, 5))]
    assert [tokens.ids.tolist() for tokens in found] == [[1, 2], [3, 4, 5]]
    assert [tokens.sampler_logprobs.tolist() for tokens in found] == [[-0.5, -1.0], [-1.5, -2.0, -2.5]]
    assert TokenSpan("reference", 2, 5).length == 3


def test_tokens_in_memory_are_not_fetched():
    def fetch(_: object) -> Tokens:
        pytest.fail("fetched")

    span = TokenSpan.of([7, 8])
    assert span.resolve(fetch).ids.tolist() == [7, 8] and span.length == 2
    assert span.resolve(fetch).sampler_logprobs is None
