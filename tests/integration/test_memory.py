"""The estimate of model states against what a DeepSpeed engine holds, on two ranks."""

import pytest
import ray

from tests.integration.test_learner import batches, rank_config  # noqa: F401  # a fixture
from visurf_ray.config.load import load_config
from visurf_ray.learner.actor import LearnerActor
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.memory import measure, model_states
from visurf_ray.learner.trained import Trained
from visurf_ray.method import LossConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")

_BUCKET = 500_000_000  # elements of DeepSpeed's reduce bucket, which is no model state


def watch(actor) -> None:
    """Note the bytes of all live tensors after each backward pass and at the end of the optimizer's step."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    engine, before, actor.seen = actor.rank.engine, 0, []
    backward = engine.backward

    def watched(loss):
        backward(loss)
        actor.seen.append(live_bytes())

    def live_bytes() -> int:
        import gc

        gc.collect()
        storages = {}
        for item in gc.get_objects():
            if type(item) in (torch.Tensor, torch.nn.Parameter):
                for tensor in (item, item.grad if item.is_leaf else None):
                    if tensor is not None and tensor.untyped_storage().nbytes() < 2 * _BUCKET:
                        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return sum(storages.values()) - before

    engine.backward = watched
    register_optimizer_step_post_hook(lambda *_: actor.seen.append(live_bytes()))


def seen(actor) -> list[int]:
    return actor.seen


@pytest.fixture
def new_learner(config, processor):
    """Makes a learner in new processes: in shared ones the tensors of earlier learners would be counted too."""
    started = []

    def make(ranks, **changes) -> LearnerGroup:
        options = {"num_cpus": 0, "runtime_env": {"env_vars": {"DS_ACCELERATOR": "cpu"}}}
        started.extend(LearnerActor.options(**options).remote() for _ in range(ranks))
        settings = rank_config(config, processor, **changes)
        return LearnerGroup(started, settings, seed=0, minibatches=1, cores=[[]] * ranks)

    yield make
    for actor in started:
        ray.kill(actor)


GRID = [(1, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")]
DIAGONAL = [(1, "float32", False), (1, "bfloat16", True), (2, "bfloat16", False), (3, "bfloat16", True)]


@pytest.mark.parametrize(
    ("stage", "dtype", "offload"),
    [
        pytest.param(*cell, offload, marks=() if (*cell, offload) in DIAGONAL else pytest.mark.slow)
        for cell in GRID
        for offload in (False, True)
    ],
)
def test_model_states_are_what_the_engine_holds(new_learner, batches, stage, dtype, offload):  # noqa: F811
    """At the fullest moment of the second step, when Adam's moments are there. Examples and gathered weights come on
    top; on a CPU device and host memory are one.
    """
    learner = new_learner(2, zero_stage=stage, dtype=dtype, offload=offload, max_tokens_per_micro_batch=400)
    ray.get([actor.__ray_call__.remote(watch) for actor in learner.actors])
    for groups in batches:
        learner.update(groups, LossConfig())
    measured = max(ray.get(learner.actors[0].__ray_call__.remote(seen)))
    settings = [
        f"learner.zero_stage={stage}",
        f"learner.offload={offload}",
        f"learner.dtype={dtype}",
        "learner.ranks=2",
    ]
    device, host = model_states(measure("miniature", Trained()), load_config(settings).learner)
    expected = sum(device.values()) + sum(host.values())
    assert 0.9 * expected < measured < 1.25 * expected
