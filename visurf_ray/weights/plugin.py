"""Registers the weight transfers without GPUs with vLLM.

`register` is an entry point of the group `vllm.general_plugins`, which vLLM runs in every process of an engine.
"""

import ctypes
import multiprocessing
import signal
import threading
from functools import cache

from tqdm import tqdm
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from visurf_ray.cluster.cpu import unlink_openmp

CPU_BACKEND = "cpu"  # of an engine; it receives what either of the two senders sends


@cache
def register() -> None:
    """Register the engine's side and the trainer's. Later calls do nothing: vLLM refuses a name that it knows."""
    WeightTransferEngineFactory.register_engine(CPU_BACKEND, "visurf_ray.weights.cpu_engine", "CpuEngine")
    register_sender = WeightTransferTrainerFactory.register_engine
    register_sender("shared_memory", "visurf_ray.weights.shared_memory", "SharedMemoryTrainerEngine")
    register_sender("gloo", "visurf_ray.weights.gloo", "GlooTrainerEngine")
    if multiprocessing.parent_process() is not None:  # this is a process that vLLM has started
        _end_with_parent()
        # By default tqdm locks among processes too, by a semaphore with a name, which stays if the process is killed.
        tqdm.set_lock(threading.RLock())
        unlink_openmp()


def _end_with_parent() -> None:
    """Have Linux end this process when its parent ends, even if it hangs: the memory of its GPU is then free again."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
