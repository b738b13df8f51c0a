"""The gloo broadcast of weights: engines and sender are threads of this process, on real connections."""

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from visurf_ray.weights import gloo, interface
from visurf_ray.weights.cpu_engine import CpuEngine, CpuUpdateInfo
from visurf_ray.weights.interface import use_interface

LIMIT = 2.0  # seconds that a group waits, where it waits in vain
SOON = 30.0  # seconds: beyond any limit here, as a busy machine is slow, and far below LONG
LONG = 300.0


class Weights(WeightSource):
    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights

    def metadata(self):
        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights.items()]

    def __iter__(self):
        yield from self.weights.items()


class Model:
    """What an engine loads weights into; keeps what it is given, as vLLM does until a layer is complete."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}

    def load_weights(self, weights) -> None:
        self.loaded |= dict(weights)


class Engines:
    """Calls engines as vLLM's client calls actors: all at the same time, until one fails. Has its protocol."""

    def __init__(self, count: int) -> None:
        self.engines = [object.__new__(CpuEngine) for _ in range(count)]  # without a vLLM around it
        for engine in self.engines:
            engine.model = Model()

    def _all(self, call) -> None:
        executor = ThreadPoolExecutor(len(self.engines))
        calls = [executor.submit(call, number, engine) for number, engine in enumerate(self.engines)]
        executor.shutdown(wait=False)
        for finished in wait(calls, return_when=FIRST_EXCEPTION).done:
            finished.result()

    def init_weight_transfer_engine(self, info) -> None:
        def join(number: int, engine: CpuEngine) -> None:
            engine.init_transfer_engine(engine.parse_init_info(info | {"rank_offset": info["rank_offset"] + number}))

        self._all(join)

    def start_weight_update(self) -> None:
        for engine in self.engines:
            engine.model.loaded = {}

    def update_weights(self, info) -> None:
        self._all(lambda _, engine: engine.receive_weights(CpuUpdateInfo(**info)))

    def finish_weight_update(self) -> None:
        pass


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(gloo, "_CHUNK", 1000)
    monkeypatch.setattr(gloo, "_REASON_TIMEOUT", 1.0)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def connect(
    engines: Engines, weights: dict[str, torch.Tensor], *, start_timeout: float = LONG, timeout: float = LONG
) -> gloo.GlooTrainerEngine:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    info = gloo.GlooTrainerInitInfo("127.0.0.1", port, len(engines.engines), start_timeout, timeout, rank=0)
    return gloo.GlooTrainerEngine.trainer_init(info, client=engines, source=Weights(weights))


@contextmanager
def ends_soon() -> Iterator[None]:
    begin = time.monotonic()
    try:
        yield
    finally:
        assert time.monotonic() - begin < SOON


@contextmanager
def hanging(engines: Engines) -> Iterator[None]:
    """Inside, the engines begin to receive weights and do nothing."""
    end = Event()
    engines.update_weights = lambda info: end.wait(LONG)
    try:
        yield
    finally:
        end.set()


def some_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """In two dtypes, of an odd size, transposed, without a dimension, empty, and larger than a chunk."""
    torch.manual_seed(seed)
    weights = {f"layers.{number}": torch.randn(7, 11) for number in range(9)}
    weights |= {"half": torch.randn(3, 3).bfloat16(), "half.odd": torch.randn(5).bfloat16(), "one": torch.randn(())}
    return weights | {"turned": torch.randn(4, 6).T, "empty": torch.randn(0, 4), "large": torch.randn(40, 50)}


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == weight.dtype and torch.equal(found[name], weight) for name, weight in expected.items()
    )


@pytest.mark.parametrize("count", [1, 3])
def test_every_engine_gets_exactly_the_weights_of_each_update(count):
    engines, weights = Engines(count), some_weights()
    sender = connect(engines, weights)
    for seed in (1, 2):
        for name, weight in some_weights(seed).items():
            weights[name].copy_(weight)
        sender.send_weights()
        assert all(equal(engine.model.loaded, weights) for engine in engines.engines)
    sender.shutdown()


def test_engines_take_another_learner_after_the_first_has_closed():
    engines = Engines(2)
    for seed in (1, 2):
        weights = some_weights(seed)
        sender = connect(engines, weights)
        sender.send_weights()
        assert all(equal(engine.model.loaded, weights) for engine in engines.engines)
        sender.shutdown()


def test_a_rank_that_sends_nothing_gathers_all_weights():
    class Counted(Weights):
        gathered = 0

        def __iter__(self):
            for pair in super().__iter__():
                self.gathered += 1
                yield pair

    source = Counted(some_weights())
    info = gloo.GlooTrainerInitInfo("127.0.0.1", 1, 1, LONG, LONG, rank=1)
    gloo.GlooTrainerEngine.trainer_init(info, client=Engines(1), source=source).send_weights()
    assert source.gathered == len(source.weights)


def test_chunks_have_one_dtype_and_a_bounded_size():
    metas = Weights(some_weights()).metadata()
    parts = gloo.chunks(metas)
    assert [weight for part in parts for weight in part] == metas
    assert [part for part in parts if len({weight.dtype for weight in part}) > 1] == []
    assert [part[0].name for part in parts if gloo._bytes(part) > 1000] == ["large"]
    assert len(parts) == 6


def test_an_error_of_an_engine_is_raised_at_once():
    engines = Engines(2)
    sender = connect(engines, some_weights())

    def refuse(weights) -> None:
        raise KeyError("no such layer")

    engines.engines[1].model.load_weights = refuse
    with pytest.raises(KeyError, match="no such layer"), ends_soon():
        sender.send_weights()


def test_an_engine_that_never_comes_is_named_in_time():
    class Absent(Engines):
        def init_weight_transfer_engine(self, info) -> None:
            pass

    with pytest.raises(RuntimeError, match=r"has not reached.* up to 2 s \(cluster\.start_timeout\)"), ends_soon():
        connect(Absent(1), some_weights(), start_timeout=LIMIT)


def test_an_engine_that_hangs_ends_the_transfer_in_time():
    engines = Engines(1)
    sender = connect(engines, {"weight": torch.randn(1000, 10000)}, timeout=LIMIT)
    with hanging(engines), pytest.raises(RuntimeError, match=r"[Tt]imed out"), ends_soon():
        sender.send_weights()


def test_an_engine_that_has_gone_ends_the_transfer_at_once():
    engines = Engines(1)
    sender = connect(engines, {"weight": torch.randn(1000, 10000)})
    engines.engines[0].shutdown()
    with hanging(engines), pytest.raises(RuntimeError, match=r"peer|reset|pipe"), ends_soon():
        sender.send_weights()


def test_gloo_uses_the_interface_of_an_address_unless_the_user_names_one(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "chosen")
    use_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "chosen"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface("192.0.2.1")  # an address for documentation, which no machine has
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    use_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_on_the_loopback_address_nccl_and_vllm_stay_there_unless_the_user_says_otherwise(monkeypatch):
    variables = {"NCCL_SOCKET_IFNAME": "=lo", "VLLM_HOST_IP": "127.0.0.1"}
    for name in ("GLOO_SOCKET_IFNAME", *variables):
        monkeypatch.setenv(name, "chosen")
    use_interface("127.0.0.1")
    assert {os.environ[name] for name in variables} == {"chosen"}
    for name in variables:
        monkeypatch.delenv(name)
    with monkeypatch.context() as patch:
        patch.setattr(interface.psutil, "net_if_addrs", lambda: {"eth0": [SimpleNamespace(address="192.0.2.1")]})
        use_interface("192.0.2.1")  # several machines may belong to the run
    assert not variables.keys() & os.environ.keys()
    use_interface("127.0.0.1")
    assert {name: os.environ[name] for name in variables} == variables


def test_a_sender_that_has_gone_ends_the_engines_wait():
    engines = Engines(1)
    sender = connect(engines, some_weights())
    sender.shutdown()
    with pytest.raises(RuntimeError), ends_soon():
        engines.update_weights({})
