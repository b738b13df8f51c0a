"""The learner's end of the weight transfer, one on each rank."""

import math
from typing import Any

from torch import nn
from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from visurf_ray.weights.plugin import register
from visurf_ray.weights.shared_memory import SharedMemoryTrainerInitInfo
from visurf_ray.weights.source import ZeroSource


class WeightSender:
    """Sends a module's weights to all engines; made, and called, on every learner rank at once.

    engines: handles of the rollout actors. gpu_workers: how many GPU processes they have together; 0 on a CPU, where
    weights travel through shared memory. colocated: each rank shares its GPU with an engine, which maps its memory
    (CUDA IPC); otherwise weights are broadcast by NCCL from rank 0.
    """

    def __init__(
        self,
        module: nn.Module,
        engines: list[Any],
        *,
        rank: int,
        gpu_workers: int,
        colocated: bool,
        address: str,
        port: int,
    ) -> None:
        register()
        source = ZeroSource(module)
        init_info: TrainerInitInfo
        if colocated:
            # In chunks: ZeRO-3 never gathers the whole model. None may be smaller than a tensor.
            largest = max(math.prod(meta.shape) * meta.dtype.itemsize for meta in source.metadata())
            init_info = IPCTrainerInitInfo(
                rank=rank, packed=True, packed_buffer_size_bytes=max(largest, DEFAULT_PACKED_BUFFER_SIZE_BYTES)
            )
        elif gpu_workers:
            init_info = NCCLTrainerInitInfo(
                rank=rank, master_address=address, master_port=port, world_size=1 + gpu_workers
            )
        else:
            init_info = SharedMemoryTrainerInitInfo(rank=rank)
        self.engine = WeightTransferTrainerFactory.trainer_init(
            init_info, client=RayVLLMWeightSyncClient(engines), source=source
        )

    def send(self) -> None:
        self.engine.send_weights()
