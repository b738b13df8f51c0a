"""Rows of a forward pass, one for each response, and the blank image beside a prompt that has none."""

from dataclasses import replace

import torch

from tests.unit.groups import example, held
from visurf_ray.groups import Group, Prompt, Response, Source, TokenSpan
from visurf_ray.learner.packing import pack_rows

TYPES = "mm_token_type_ids"
BLANK = Prompt([8], [8, 9, 9], features={"pixel_values": torch.ones(2, 3), TYPES: torch.tensor([[0, 1, 1]])})
TEXT = Prompt([1, 2], [1, 2], features={TYPES: torch.tensor([[0, 0]])}, stand_in=BLANK)


def packed(*lengths: int, **options):
    responses = [Response(Source.ROLLOUT, "", TokenSpan.of(range(10, 10 + length))) for length in lengths]
    group = Group(replace(example(), prompt=TEXT), responses)
    return pack_rows(group, [1.0] * len(lengths), fetch=held, dtype=torch.float32, **options)


def test_a_blank_image_follows_the_shortest_response():
    """In a row of its own it would have as much padding as the longest response has tokens."""
    found = packed(7, 2, all_parameters=True)
    assert found.input_ids.tolist() == [[1, 2, 10, 11, 12, 13, 14, 15], [1, 2, 10, 8, 9, 9, 2, 2]]
    assert found.attention_mask.tolist() == [[1] * 8, [1] * 6 + [0] * 2]
    assert found.features[TYPES].tolist() == [[0] * 8, [0, 0, 0, 0, 1, 1, 0, 0]]
    assert found.features["pixel_values"].shape == (2, 3) and found.anchor == 8 + 5
    assert found.column_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert found.target_T.tolist() == [*range(10, 17), 10, 11]


def test_rows_have_no_blank_image_where_no_other_rank_waits():
    found = packed(3, 2)
    assert found.input_ids.tolist() == [[1, 2, 10, 11], [1, 2, 10, 2]]
    assert found.anchor is None and "pixel_values" not in found.features
