"""A weight transfer without GPUs on one machine: tensors in shared memory.

The sender creates a file under /dev/shm once and removes its name when every engine has mapped it, so that the
operating system frees the memory when the last process ends, even by a crash. A transfer is one copy into that memory
and one out of it. For the receiving side see `cpu_engine`.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
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
    WeightTransferInitInfo,
)

_SHARED_MEMORY = Path("/dev/shm")


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """The file to map. It holds tensors by their names in a checkpoint."""

    path: str

    def open(self) -> Callable[[], Iterator[list[tuple[str, Tensor]]]]:
        """Map the file; returns what yields the weights of an update.

        Raises:
            RuntimeError: there is no such file here.
        """
        try:
            weights = list(_map(self.path).items())
        except FileNotFoundError as error:
            raise RuntimeError(
                f"{self.path} does not exist here, although rank 0 of the learner has the same address: do they run in "
                "containers? Then these must share their /dev/shm, for example by `--ipc=host`"
            ) from error
        return lambda: iter([weights])


def _map(path: str) -> dict[str, Tensor]:
    """Map a file of tensors; changes are seen by all processes that map it."""
    with torch.serialization.set_default_mmap_options(MAP_SHARED):
        return torch.load(path, mmap=True, weights_only=True)


@dataclass
class SharedMemoryTrainerInitInfo(TrainerInitInfo):
    """Names the backend; rank 0 is the sender."""

    backend: ClassVar[str] = "shared_memory"


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
            self.client.update_weights({})
            self.client.finish_weight_update()
