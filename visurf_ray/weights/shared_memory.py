"""A weight-transfer backend for machines without a GPU: tensors in shared memory.

vLLM's own backends (`nccl`, `ipc`) move weights between GPUs. This one follows the same protocol
(https://docs.vllm.ai/en/v0.32.0/training/weight_transfer). The sender creates a file under /dev/shm once and removes
its name when every engine has mapped it, so that the operating system frees the memory when the last process ends, even
by a crash. A transfer is one copy into that memory and one out of it. Sampler and learner must be on one machine.
"""

import os
import tempfile
from dataclasses import asdict, dataclass
from mmap import MAP_SHARED
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from visurf_ray.aliases import HFModel

BACKEND = "shared_memory"
_SHARED_MEMORY = Path("/dev/shm")


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """The file to map. It holds tensors by their names in a checkpoint."""

    path: str


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """Empty: the weights are in the mapped file."""


def _map(path: str) -> dict[str, Tensor]:
    """Map a file of tensors; changes are seen by all processes that map it."""
    with torch.serialization.set_default_mmap_options(MAP_SHARED):
        return torch.load(path, mmap=True, weights_only=True)


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """The receiving side, in vLLM's worker."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        try:
            self.weights = _map(init_info.path)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"{init_info.path} does not exist here: without GPUs weights are sent through shared memory, "
                "so rollout workers and learner ranks must be on one machine"
            ) from error

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        model: HFModel = self.model  # vLLM types it as a torch module, which has no load_weights
        model.load_weights(iter(self.weights.items()))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        # The reload skips a head that is tied to the embedding, because it has no weight of its own. On a CPU such a
        # head computes with a packed copy of the weight, which must be made again.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        pass


@dataclass
class SharedMemoryTrainerInitInfo(TrainerInitInfo):
    """Names the backend; rank 0 is the sender."""

    backend: ClassVar[str] = BACKEND


class SharedMemoryTrainerEngine(TrainerWeightTransferEngine[SharedMemoryTrainerInitInfo]):
    """The sending side, on the learner's ranks."""

    init_info_cls = SharedMemoryTrainerInitInfo

    @classmethod
    def trainer_init(
        cls,
        init_info: SharedMemoryTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        if source is None:
            raise ValueError("the shared-memory backend needs a WeightSource")
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            engine._share(source)
        return engine

    def _share(self, source: WeightSource) -> None:
        """Create the file, have every engine map it, and remove its name."""
        handle, path = tempfile.mkstemp(prefix="visurf_ray-", dir=_SHARED_MEMORY)
        os.close(handle)
        try:
            torch.save({meta.name: torch.empty(meta.shape, dtype=meta.dtype) for meta in source.metadata()}, path)
            self.weights = _map(path)
            self.client.init_weight_transfer_engine(asdict(SharedMemoryInitInfo(path)))
        finally:
            os.unlink(path)

    def send_weights(self) -> None:
        assert self.source is not None
        for name, tensor in self.source:  # iterate on every rank: gathering is a collective operation
            if self.is_sender:
                self.weights[name].copy_(tensor.detach())
        if self.is_sender:
            self.client.start_weight_update()
            self.client.update_weights(asdict(SharedMemoryUpdateInfo()))
            self.client.finish_weight_update()
