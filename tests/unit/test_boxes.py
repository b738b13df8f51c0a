"""Answers as text: rendering, parsing, and errors of a malformed ground truth."""

import json

import pytest

from visurf_ray.answers.boxes import (
    Target,
    check_targets,
    dump_targets,
    numbers,
    parse_items,
    parse_targets,
    render,
)
from visurf_ray.answers.responses import STYLES, answer_text

TWO = [Target((1, 2, 30, 40), (15, 21)), Target((0.5, 0, 7, 8), (3, 4))]


def test_styles_differ_in_white_space_alone():
    spaced = '[{"bbox_2d": [1, 2, 30, 40], "point_2d": [15, 21]}, {"bbox_2d": [0.5, 0, 7, 8], "point_2d": [3, 4]}]'
    assert render(TWO) == f"<answer>{spaced}</answer>"
    assert render(TWO, "compact") == f"<answer>{spaced.replace(' ', '')}</answer>"
    assert render([], "spaced") == render([], "compact") == "<answer>[]</answer>"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("targets", [[], TWO[:1], TWO], ids=len)
def test_what_is_rendered_is_parsed_again(style, targets):
    assert parse_targets(dump_targets(targets, style)) == targets
    response = render(targets, style, thinking="7 [1, 2, 30, 40]")
    assert response.startswith("<think>7 [1, 2, 30, 40]</think><answer>[")
    assert parse_targets(json.dumps(parse_items(response))) == targets


def test_the_thinking_may_be_empty_or_absent():
    assert render([], thinking="") == "<think></think><answer>[]</answer>"
    assert render([], thinking=None) == "<answer>[]</answer>"


def test_a_target_around_a_box_points_at_its_middle():
    assert Target.around((10, 20, 31, 40)) == Target((10, 20, 31, 40), (20, 30))


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("<answer> 12\n</answer>", "12"),
        ("<answer></answer>", ""),
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("<think><answer>1</answer></think> so <answer>2</answer>", "2"),
        ("<answer>1</answer><think>a</think>", None),
        ("<answer>1", None),
        ("1", None),
    ],
)
def test_the_answer_is_the_last_after_the_thinking(response, text):
    assert answer_text(response) == text


@pytest.mark.parametrize(
    ("answer", "items"),
    [("[]", []), ("[1, {}]", [1, {}]), ("{}", None), ("", None), ("[1", None), ("'[]'", None), ("null", None)],
)
def test_items_are_a_json_list_or_nothing(answer, items):
    assert parse_items(f"<answer>{answer}</answer>") == items


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, 2.5], (1, 2.5)),
        ([-1, 0], (-1, 0)),
        ([1], None),
        ([1, 2, 3], None),
        ("12", None),
        (None, None),
        ({"0": 1, "1": 2}, None),
        ([1, "2"], None),
        ([1, None], None),
        ([1, True], None),
        ([1, float("nan")], None),
        ([1, float("inf")], None),
        ([1, 10**400], None),
    ],
)
def test_numbers_are_finite_and_of_the_requested_count(value, found):
    assert numbers(value, 2) == found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not JSON"),
        ("the 7", "is not JSON.*'the 7'"),
        ("[{'bbox_2d': [1, 2, 3, 4]}]", "is not JSON"),
        ('{"bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2]}', "must be a JSON list"),
        ("null", "must be a JSON list"),
        ('[{"bbox_2d": [1, 2, 3], "point_2d": [1, 2]}]', "item 0 needs bbox_2d with 4 numbers"),
        ('[{"bbox_2d": ["1", "2", "3", "4"], "point_2d": [1, 2]}]', "item 0 needs bbox_2d with 4 numbers"),
        ('[{"bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2]}, {"bbox_2d": [1, 2, 3, 4]}]', "item 1 .*point_2d with 2"),
        ('[{"bbox_2d": [1, 2, 3, NaN], "point_2d": [1, 2]}]', "item 0"),
        ("[[1, 2, 3, 4]]", "item 0"),
    ],
)
def test_a_malformed_ground_truth_is_named(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_targets(text)


@pytest.mark.parametrize(
    ("box", "point", "complaint"),
    [
        ((30, 0, 10, 10), (20, 5), "item 1 has bbox_2d.*x1 < x2"),
        ((10, 0, 10, 10), (10, 5), "item 1 has bbox_2d.*x1 < x2"),
        ((0, 10, 10, 10), (5, 10), "item 1 has bbox_2d.*y1 < y2"),
        ((-1, 0, 10, 10), (5, 5), "item 1 reaches outside the image of 40.30"),
        ((0, -0.5, 10, 10), (5, 5), "item 1 reaches outside"),
        ((0, 0, 41, 10), (5, 5), "item 1 reaches outside"),
        ((0, 0, 10, 31), (5, 5), "item 1 reaches outside"),
        ((0, 0, 10, 10), (41, 5), "item 1 reaches outside"),
        ((0, 0, 10, 10), (5, -1), "item 1 reaches outside"),
    ],
)
def test_impossible_boxes_are_named(box, point, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_targets([Target((0, 0, 1, 1), (0, 0)), Target(box, point)], 40, 30)


def test_boxes_may_fill_the_image():
    check_targets([Target((0, 0, 40, 30), (40, 30))], 40, 30)
    check_targets([], 40, 30)
