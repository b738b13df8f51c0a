"""A weight sync of all weights, and one of adapters alone, compared with a plain copy of as many bytes.

    python -m tests.benchmarks.weight_sync [--quick] [--transport gloo]

The model has half a billion parameters in float32; adapters have rank 16. All weights go from the learner's process
into shared memory, and from there into the engine: two copies, so half of memcpy's speed is the limit. `share` is the
share of a step of the default job on the miniature.

With `--transport gloo` all weights are sent as between machines, and compared with a plain gloo broadcast of as many
bytes to a process that does nothing with them.
"""

import ctypes
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray

from tests.benchmarks.harness import arguments, finish, interleaved, start, table
from tests.benchmarks.job import started
from tests.benchmarks.models import write_model
from visurf_ray.actors import make_rollouts
from visurf_ray.cluster.resources import connected
from visurf_ray.config.load import load_config
from visurf_ray.config.schema import ModelSource
from visurf_ray.learner.trained import Trained, adapter_files
from visurf_ray.models import load_processor

ADAPTERS = Trained(lora_rank=16, lora_alpha=32.0)
ANYWHERE = ({"num_cpus": 0.5},)  # Ray's options of the one engine
_COLUMNS = ("memcpy", "all", "adapters")
_TIMEOUT = 300.0  # seconds


@ray.remote(num_cpus=0.5)
class Sender:
    """A learner's end of the transfer, without an optimizer: with one the model would not fit beside its engines."""

    def __init__(self, path: str, full: Any, with_adapters: Any) -> None:
        """Take an engine that receives all weights, and one that receives adapters."""
        import torch

        from visurf_ray.learner.policy import load_model
        from visurf_ray.weights.sender import WeightSender

        self.model = load_model(ModelSource(path), dtype=torch.float32, gradient_checkpointing=False)
        self.sender = WeightSender(
            self.model,
            [full],
            rank=0,
            gpu_workers=0,
            colocated=False,
            address="",
            port=0,
            one_machine=True,
            start_timeout=_TIMEOUT,
            timeout=_TIMEOUT,
        )
        size = _bytes(self.model)
        self.source, self.target = (torch.ones(size, dtype=torch.uint8) for _ in range(2))

        self.engine = with_adapters
        adapters = ADAPTERS.apply(self.model)
        assert adapters
        self.adapters = adapters

    def send_all(self) -> None:
        self.sender.send()

    def send_adapters(self) -> None:
        ray.get(self.engine.load_adapters.remote(ray.put(adapter_files(self.adapters))))

    def memcpy(self) -> None:
        """Copy as many bytes as the weights have."""
        ctypes.memmove(self.target.data_ptr(), self.source.data_ptr(), len(self.source))


@ray.remote(num_cpus=0.5)
class Broadcaster:
    """The learner's end of a transfer over gloo, and that of a plain broadcast."""

    def __init__(self, path: str, engine: Any, receiver: Any) -> None:
        import torch

        from visurf_ray.learner.policy import load_model
        from visurf_ray.weights.sender import WeightSender

        address, (first, second) = ray.util.get_node_ip_address(), _free_ports(2)
        self.model = load_model(ModelSource(path), dtype=torch.float32, gradient_checkpointing=False)
        self.sender = WeightSender(
            self.model,
            [engine],
            rank=0,
            gpu_workers=0,
            colocated=False,
            address=address,
            port=first,
            one_machine=False,
            start_timeout=_TIMEOUT,
            timeout=_TIMEOUT,
        )
        self.receiver = receiver
        self.bytes = torch.ones(_bytes(self.model), dtype=torch.uint8)
        joined = receiver.join.remote(address, second, len(self.bytes))
        self.group = _join(address, second, rank=0)
        ray.get(joined)

    def send_all(self) -> None:
        self.sender.send()

    def broadcast(self) -> None:
        """Send as many bytes as the weights have, all at once."""
        received = self.receiver.receive.remote()
        self.group.broadcast(self.bytes).wait()
        ray.get(received)


@ray.remote(num_cpus=0.5)
class Receiver:
    """The other end of a plain broadcast."""

    def join(self, address: str, port: int, size: int) -> None:
        import torch

        self.bytes = torch.ones(size, dtype=torch.uint8)
        self.group = _join(address, port, rank=1)

    def receive(self) -> None:
        self.group.broadcast(self.bytes).wait()


def _join(address: str, port: int, *, rank: int) -> Any:
    from visurf_ray.weights.gloo import Group
    from visurf_ray.weights.interface import use_interface

    use_interface(address)
    return Group(address, port, rank=rank, world_size=2, start_timeout=_TIMEOUT, timeout=_TIMEOUT)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def _bytes(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def measure_gloo(folder: str, repeats: int) -> dict[str, float]:
    """Return the seconds of a transfer of all weights over gloo, and those of a plain broadcast of as many bytes."""
    config = load_config([f"model.path={folder}", "rollout.max_model_len=256", "rollout.memory=0.25"])
    with connected("local"), ExitStack() as stack:
        pool = make_rollouts(config, load_processor(config.model), ANYWHERE)
        stack.callback(pool.shut_down)
        pool.start()
        sender = Broadcaster.remote(folder, pool.actors[0], Receiver.remote())  # type: ignore[attr-defined]
        runs = {
            "all": lambda: ray.get(sender.send_all.remote()),
            "broadcast": lambda: ray.get(sender.broadcast.remote()),
        }
        return interleaved(runs, repeats)


def measure_sync(folder: str, repeats: int) -> dict[str, float]:
    """Return the seconds of both kinds of transfer, and those of a plain copy of all weights."""
    config = load_config([f"model.path={folder}", "rollout.max_model_len=256", "rollout.memory=0.25"])
    with connected("local"), ExitStack() as stack:
        processor = load_processor(config.model)
        pools = [make_rollouts(config, processor, ANYWHERE, trained) for trained in (Trained(), ADAPTERS)]
        for pool in pools:
            stack.callback(pool.shut_down)
            pool.start()
        sender = Sender.remote(folder, *(pool.actors[0] for pool in pools))  # type: ignore[attr-defined]
        runs = {
            "all": lambda: ray.get(sender.send_all.remote()),
            "adapters": lambda: ray.get(sender.send_adapters.remote()),
            "memcpy": lambda: ray.get(sender.memcpy.remote()),
        }
        return interleaved(runs, repeats)


def measure_share(steps: int) -> float:
    """The share of a step of the default job that the transfer takes."""
    with started("learner.learning_rate=1e-9") as job:
        driver = job.driver()
        shares = []
        for number in range(steps + 1):
            begin = time.perf_counter()
            driver.step(driver.collect(number))
            middle = time.perf_counter()
            job.learner.send_weights()
            shares.append((time.perf_counter() - middle) / (middle - begin))
        return statistics.median(shares[1:])


def main() -> None:
    parser = arguments(__doc__, devices=["cpu"])
    parser.add_argument("--transport", default="shared_memory", choices=["shared_memory", "gloo"])
    options = parser.parse_args()
    start(options)
    gloo = options.transport == "gloo"
    with tempfile.TemporaryDirectory() as folder:
        size = (
            {"hidden": 512, "layers": 8, "heads": 8} if options.quick else {"hidden": 1536, "layers": 18, "heads": 16}
        )
        parameters = write_model(Path(folder), **size)
        seconds = (measure_gloo if gloo else measure_sync)(folder, 2 if options.quick else 5)
    sizes = {"parameters": f"{parameters / 1e6:.0f} M", "GiB": parameters * 4 / 2**30}
    if gloo:
        table([*sizes, "broadcast s", "all weights s"], [[*sizes.values(), seconds["broadcast"], seconds["all"]]])
        finish({"of_broadcast": seconds["broadcast"] / seconds["all"]})
        return
    share = measure_share(3 if options.quick else 10)
    table(
        [*sizes, "memcpy s", "all weights s", "adapters s", "share of a step"],
        [[*sizes.values(), *(seconds[name] for name in _COLUMNS), share]],
    )
    of_memcpy, over = seconds["memcpy"] / seconds["all"], seconds["adapters"] / seconds["all"]
    finish({"of_memcpy": of_memcpy, "lora_over_full": over, "share": share})


if __name__ == "__main__":
    main()
