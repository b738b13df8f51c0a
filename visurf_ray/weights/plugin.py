"""Registers the weight transfers without GPUs with vLLM.

`register` is an entry point of the group `vllm.general_plugins`, which vLLM runs in every process of an engine.
"""

from functools import cache

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

CPU_BACKEND = "cpu"  # of an engine; it receives what either of the two senders sends


@cache
def register() -> None:
    """Register the engine's side and the trainer's. Later calls do nothing: vLLM refuses a name that it knows."""
    WeightTransferEngineFactory.register_engine(CPU_BACKEND, "visurf_ray.weights.cpu_engine", "CpuEngine")
    register_sender = WeightTransferTrainerFactory.register_engine
    register_sender("shared_memory", "visurf_ray.weights.shared_memory", "SharedMemoryTrainerEngine")
    register_sender("gloo", "visurf_ray.weights.gloo", "GlooTrainerEngine")
