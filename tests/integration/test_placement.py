"""Where actors come to lie, in a Ray cluster that believes to have GPUs."""

import os

import ray

from visurf_ray.cluster.resources import shared_gpus


@ray.remote
class Probe:
    def gpus(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]


def test_the_two_of_a_pair_share_a_gpu_and_pairs_do_not(ray_cluster):
    with shared_gpus(2, cpus=1.0, timeout=30) as places:
        pairs = [[Probe.options(num_cpus=0.5, **place).remote() for place in places] for _ in range(2)]
        first, second = ([ray.get(probe.gpus.remote()) for probe in probes] for probes in pairs)
        assert first == second and sorted(first) == ["0", "1"]
    with shared_gpus(2, cpus=1.0, timeout=30):  # they are free again
        pass
