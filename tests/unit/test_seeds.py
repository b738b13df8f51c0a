"""Seeds are a function of their key alone."""

import subprocess
import sys

import pytest

from visurf_ray.seeds import seed_of


def test_a_seed_is_the_same_in_every_process():
    assert seed_of(0, "", 5, 1) == 2908553752560003289
    code = "from visurf_ray.seeds import seed_of; print(seed_of(3, 'charts', 7, 2))"
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": salt}
        )
        assert int(done.stdout) == seed_of(3, "charts", 7, 2)


@pytest.mark.parametrize("other", [(1, "a", 5, 1), (0, "b", 5, 1), (0, "a", 6, 1), (0, "a", 5, 2), (0, "a", 51)])
def test_other_keys_have_other_seeds(other):
    assert seed_of(0, "a", 5, 1) != seed_of(*other)


def test_texts_and_numbers_are_told_apart():
    assert len({seed_of("1", 2), seed_of(1, 2), seed_of("1", "2"), seed_of("12")}) == 4


def test_seeds_leave_room_for_the_number_of_a_sample():
    seeds = [seed_of(0, "", row, 0) for row in range(20_000)]
    assert len(set(seeds)) == len(seeds) and 2**61 < max(seeds) < 2**62
