"""Functions of the rollout worker that need no engine."""

import os

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

from visurf_ray.cluster.placement import Seat
from visurf_ray.cluster.reservation import _bundles_of
from visurf_ray.rollout.actor import executor, own_ranks


def test_every_engine_takes_nccl_ranks_of_its_own():
    """Rank 0 is the learner's; three engines of two GPU processes each take 1-2, 3-4 and 5-6."""
    request = WeightTransferInitRequest({"rank_offset": 1, "world_size": 7})
    offsets = [own_ranks(request, worker * 2).init_info["rank_offset"] for worker in range(3)]
    assert offsets == [1, 3, 5]
    assert request.init_info == {"rank_offset": 1, "world_size": 7}, "the request itself is left as it is"


def test_a_transport_without_ranks_is_left_alone():
    request = WeightTransferInitRequest({"path": "/dev/shm/weights"})
    assert own_ranks(request, 4) == request


def test_where_an_engine_with_gpus_computes(monkeypatch):
    """In a placement group vLLM would choose Ray for several GPUs, whose bundles must then have one GPU each."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert executor(1) is None and executor(2) == "mp"
    monkeypatch.setenv("VLLM_RAY_BUNDLE_INDICES", "0,1")
    assert executor(2) == "ray"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ, "each of vLLM's actors has a GPU from Ray"


def test_vllm_reads_the_variables_that_a_worker_on_several_ranks_gets(monkeypatch):
    from vllm import envs

    found = _bundles_of(Seat(node=0, gpus=0, cpus=0.5, ranks=(4, 5)))
    assert found.keys() <= envs.environment_variables.keys()
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert (envs.VLLM_RAY_BUNDLE_INDICES, envs.VLLM_RAY_PER_WORKER_GPUS) == ("4,5", 0.5)
