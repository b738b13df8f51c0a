"""Registers the weight-transfer backend `shared_memory` with vLLM.

`register` is an entry point of the group `vllm.general_plugins`, which vLLM runs in every process of an engine.
"""

from functools import cache

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

_MODULE = "visurf_ray.weights.shared_memory"
_NAME = "shared_memory"


@cache
def register() -> None:
    """Register the engine's side and the trainer's. Later calls do nothing: vLLM refuses a name that it knows."""
    WeightTransferEngineFactory.register_engine(_NAME, _MODULE, "SharedMemoryEngine")
    WeightTransferTrainerFactory.register_engine(_NAME, _MODULE, "SharedMemoryTrainerEngine")
