"""The learner's end of the weight transfer, one on each rank."""

from typing import Any

from torch import nn
from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

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
        init_info: TrainerInitInfo
        if colocated:
            init_info = IPCTrainerInitInfo(rank=rank, packed=True)  # in chunks: ZeRO-3 never gathers the whole model
        elif gpu_workers:
            init_info = NCCLTrainerInitInfo(
                rank=rank, master_address=address, master_port=port, world_size=1 + gpu_workers
            )
        else:
            init_info = SharedMemoryTrainerInitInfo(rank=rank)
        self.engine = WeightTransferTrainerFactory.trainer_init(
            init_info, client=RayVLLMWeightSyncClient(engines), source=ZeroSource(module)
        )

    def send(self) -> None:
        self.engine.send_weights()
