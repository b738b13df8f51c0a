"""The learner's end of the weight transfer, one per rank."""

import math

from torch import nn
from vllm.distributed.weight_transfer.base import TrainerInitInfo
from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from visurf_ray.aliases import ActorHandle
from visurf_ray.weights.gloo import GlooTrainerInitInfo
from visurf_ray.weights.plugin import register
from visurf_ray.weights.shared_memory import SharedMemoryTrainerInitInfo
from visurf_ray.weights.source import ZeroSource


class WeightSender:
    """Sends a module's weights to all engines. Create and call it on all learner ranks together."""

    def __init__(
        self,
        module: nn.Module,
        engines: list[ActorHandle],
        *,
        rank: int,
        gpu_workers: int,
        colocated: bool,
        address: str,
        port: int,
        one_machine: bool,
        start_timeout: float,
        timeout: float,
    ) -> None:
        """Open the transfer.

        Args:
            module: the model, which DeepSpeed trains.
            engines: `RolloutActor` handles.
            rank: this learner rank.
            gpu_workers: number of GPU processes of all engines together; 0 on a CPU.
            colocated: whether each rank shares its GPU with an engine. Weights are then sent as CUDA IPC handles,
                otherwise by an NCCL broadcast from rank 0.
            address: rank 0's address, for NCCL and gloo.
            port: a free port there.
            one_machine: whether all engines are on rank 0's machine. Without GPUs weights are then sent through shared
                memory, otherwise by a gloo broadcast from rank 0.
            start_timeout: seconds that gloo waits for the engines to connect: `cluster.start_timeout`.
            timeout: seconds that gloo waits for each part of a transfer: `cluster.timeout`.
        """
        register()
        source = self.source = ZeroSource(module)
        init_info: TrainerInitInfo
        if colocated:
            # Send in chunks, so that ZeRO-3 never gathers the whole model. A chunk must hold the largest tensor.
            largest = max(math.prod(meta.shape) * meta.dtype.itemsize for meta in source.metadata())
            init_info = IPCTrainerInitInfo(
                rank=rank, packed=True, packed_buffer_size_bytes=max(largest, DEFAULT_PACKED_BUFFER_SIZE_BYTES)
            )
        elif gpu_workers:
            init_info = NCCLTrainerInitInfo(
                rank=rank, master_address=address, master_port=port, world_size=1 + gpu_workers
            )
        elif one_machine:
            init_info = SharedMemoryTrainerInitInfo(rank=rank)
        else:
            init_info = GlooTrainerInitInfo(
                rank=rank,
                address=address,
                port=port,
                engines=len(engines),
                start_timeout=start_timeout,
                timeout=timeout,
            )
        self.engine = WeightTransferTrainerFactory.trainer_init(
            init_info, client=RayVLLMWeightSyncClient(engines), source=source
        )

    def send(self) -> None:
        """Send the current weights; returns when the engines have loaded them."""
        self.source.begin()
        try:
            self.engine.send_weights()
        except BaseException:
            self.source.finish()
            raise

    def close(self) -> None:
        """Close the transfer, before the engines end."""
        self.engine.shutdown()
