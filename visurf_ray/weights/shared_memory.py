"""A weight-transfer backend for machines without a GPU: tensors in shared memory.

vLLM's own backends (`nccl`, `ipc`) move weights between GPUs. This one follows the same protocol
(https://docs.vllm.ai/en/v0.32.0/training/weight_transfer). The sender lays out a file under /dev/shm once; when every
engine has mapped it, its name is removed, so that the memory goes with the last process, however that ends. A transfer
is then one copy into that memory and one out of it. Sampler and learner must be on one machine.
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

BACKEND = "shared_memory"
_SHARED_MEMORY = Path("/dev/shm")


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """The file to map: tensors by their names in the checkpoint."""

    path: str


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """The weights lie where they always do."""


def _map(path: str) -> dict[str, Tensor]:
    """The tensors of a file, in memory that is shared with every process that maps it."""
    with torch.serialization.set_default_mmap_options(MAP_SHARED):
        return torch.load(path, mmap=True, weights_only=True)


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """The side of vLLM's worker."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        try:
            self.weights = _map(init_info.path)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"{init_info.path} is not there: without GPUs weights travel through shared memory, "
                "so rollout workers and learner ranks must be on one machine"
            ) from error

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        self.model.load_weights(iter(self.weights.items()))  # type: ignore[operator]  # a vLLM model, typed as a module

    def finish_weight_update(self) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        # A head tied to the embedding shares its weight and is given none of its own, so the reload passes it by; on a
        # CPU it computes with a packed copy, which would stay that of the weights before.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        pass


@dataclass
class SharedMemoryTrainerInitInfo(TrainerInitInfo):
    """Rank 0 sends."""

    backend: ClassVar[str] = BACKEND


class SharedMemoryTrainerEngine(TrainerWeightTransferEngine[SharedMemoryTrainerInitInfo]):
    """The side of the learner's ranks."""

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
        """Lay the memory out, have every engine map it, and remove its name."""
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
        for name, tensor in self.source:  # gathering is a collective: every rank walks through it
            if self.is_sender:
                self.weights[name].copy_(tensor.detach())
        if self.is_sender:
            self.client.start_weight_update()
            self.client.update_weights(asdict(SharedMemoryUpdateInfo()))
            self.client.finish_weight_update()
