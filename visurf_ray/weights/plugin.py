"""Registers our weight-transfer backend with vLLM.

An entry point of the group `vllm.general_plugins`: every process of an engine runs it, its children included.
"""

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

_MODULE = "visurf_ray.weights.shared_memory"
_NAME = "shared_memory"


def register() -> None:
    """Register both sides; calling it again is harmless."""
    if _NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(_NAME, _MODULE, "SharedMemoryEngine")
    if _NAME not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(_NAME, _MODULE, "SharedMemoryTrainerEngine")
