"""Functions of the rollout worker that need no engine."""

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

from visurf_ray.rollout.actor import own_ranks


def test_every_engine_takes_nccl_ranks_of_its_own():
    """Rank 0 is the learner's; three engines of two GPU processes each take 1-2, 3-4 and 5-6."""
    request = WeightTransferInitRequest({"rank_offset": 1, "world_size": 7})
    offsets = [own_ranks(request, worker * 2).init_info["rank_offset"] for worker in range(3)]
    assert offsets == [1, 3, 5]
    assert request.init_info == {"rank_offset": 1, "world_size": 7}, "the request itself is left as it is"


def test_a_transport_without_ranks_is_left_alone():
    request = WeightTransferInitRequest({"path": "/dev/shm/weights"})
    assert own_ranks(request, 4) == request
