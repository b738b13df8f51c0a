"""Functions of the rollout worker that need no engine."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

from visurf_ray.cluster.placement import Seat
from visurf_ray.cluster.reservation import _bundles_of
from visurf_ray.groups import Response, Source, Tokens, TokenSpan
from visurf_ray.rollout.actor import Sampled, in_one_store, own_ranks
from visurf_ray.rollout.vllm_engine import executor


def test_every_engine_takes_nccl_ranks_of_its_own():
    """Rank 0 is the learner's; three engines of two GPU processes each take 1-2, 3-4 and 5-6."""
    request = WeightTransferInitRequest({"rank_offset": 1, "world_size": 7})
    offsets = [own_ranks(request, worker * 2).init_info["rank_offset"] for worker in range(3)]
    assert offsets == [1, 3, 5]
    assert request.init_info == {"rank_offset": 1, "world_size": 7}, "the request itself is left as it is"


def test_the_tokens_of_a_call_come_in_one_store():
    def rollouts(number, *spans, known=True):
        ids = [token for span in spans for token in span]
        store = Tokens(np.array(ids, np.int32), -np.array(ids, np.float32) if known else None)
        bounds = [0, *accumulate(map(len, spans))]
        return Sampled(
            number, [Response(Source.ROLLOUT, "", TokenSpan(store, *pair)) for pair in itertools.pairwise(bounds)]
        )

    sampled, store = in_one_store([rollouts(7, [1, 2], [3]), rollouts(4, [4], [5, 6], known=False)])
    assert [each.number for each in sampled] == [7, 4]
    spans = [replace(response.tokens, store=store).resolve(None) for each in sampled for response in each.responses]
    assert [span.ids.tolist() for span in spans] == [[1, 2], [3], [4], [5, 6]]
    assert [span.sampler_logprobs.tolist() for span in spans[:2]] == [[-1, -2], [-3]]
    assert all(np.isnan(span.sampler_logprobs).all() for span in spans[2:]), "they were not requested"
    _, store = in_one_store([rollouts(1, [1], known=False)])
    assert store.sampler_logprobs is None
    assert in_one_store([])[0] == []


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


ENDING = """
import multiprocessing, sys, threading, time
from visurf_ray.rollout.vllm_engine import end_with_children
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
child.start()
end_with_children(unless=lambda: {0})
(thread,) = (each for each in threading.enumerate() if each.name == "engine")
child.kill()
thread.join(100)
sys.exit(2 if thread.is_alive() else 0)
"""


@pytest.mark.parametrize(("to_end", "status"), [(False, 1), (True, 0)])
def test_the_actor_ends_when_its_engine_has_died_whatever_it_waits_for(to_end, status):
    command = [sys.executable, "-c", ENDING.format(to_end)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
