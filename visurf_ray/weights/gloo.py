"""A weight transfer without GPUs between machines: packed broadcasts over gloo.

It is what vLLM's `nccl` backend is between GPUs (vllm/distributed/weight_transfer/nccl_engine.py): the learner's rank 0
and all engines are one process group. Rank 0 packs weights into chunks. While a chunk is broadcast, rank 0 packs the
next one and the engines load the one before. For the receiving side see `cpu_engine`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.distributed import Work
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferInitInfo,
)

from visurf_ray.aliases import Json

_CHUNK = 2**26  # bytes
_BUFFERS = 2  # chunks that are on their way at the same time
_REASON_TIMEOUT = 10.0  # seconds that an engine whose connection broke has to say why


class Group:
    """A process group of the learner's rank 0 and all engines; it closes when the last reference to it goes."""

    def __init__(
        self, address: str, port: int, *, rank: int, world_size: int, start_timeout: float, timeout: float
    ) -> None:
        """Join the group; returns when all processes have joined.

        Args:
            address: that of rank 0, which listens there for the others.
            start_timeout: seconds to wait for the others here.
            timeout: seconds that a broadcast may take later.

        Raises:
            RuntimeError: not all have joined in time.
        """
        self.timeout = timedelta(seconds=timeout)
        try:
            self.group = stateless_init_torch_distributed_process_group(
                address, port, rank, world_size, "gloo", timeout=timedelta(seconds=start_timeout)
            )
        except RuntimeError as error:  # torch.distributed's errors are of this kind
            raise RuntimeError(
                f"rank {rank} of {world_size} processes of the weight transfer has not reached the others, of which "
                f"rank 0 listens at {address}:{port}, and has waited up to {start_timeout:g} s "
                "(cluster.start_timeout). Can the machines reach each other on all ports? GLOO_SOCKET_IFNAME, if it is "
                f"set, must name the network interface by which they do. {error}"
            ) from error

    def broadcast(self, chunk: Tensor) -> Work:
        """Begin to send a chunk from rank 0, or to receive it; call `wait` of the result."""
        return self.group.broadcast(chunk.view(torch.uint8), 0, self.timeout)


def chunks(weights: Iterable[ParamMeta]) -> list[list[ParamMeta]]:
    """Split weights, in order, into chunks of one dtype and at most `_CHUNK` bytes. A larger weight is a chunk itself.

    Sender and receiver both do this, and so agree on what a broadcast holds.
    """
    found: list[list[ParamMeta]] = []
    for weight in weights:
        last = found[-1] if found else None
        if last and last[0].dtype == weight.dtype and _bytes([*last, weight]) <= _CHUNK:
            last.append(weight)
        else:
            found.append([weight])
    return found


def _numel(chunk: Iterable[ParamMeta]) -> int:
    return sum(math.prod(weight.shape) for weight in chunk)


def _bytes(chunk: list[ParamMeta]) -> int:
    return _numel(chunk) * chunk[0].dtype.itemsize


def _unpacked(buffer: Tensor, chunk: list[ParamMeta]) -> list[tuple[str, Tensor]]:
    """Return the weights of a chunk by their names, as views of the buffer that holds them."""
    parts = buffer.split([math.prod(weight.shape) for weight in chunk])
    return [(weight.name, part.view(weight.shape)) for weight, part in zip(chunk, parts, strict=True)]


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """How an engine joins the group.

    Attributes:
        address: rank 0's.
        port: a port there.
        rank_offset: the engine's rank. The name is that of vLLM's `nccl` backend, see `own_ranks` in rollout/actor.py.
        world_size: processes of the group.
        start_timeout, timeout: as for `Group`.
        weights: the name, dtype and shape of each weight of an update, in the order in which they come.
    """

    address: str
    port: int
    rank_offset: int
    world_size: int
    start_timeout: float
    timeout: float
    weights: list[tuple[str, str, list[int]]]

    def open(self) -> Callable[[], Iterator[list[tuple[str, Tensor]]]]:
        """Join the group; returns what yields the weights of an update, chunk by chunk."""
        group = Group(
            self.address,
            self.port,
            rank=self.rank_offset,
            world_size=self.world_size,
            start_timeout=self.start_timeout,
            timeout=self.timeout,
        )
        parts = chunks(ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in self.weights)
        return lambda: _received(group, parts)


def _received(group: Group, parts: list[list[ParamMeta]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield the weights of one update. The next chunk arrives while the caller handles one."""
    arriving: deque[tuple[Work, Tensor, list[ParamMeta]]] = deque()

    def finish() -> list[tuple[str, Tensor]]:
        work, buffer, chunk = arriving.popleft()
        work.wait()
        return _unpacked(buffer, chunk)

    for chunk in parts:
        buffer = torch.empty(_numel(chunk), dtype=chunk[0].dtype)  # a new one: vLLM keeps it until layers are complete
        arriving.append((group.broadcast(buffer), buffer, chunk))
        if len(arriving) == _BUFFERS:
            yield finish()
    while arriving:
        yield finish()


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """How the group is opened.

    Attributes:
        address: rank 0's.
        port: a free port there.
        engines: their number; each is one process.
        start_timeout, timeout: as for `Group`.
    """

    backend: ClassVar[str] = "gloo"

    address: str
    port: int
    engines: int
    start_timeout: float
    timeout: float


class GlooTrainerEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The sending side, on the learner's ranks. Ranks other than 0 only take part in gathering weights."""

    init_info_cls = GlooTrainerInitInfo
    group: Group | None = None

    @classmethod
    def trainer_init(
        cls,
        init_info: GlooTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        if source is None:
            raise ValueError("the gloo backend needs a WeightSource")
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            engine._open(init_info, source)
        return engine

    def _open(self, info: GlooTrainerInitInfo, source: WeightSource) -> None:
        weights = source.metadata()
        self.parts = chunks(weights)
        self.buffers = [torch.empty(max(map(_bytes, self.parts)), dtype=torch.uint8) for _ in range(_BUFFERS)]
        joined = GlooInitInfo(
            address=info.address,
            port=info.port,
            rank_offset=1,
            world_size=1 + info.engines,
            start_timeout=info.start_timeout,
            timeout=info.timeout,
            weights=[(meta.name, str(meta.dtype).removeprefix("torch."), list(meta.shape)) for meta in weights],
        )
        # All processes of the group join it at the same time.
        engines = _in_background(self.client.init_weight_transfer_engine, asdict(joined))
        self.group = Group(
            info.address,
            info.port,
            rank=0,
            world_size=joined.world_size,
            start_timeout=info.start_timeout,
            timeout=info.timeout,
        )
        engines.result()

    def send_weights(self) -> None:
        assert self.source is not None
        if not self.is_sender:
            for _ in self.source:  # gathering is a collective operation
                pass
            return
        self.client.start_weight_update()
        engines = _in_background(self.client.update_weights, {})
        self._broadcast(self.source, engines)
        engines.result()
        self.client.finish_weight_update()

    def _broadcast(self, source: WeightSource, engines: Future[None]) -> None:
        """Send all weights while the engines receive them.

        Raises:
            RuntimeError: an engine is gone, does not answer within the group's timeout, or has failed itself.
        """
        assert self.group is not None
        weights = iter(source)
        leaving: deque[Work] = deque()
        for number, chunk in enumerate(self.parts):
            if len(leaving) == _BUFFERS:
                _finish(leaving.popleft(), engines)
            buffer = self.buffers[number % _BUFFERS][: _bytes(chunk)].view(chunk[0].dtype)
            for expected, place in _unpacked(buffer, chunk):
                name, weight = next(weights)
                assert (name, weight.shape) == (expected, place.shape), "a source yields what its metadata lists"
                place.copy_(weight)
            leaving.append(self.group.broadcast(buffer))
        assert next(weights, None) is None  # this ends the last gathering, too
        for work in leaving:
            _finish(work, engines)

    def shutdown(self) -> None:
        self.group = None


def _in_background(call: Callable[..., None], *arguments: Json) -> Future[None]:
    """Begin a call. Nobody joins its thread: after an error of the group the call may wait for ever."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(call, *arguments)
    executor.shutdown(wait=False)
    return future


def _finish(work: Work, engines: Future[None]) -> None:
    """Wait until a broadcast has ended. An error of an engine is raised at once: it would not receive the rest."""
    while not work.is_completed():
        if engines.done():
            engines.result()
        time.sleep(0.0005)
    try:
        work.wait()
    except RuntimeError:
        wait([engines], timeout=_REASON_TIMEOUT)
        if engines.done():
            engines.result()
        raise
