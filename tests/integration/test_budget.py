"""The token budget binds: cutting groups changes neither loss nor gradient, and no pass holds more tokens."""

import pytest
import ray

from tests.integration.test_learner import LEAST, LORA, batches, make_learner  # noqa: F401  # fixtures
from tests.integration.test_zero import error, first_moments, on_all
from visurf_ray.config.choices import Aggregation
from visurf_ray.errors import ConfigError
from visurf_ray.learner.trained import Trained
from visurf_ray.method import LossConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")


def record_rows(actor) -> None:
    """Note the tokens of each row that the rank computes."""
    actor.row_tokens = []
    actor.rank.engine.register_forward_pre_hook(lambda _, inputs: actor.row_tokens.append(inputs[0].input_ids.shape[1]))


def recorded(actor) -> list[int]:
    return actor.row_tokens


@pytest.mark.parametrize("trained", [Trained(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("aggregation", [Aggregation.sequence, Aggregation.token])
def test_groups_cut_everywhere_have_the_gradient_of_whole_ones(make_learner, batches, trained, aggregation):  # noqa: F811
    losses, gradients = [], []
    for budget in (10_000, LEAST):
        learner = make_learner(max_tokens_per_micro_batch=budget, trained=trained, max_grad_norm=0.0)
        ray.get(learner.actors[0].__ray_call__.remote(record_rows))
        losses.append(learner.update(batches[0], LossConfig(aggregation=aggregation))["train/loss"])
        gradients.append(on_all(learner, first_moments))
        rows = ray.get(learner.actors[0].__ray_call__.remote(recorded))
        assert max(rows) <= budget and (len(rows) == 1 if budget > LEAST else len(rows) > len(batches[0]))
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert error(gradients[1], gradients[0]) < 1e-6


def test_ranks_share_one_group(make_learner, batches):  # noqa: F811
    """Two ranks with one prompt: each computes some of its responses."""
    for group in (batches[0][0], batches[0][2]):
        found = []
        for ranks in (1, 2):
            learner = make_learner(ranks, zero_stage=2, max_grad_norm=0.0)
            metrics = learner.update([group], LossConfig())
            found.append((metrics["train/loss"], on_all(learner, first_moments), metrics["train/entropy/rollout"]))
        (loss, gradient, entropy), (shared_loss, shared_gradient, shared_entropy) = found
        assert shared_loss == pytest.approx(loss, abs=1e-6) and shared_entropy == pytest.approx(entropy, rel=1e-6)
        assert error(shared_gradient, gradient) < 1e-6


def test_a_rank_without_a_response_computes_but_does_not_count(make_learner, batches):  # noqa: F811
    from visurf_ray.groups import Group

    alone = Group(batches[0][0].example, batches[0][0].responses[1:2])
    one, two = (make_learner(ranks, zero_stage=2).update([alone], LossConfig()) for ranks in (1, 2))
    for metrics in (one, two):
        metrics.pop("train/tokens_per_second")
    assert two == pytest.approx(one, rel=1e-6)


def test_a_response_that_no_row_holds_is_refused(make_learner, batches):  # noqa: F811
    with pytest.raises(ConfigError, match=r"do not fit learner\.max_tokens_per_micro_batch=60: raise it"):
        make_learner(max_tokens_per_micro_batch=60).update(batches[0], LossConfig())
