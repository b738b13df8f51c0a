"""Processes that compute on a CPU: the environment that they start with."""

import os
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

# The environment of a process that computes deterministically. By default the order in which Intel's MKL adds depends
# on where in memory the numbers lie, and on how many threads it takes (oneMKL's Developer Guide, "Conditional Numerical
# Reproducibility"). On AMD's processors it takes AUTO for AVX2 (MKL_VERBOSE=1 shows it).
SAME_SUMS = {"MKL_CBWR": "AVX2,STRICT", "MKL_DYNAMIC": "FALSE"}


def on_cpu() -> dict[str, str]:
    """Return the environment of a process that computes on a CPU, which it must have when it starts.

    By default glibc returns large freed blocks to the kernel, and faulting them in again takes a tenth of a step and a
    third of a weight sync.

    By default the threads of GNU's OpenMP, which PyTorch brings, wait for one another by spinning, and where another
    program runs on one of their cores a step takes ten times as long. The threads of Intel's OpenMP, which vLLM brings
    and recommends, yield their cores while they spin, and after a millisecond they sleep. Where it is not installed, as
    on ARM, or where the user preloads another OpenMP, the threads sleep at once, and a step on idle cores takes a third
    longer (tests/benchmarks/RESULTS.md, `vs_trl`).
    """
    environment = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**36),
        "MALLOC_TOP_PAD_": str(2**26),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "1",
    }
    preloaded = os.environ.get("LD_PRELOAD", "")
    if "omp" not in preloaded and (library := _intel_openmp()):
        environment["LD_PRELOAD"] = f"{library}:{preloaded}".rstrip(":")
    return environment


def _intel_openmp() -> Path | None:
    """Return the path of Intel's OpenMP library, or None where it is not installed."""
    try:
        installed = files("intel-openmp")
    except PackageNotFoundError:
        return None
    return next((Path(file.locate()).resolve() for file in installed or [] if file.name == "libiomp5.so"), None)


def unlink_openmp() -> None:
    """Remove the file that Intel's OpenMP has made in /dev/shm for this process; a killed process would leave it.

    The library makes the file when PyTorch is imported, and looks there for a second copy of itself in the process.
    """
    Path(f"/dev/shm/__KMP_REGISTERED_LIB_{os.getpid()}_{os.getuid()}").unlink(missing_ok=True)
