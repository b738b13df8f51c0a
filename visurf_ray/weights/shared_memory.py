"""A weight-transfer backend for machines without a GPU: safetensors in shared memory.

vLLM's own backends (`nccl`, `ipc`) move weights between GPUs. This one follows the same protocol
(https://docs.vllm.ai/en/v0.32.0/training/weight_transfer): the sender writes a file under /dev/shm, each engine maps
and loads it, and the file is removed. Update messages travel as msgpack, where an array would arrive as a list of
numbers, so only the path is sent. Sampler and learner must be on one machine.
"""

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
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
    """Nothing to agree on."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """Where the weights lie, in checkpoint format."""

    path: str


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """The side of vLLM's worker."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        try:
            weights = load_file(update_info.path)
        except (FileNotFoundError, SafetensorError) as error:
            raise RuntimeError(
                f"{update_info.path} cannot be read: without GPUs weights travel through shared memory, "
                "so rollout workers and learner ranks must be on one machine"
            ) from error
        self.model.load_weights(iter(weights.items()))  # type: ignore[operator]  # a vLLM model, typed as a module

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
            client.init_weight_transfer_engine(asdict(SharedMemoryInitInfo()))
        return engine

    def send_weights(self) -> None:
        assert self.source is not None
        if not self.is_sender:
            for _ in self.source:  # gathering is a collective
                continue
            return
        # A gathered tensor lives until the source moves on, hence the copies.
        weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.source}
        handle, name = tempfile.mkstemp(prefix="visurf_ray-", suffix=".safetensors", dir=_SHARED_MEMORY)
        os.close(handle)
        try:
            save_file(weights, name)
            self.client.start_weight_update()
            self.client.update_weights(asdict(SharedMemoryUpdateInfo(name)))
            self.client.finish_weight_update()
        finally:
            os.unlink(name)
