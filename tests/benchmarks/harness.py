"""What the benchmarks share: interleaved timing, peak memory, a table, and the JSON line at the end."""

import argparse
import gc
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch


def arguments(description: str | None, devices: Sequence[str] = ("cpu", "cuda")) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repeats: does it run?")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    parser.add_argument("--device", default="cpu", choices=devices)
    return parser


def start(arguments: argparse.Namespace) -> None:
    """Set the threads and print what the numbers were made with."""
    torch.set_num_threads(arguments.threads)
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{device}, {arguments.threads} threads, {packages}\n")


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of each run: the least of `repeats` rounds that run all of them once each, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            gc.collect()
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: min(values) for name, values in seconds.items()}


def peak_memory(module: str, case: str, flags: Sequence[str]) -> float:
    """MiB that `case` of a benchmark adds to a process of its own: `python -m MODULE --memory CASE` prints it."""
    command = [sys.executable, "-m", module, "--memory", case, *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def added_memory(run: Callable[[], Any], device: str) -> float:
    """MiB by which `run` raises the process's peak (on a GPU: of allocated device memory)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for row in rows:
        print(f"| {' | '.join(_text(cell) for cell in row)} |")


def _text(cell: Any) -> str:
    """Three digits of a number, or all of a thousand and more."""
    return str(cell) if not isinstance(cell, float) else f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def finish(results: Any) -> None:
    """Print the results as the last line, one JSON object."""
    print(json.dumps(results))
