"""Errors tell in which phase of a run they arose."""

import pytest

from visurf_ray.errors import during, phase_of


def test_the_innermost_phase_is_noted():
    with pytest.raises(ValueError) as failure, during("wait"), during("sample"):
        raise ValueError
    assert phase_of(failure.value) == "sample"


def test_the_phase_of_the_cause_counts_too():
    with pytest.raises(KeyError) as failure:
        try:
            with during("reward"):
                raise ValueError
        except ValueError as error:
            raise KeyError from error
    assert phase_of(failure.value) == "reward"


def test_without_a_phase_there_is_none():
    assert phase_of(ValueError()) is None
