"""Checkpoints that are written in the background."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch.utils.serialization import config as serialization

from visurf_ray.aliases import Json


class BackgroundEngine(TorchCheckpointEngine):
    """DeepSpeed's checkpoint engine, which copies a state to host memory and leaves the writing to a thread.

    DeepSpeed's own engine for this (decoupled_checkpoint_engine.py) copies nothing: its process reads the live state,
    so that the next optimizer step waits for the files, and an error of that process is printed, not raised.
    """

    def __init__(self, deepspeed_config: Json) -> None:
        super().__init__(deepspeed_config)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writes: list[Future[None]] = []

    def save(self, state_dict: Json, path: str | Path) -> None:
        """Copy a state as the bytes of its file, and begin to write that. The state may change at once."""
        memory = _Memory()
        # Checksums that nobody reads take most of the time.
        with serialization.patch("save.compute_crc32", False):  # type: ignore[attr-defined]  # added at run time
            super().save(state_dict, memory)
        self.write(Path(path), memory.parts)

    def write(self, path: Path, parts: deque[bytes]) -> None:
        """Begin to write the bytes to a file; each part is freed when it is written."""
        self._writes.append(self._thread.submit(_write, path, parts))

    def written(self, *, wait: bool) -> bool:
        """Return whether everything is written.

        Args:
            wait: whether to wait for it.

        Raises:
            OSError: a file could not be written.
        """
        if not wait and not all(write.done() for write in self._writes):
            return False
        writes, self._writes = self._writes, []
        for write in writes:
            write.result()
        return True


class _Memory:
    """A file in memory, as a list of its parts: unlike `io.BytesIO` it moves nothing when it grows."""

    def __init__(self) -> None:
        self.parts: deque[bytes] = deque()

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        return len(self.parts[-1])

    def flush(self) -> None:
        pass


def _write(path: Path, parts: deque[bytes]) -> None:
    with path.open("wb") as file:
        while parts:
            file.write(parts.popleft())
