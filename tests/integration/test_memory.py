"""Memory on two ranks: the estimate of model states against what DeepSpeed holds, and what the export needs."""

import gc
import sys
from pathlib import Path

import pytest
import ray
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.integration.test_learner import batches, rank_config  # noqa: F401  # a fixture
from visurf_ray.config.load import load_config
from visurf_ray.config.schema import ModelSource
from visurf_ray.learner.actor import LearnerActor
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.memory import measure, model_states
from visurf_ray.learner.trained import Trained
from visurf_ray.method import LossConfig
from visurf_ray.miniature.base_model import BASE_MODEL

pytestmark = pytest.mark.usefixtures("ray_cluster")

_BUCKET = 500_000_000  # elements of DeepSpeed's reduce bucket, which is no model state


def leave_out(actor) -> None:
    """Leave out of `gc.get_objects` what there is now, tensors of earlier learners among it."""
    gc.collect()
    gc.freeze()


def live_bytes() -> int:
    """Of all tensors that were made since `leave_out`."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter):
            for tensor in (item, item.grad if item.is_leaf else None):
                if tensor is not None and tensor.untyped_storage().nbytes() < 2 * _BUCKET:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def watch(actor) -> None:
    """Note the bytes of all live tensors after each backward pass and at the end of the optimizer's step."""
    engine, actor.seen = actor.rank.engine, []
    backward = engine.backward

    def watched(loss):
        backward(loss)
        actor.seen.append(live_bytes())

    engine.backward = watched
    actor.hook = register_optimizer_step_post_hook(lambda *_: actor.seen.append(live_bytes()))


def seen(actor) -> list[int]:
    actor.hook.remove()  # it is of all optimizers of the process
    gc.unfreeze()
    return actor.seen


@pytest.fixture
def watched_learner(config, processor, learner_actors):
    """Makes a learner of two ranks whose live tensors are watched."""

    def make(**changes) -> LearnerGroup:
        actors = learner_actors(2)
        ray.get([actor.__ray_call__.remote(leave_out) for actor in actors])
        settings = rank_config(config, processor, **changes)
        learner = LearnerGroup(actors, settings, seed=0, minibatches=1, cores=[[]] * 2)
        ray.get([actor.__ray_call__.remote(watch) for actor in actors])
        return learner

    return make


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
def test_model_states_are_what_the_engine_holds(watched_learner, batches, stage, dtype, offload):  # noqa: F811
    """At the fullest moment of the second step, when Adam's moments are there. Examples and gathered weights come on
    top; on a CPU device and host memory are one.
    """
    learner = watched_learner(zero_stage=stage, dtype=dtype, offload=offload, max_tokens_per_micro_batch=400)
    for groups in batches:
        learner.update(groups, LossConfig())
    measured = max(ray.get([actor.__ray_call__.remote(seen) for actor in learner.actors])[0])
    settings = [
        f"learner.zero_stage={stage}",
        f"learner.offload={offload}",
        f"learner.dtype={dtype}",
        "learner.ranks=2",
    ]
    device, host = model_states(measure(ModelSource("miniature"), Trained()), load_config(settings).learner)
    expected = sum(device.values()) + sum(host.values())
    assert 0.9 * expected < measured < 1.25 * expected


MIB = 2**20
SLACK = 16 * MIB  # for what is not a weight
SHARD = 100 * MIB


@pytest.fixture
def large_model(tmp_path) -> str:
    """A random model of 150 million parameters: the miniature, wider and with more layers."""
    config = AutoConfig.from_pretrained(BASE_MODEL)
    text = config.get_text_config()
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 1024, 3072, 12
    text.layer_types = ["full_attention"] * 12
    config.vision_config.out_hidden_size = 1024
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "large")
    return str(tmp_path / "large")


def resident(kind: str) -> int:
    """The bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1]) * 1024


def forget_the_peak(actor, file_bytes: int) -> None:
    """Return free memory to the system and begin to note the peak; have files of this size at most from now on."""
    import ctypes
    from functools import partial

    from visurf_ray.learner import rank
    from visurf_ray.weights.stored import save_model

    rank.save_model = partial(save_model, file_bytes=file_bytes)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what there is now
    actor.resident = resident("VmRSS")


def growth(actor) -> int:
    return resident("VmHWM") - actor.resident


def largest_layer(actor) -> int:
    from vllm.distributed.weight_transfer.base import layerwise_groups

    weights = dict(actor.rank.model.named_parameters())
    return max(sum(weights[name].ds_numel * 4 for name in names) for names in layerwise_groups(list(weights)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process's memory as Linux tells it")
def test_the_export_needs_a_layer_and_a_file_beside_the_states(config, processor, large_model, tmp_path):
    """Under ZeRO-3. Rank 0 holds a gathered layer and the weights of one file, the other rank a layer."""
    # Blocks of half a megabyte are given back as soon as they are freed, so that resident memory is what is held.
    environment = {"DS_ACCELERATOR": "cpu", "MALLOC_MMAP_THRESHOLD_": "500000"}
    options = {"num_cpus": 0, "runtime_env": {"env_vars": environment}}
    actors = [LearnerActor.options(**options).remote() for _ in range(2)]
    try:
        settings = rank_config(config, processor, zero_stage=3, model=ModelSource(large_model))
        learner = LearnerGroup(actors, settings, seed=0, minibatches=1, cores=[[]] * 2)
        layer = ray.get(actors[0].__ray_call__.remote(largest_layer))
        ray.get([actor.__ray_call__.remote(forget_the_peak, SHARD) for actor in actors])
        learner.export(tmp_path / "export")
        first, second = ray.get([actor.__ray_call__.remote(growth) for actor in actors])
    finally:
        for actor in actors:
            ray.kill(actor)
    files = [path.stat().st_size for path in (tmp_path / "export").glob("*.safetensors")]
    print(f"{sum(files) / MIB:.0f} MiB of weights, a layer of {layer / MIB:.0f}: {first / MIB:.0f}, {second / MIB:.0f}")
    assert sum(files) > 4 * (layer + SHARD) - SLACK > 0, "the whole model would not pass for a layer and a file"
    assert first <= layer + SHARD + SLACK
    assert second <= layer + SLACK
