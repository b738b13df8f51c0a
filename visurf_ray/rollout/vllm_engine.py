"""One vLLM engine: its settings, how it is started with them, and how this process ends with it."""

import multiprocessing.connection
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from visurf_ray.cluster.cpu import SAME_SUMS, on_cpu
from visurf_ray.config.choices import Dtype, HeadDtype
from visurf_ray.config.schema import ModelSource

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(frozen=True)
class EngineConfig:
    """Settings of an engine; see `conf/config.yaml`.

    Attributes:
        model: its path is a folder or a hub id; see `models.resolved`.
        memory: the KV cache in GiB on a CPU, the share of the GPU's memory otherwise.
        gpus: GPUs of the engine (tensor parallel); 0 samples on the CPU.
        sleeps: whether the engine shares its GPUs with learner ranks, and sleeps while these compute.
        head_dtype: see `learner.head_dtype`.
        banned: token ids that are never sampled.
        images: the most images of a prompt.
        adapter_rank: the rank of the adapters that the engine will load; 0: none.
        adapts_vision: whether adapters lie in the vision tower or its projector too.
        deterministic: see `rollout.deterministic`.
    """

    model: ModelSource
    dtype: Dtype
    max_model_len: int
    memory: float
    gpus: int
    enforce_eager: bool
    sleeps: bool
    seed: int
    head_dtype: HeadDtype
    banned: tuple[int, ...]
    images: int = 1
    adapter_rank: int = 0
    adapts_vision: bool = False
    deterministic: bool = False


def start_engine(config: EngineConfig, cores: list[int]) -> "AsyncLLM":
    """Start an engine, which computes in processes that this one starts.

    Args:
        cores: the CPU cores to compute on; an empty list: all of this machine. Not used with GPUs.
    """
    # vLLM reads its variables on import.
    os.environ["VLLM_LOGGING_LEVEL"] = os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if config.sleeps:
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # vLLM pickles the handles of GPU memory
    from vllm.plugins import load_general_plugins

    if not config.gpus:
        _set_cpu_environment(config, cores)  # now: PyTorch, which vLLM has imported, keeps the one thread Ray gives it
    from vllm.v1.engine.async_llm import AsyncLLM

    load_general_plugins()
    return AsyncLLM.from_engine_args(_arguments(config))


def _set_cpu_environment(config: EngineConfig, cores: list[int]) -> None:
    """Set the cores and the variables of the engine's process."""
    # The engine is a process that this one starts: it has the same cores, and computes with a thread on each.
    if cores:
        os.sched_setaffinity(0, cores)
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it to 1 for an actor with less than one CPU
    os.environ.update(on_cpu())  # of the engine's process, which starts later
    os.environ.update(SAME_SUMS if config.deterministic else {})
    if config.enforce_eager:
        # vLLM's sampler is compiled even so, which needs a C++ compiler and takes half a minute.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"


def _arguments(config: EngineConfig) -> "AsyncEngineArgs":
    """Return vLLM's arguments for an engine."""
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig

    backend = "ipc" if config.sleeps else "nccl"
    memory: dict[str, Any] = {"gpu_memory_utilization": config.memory, "tensor_parallel_size": config.gpus}
    if not config.gpus:
        from visurf_ray.weights.plugin import CPU_BACKEND

        backend = CPU_BACKEND
        memory = {
            "kv_cache_memory_bytes": int(config.memory * 2**30),
            # A prompt's samples share its whole blocks only, and the CPU's default block has 128 tokens.
            "block_size": 32,
            # Of a chunk that is not a prompt's last the sampled token is dropped, and the generator of its seed set
            # back (`_bookkeeping_sync` in vLLM's gpu_model_runner.py), which generators of the CPU cannot be.
            "enable_chunked_prefill": False,
        }
    arguments = AsyncEngineArgs(
        model=config.model.path,
        trust_remote_code=config.model.trust_remote_code,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=256,
        max_num_batched_tokens=max(8192, config.max_model_len),  # a whole prompt, and an image, is one chunk
        limit_mm_per_prompt={"image": config.images, "video": 0},
        logprobs_mode="processed_logprobs",  # after the temperature and banned tokens, as the learner computes them
        weight_transfer_config=WeightTransferConfig(backend=backend),
        enforce_eager=config.enforce_eager,
        enable_sleep_mode=config.sleeps,
        enable_prefix_caching=not config.deterministic,
        disable_log_stats=True,
        async_scheduling=False if config.deterministic else None,  # None: vLLM's choice
        seed=config.seed,
        hf_overrides={"head_dtype": config.head_dtype.value},
        **memory,
        **_adapter_arguments(config),
    )
    if config.gpus:
        arguments.distributed_executor_backend = executor(config.gpus)
    else:
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        # As vLLM does with one GPU. On a CPU it would compute in one more process, which starts eight seconds later
        # and samples slower by a sixth.
        arguments.distributed_executor_backend = UniProcExecutor
    return arguments


def _adapter_arguments(config: EngineConfig) -> dict[str, Any]:
    """Return vLLM's arguments for an engine with adapters."""
    if not config.adapter_rank:
        return {}
    ranks = (8, 16, 32, 64, 128, 256, 512)  # those that vLLM offers
    room = next(rank for rank in ranks if rank >= config.adapter_rank)
    return {"enable_lora": True, "max_lora_rank": room, "enable_tower_connector_lora": config.adapts_vision}


def executor(gpus: int) -> Literal["mp", "ray"] | None:
    """Return vLLM's executor for an engine with GPUs; None: it computes in the engine's own process.

    An engine on the GPUs of several ranks (see `cluster/reservation.py`) has an actor on each of them. One with several
    GPUs of its own has a process on each; vLLM alone would choose Ray, as its actor is in a placement group.
    """
    if "VLLM_RAY_BUNDLE_INDICES" in os.environ:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # as in vLLM's examples/rl/rlhf_ipc.py: each actor has its own
        return "ray"
    return "mp" if gpus > 1 else None


def end_with_children(unless: Callable[[], bool]) -> None:
    """Have a thread end this process when a child that `multiprocessing` has started ends, unless it is to end.

    vLLM never answers the calls that its engine's process had not answered when it died.
    """
    children = [child.sentinel for child in multiprocessing.active_children()]
    assert children, "vLLM has started its engine's process"

    def watch() -> None:
        multiprocessing.connection.wait(children)
        if not unless():
            print("vLLM's engine process has died", file=sys.stderr, flush=True)
            os._exit(1)

    Thread(target=watch, name="engine", daemon=True).start()
