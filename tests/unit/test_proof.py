"""The proof before the first step: what it compares, when it falls back to rows, and when it stops."""

import numpy as np
import pytest

from tests.unit.groups import group
from visurf_ray.config.choices import Packing
from visurf_ray.errors import ConfigError
from visurf_ray.learner.cost import Cost
from visurf_ray.learner.proof import prove_packing


class Learner:
    """A learner whose log-probs by packing are known."""

    def __init__(self, packing: Packing, sampled, **logprobs) -> None:
        self.cost = Cost(packing=packing)
        self.known = {name: np.array([values, sampled]) for name, values in logprobs.items()}

    def logprobs(self, _, packing: Packing) -> np.ndarray:
        return self.known[packing]

    def set_packing(self, packing: Packing) -> None:
        self.cost = Cost(packing=packing)


UNKNOWN = [np.nan, np.nan]
ONE = group([1.0])


def test_equal_log_probs_keep_the_packing_and_are_told():
    learner = Learner(Packing.prefix, [-1.0, -2.0], prefix=[-1.0, -2.0002], rows=[-1.0, -2.0])
    line = prove_packing(learner, ONE, Packing.auto, 1e-3)
    assert (
        line.startswith("learner.packing=prefix") and "1.0e-04 nats" in line and learner.cost.packing is Packing.prefix
    )


@pytest.mark.parametrize("prefix", [[-1.0, -2.5], [-1.0, np.nan]])
def test_auto_falls_back_to_rows(prefix):
    learner = Learner(Packing.prefix, UNKNOWN, prefix=prefix, rows=[-1.0, -2.0])
    line = prove_packing(learner, ONE, Packing.auto, 1e-3)
    assert line.startswith("learner.packing=rows, because") and learner.cost.packing is Packing.rows


def test_a_packing_that_was_asked_for_is_refused_with_the_number():
    learner = Learner(Packing.prefix, UNKNOWN, prefix=[-1.0, -2.5], rows=[-1.0, -2.0])
    with pytest.raises(ConfigError, match=r"learner\.packing=prefix.*2\.5e-01.*rows"):
        prove_packing(learner, ONE, Packing.prefix, 1e-3)


@pytest.mark.parametrize("packing", [Packing.rows, Packing.prefix])
def test_another_policy_than_the_samplers_stops_the_run(packing):
    learner = Learner(packing, [-1.0, -2.5], prefix=[-1.0, -2.0], rows=[-1.0, -2.0])
    with pytest.raises(ConfigError, match=r"sampler's policy.*2\.5e-01"):
        prove_packing(learner, ONE, Packing.auto, 1e-3)


def test_rows_need_no_comparison():
    learner = Learner(Packing.rows, UNKNOWN, rows=[-1.0, -2.0])
    assert prove_packing(learner, ONE, Packing.auto, 1e-3) == "learner.packing=rows"
