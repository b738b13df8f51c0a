"""Rows without images, and separate rows: neither changes the gradient, and no rank waits for another."""

from dataclasses import replace

import pytest
import ray

from tests.integration.test_learner import batches, make_learner  # noqa: F401  # fixtures
from tests.integration.test_zero import error, first_moments, on_all
from visurf_ray.config.choices import Packing
from visurf_ray.groups import Group
from visurf_ray.learner.cost import Cost
from visurf_ray.method import LossConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def mixed(batches, loader) -> list[Group]:  # noqa: F811
    """Two groups with an image each and two without any."""
    groups = batches[0][:2]
    for group in batches[0][2:4]:
        messages = [{"role": "user", "content": [{"type": "text", "text": f"find {group.example.question}"}]}]
        prompt = loader.prompts.make(messages, [])
        stand_in = replace(prompt.stand_in, features=ray.put(prompt.stand_in.features))
        prompt = replace(prompt, features=ray.put(prompt.features), stand_in=stand_in)
        groups.append(Group(replace(group.example, prompt=prompt), group.responses))
    return groups


def stepped(learner, groups):
    loss = learner.update(groups, LossConfig())["train/loss"]
    return loss, on_all(learner, first_moments)


def test_separate_rows_have_the_gradient_of_packed_groups(make_learner, mixed):  # noqa: F811
    found = []
    for packing, budget in ((Packing.prefix, 10_000), (Packing.rows, 10_000), (Packing.rows, 200)):
        cost = Cost(packing=packing)
        found.append(stepped(make_learner(max_tokens_per_micro_batch=budget, max_grad_norm=0.0, cost=cost), mixed))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6) and error(gradient, found[0][1]) < 5e-6


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("stage", "packing"), [(1, Packing.prefix), (2, Packing.rows), (3, Packing.prefix), (3, Packing.rows)]
)
def test_ranks_with_and_without_images_step_together(make_learner, mixed, stage, packing):  # noqa: F811
    """A rank whose rows have no image computes a blank one beside them, which counts nothing.

    There is one group with an image, and one without: each is a rank's only one.
    """
    settings = {"max_grad_norm": 0.0, "cost": Cost(packing=packing), "max_tokens_per_micro_batch": 10_000}
    loss, gradient = stepped(make_learner(1, zero_stage=min(stage, 2), **settings), mixed[1:3])
    shared_loss, shared = stepped(make_learner(2, zero_stage=stage, **settings), mixed[1:3])
    assert shared_loss == pytest.approx(loss, abs=1e-6)
    if stage < 3:  # under ZeRO-3 each rank holds a part of every moment
        assert error(shared, gradient) < 1e-6
