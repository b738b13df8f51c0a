"""Every ZeRO stage, offload, number of micro-batches and ranks: the gradients and steps of a plain PyTorch loop."""

from itertools import product

import pytest
import ray
import torch

from tests.integration.groups import make_groups
from tests.integration.test_learner import batches, make_learner  # noqa: F401  # fixtures
from tests.integration.test_policy import losses_of, packed_groups
from visurf_ray.learner.policy import Policy, load_model
from visurf_ray.learner.trained import Trained
from visurf_ray.method import LossConfig
from visurf_ray.models import banned_token_ids, resolved

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS = 10
LEARNING_RATE = 1e-4
BETA = 0.9
WHOLE, QUARTER = 10_000, 400  # token budgets: six groups in one micro-batch, and in four

GRID = list(product((1, 2, 3), (False, True), (WHOLE, QUARTER), (1, 2), (False, True)))
DIAGONAL = [
    (1, False, QUARTER, 2, False),
    (1, True, WHOLE, 1, True),
    (2, True, QUARTER, 2, False),
    (3, False, QUARTER, 2, True),
    (3, True, WHOLE, 1, False),
]


def has_gradient(name: str) -> bool:
    """Softmax is blind to a key's bias: its gradient is rounding, of which Adam makes whole steps."""
    return not name.endswith(("k_proj.bias", "qkv.bias"))


@pytest.fixture(scope="module")
def plain(config, processor, loader):
    """The plain loop, by whether the vision tower is frozen: the first gradient and the weights after ten steps."""

    def run(frozen: bool):
        model = load_model(resolved(config.model), dtype=torch.float32, gradient_checkpointing=False)
        model.model.visual.requires_grad_(not frozen)
        policy = Policy(model, 1.0, banned_token_ids(processor), chunk=64)
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE, betas=(BETA, 0.999), weight_decay=0.01)
        gradient = {}
        for step in range(STEPS):
            packed = packed_groups(model, make_groups(loader, 6, seed=step % 2))
            logprobs, _ = policy(packed)
            losses = losses_of(logprobs, packed, LossConfig())
            (losses * packed.weight_T).sum().backward()
            gradient = gradient or {name: weight.grad.clone() for name, weight in trained.items()}
            optimizer.step()
            optimizer.zero_grad()
        return gradient, {name: weight.detach() for name, weight in trained.items()}

    return {frozen: run(frozen) for frozen in (False, True)}


def first_moments(actor) -> dict[str, torch.Tensor]:
    """Adam's, gathered: after one step they are 1 - β₁ times the gradient. Runs on all ranks at once."""
    from deepspeed.utils import safe_get_full_optimizer_state

    parameters = actor.rank.model.named_parameters()
    return {n: safe_get_full_optimizer_state(w, "exp_avg") for n, w in parameters if w.requires_grad}


def weights(actor) -> dict[str, torch.Tensor]:
    """The float32 master weights, gathered. Runs on all ranks at once."""
    from deepspeed.utils import safe_get_full_fp32_param

    return {n: safe_get_full_fp32_param(w) for n, w in actor.rank.model.named_parameters() if w.requires_grad}


def on_all(learner, function) -> dict[str, torch.Tensor]:
    return ray.get([actor.__ray_call__.remote(function) for actor in learner.actors])[0]


def error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of all tensors that have a gradient, together, relative to their norm."""
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if has_gradient(name)]
    change = sum((ours[name] - theirs[name]).square().sum() for name in names)
    return float((change / sum(theirs[name].square().sum() for name in names)).sqrt())


@pytest.mark.parametrize(
    ("stage", "offload", "budget", "ranks", "frozen"),
    [pytest.param(*cell, marks=() if cell in DIAGONAL else pytest.mark.slow) for cell in GRID],
)
def test_gradient_and_ten_steps_are_those_of_a_plain_loop(
    make_learner,  # noqa: F811
    batches,  # noqa: F811
    plain,
    stage,
    offload,
    budget,
    ranks,
    frozen,
):
    gradient, expected = plain[frozen]
    learner = make_learner(
        ranks,
        zero_stage=stage,
        offload=offload,
        max_tokens_per_micro_batch=budget,
        trained=Trained(freeze_vision=frozen, freeze_projector=frozen),
        learning_rate=LEARNING_RATE,
        max_grad_norm=0.0,
    )
    for step in range(STEPS):
        learner.update(batches[step % 2], LossConfig())
        if step == 0:
            moments = on_all(learner, first_moments)
            assert error({name: m / (1 - BETA) for name, m in moments.items()}, gradient) < 1e-6
    assert error(on_all(learner, weights), expected) < 1e-6
