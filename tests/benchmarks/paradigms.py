"""Trains the miniature with each paradigm and several seeds, and prints a table for each task.

    python -m tests.benchmarks.paradigms [--tasks miniature] [--methods visurf rlvr sft] [--seeds 0 1 2] [--out FOLDER]
        [key=value …]

All runs have the same number of steps, and all runs of a task the same held-out examples. A run that exists already is
not repeated, so an interrupted comparison can be continued. A folder with other settings or another base model is
refused. A table gives the mean over seeds, and the smallest and largest value.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from visurf_ray.groups import without_bounds
from visurf_ray.miniature.base_model import BASE_MODEL


def train(task: str, method: str, seed: int, out: Path, overrides: list[str]) -> dict:
    """The run's summary. Raises CalledProcessError when the run fails."""
    folder = out / f"{task}-{method}-seed{seed}"
    summary = folder / "summary.json"
    if not summary.is_file():
        command = [sys.executable, "-m", "visurf_ray.train", "cluster.address=local", f"task={task}"]
        command += [f"method={method}", f"seed={seed}", f"output_dir={folder}"]
        command += ["train.resume=auto", "train.export=false", *overrides]
        subprocess.run(command, check=True)
    return json.loads(summary.read_text())


def spread(values: list[float], digits: int = 2) -> str:
    """`0.71 (0.68–0.75)`: mean, smallest and largest."""
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(results: dict[str, list[dict]]) -> str:
    """Markdown: the base model, then each method after training."""
    before = [summary["before"] for summaries in results.values() for summary in summaries]
    names = list(without_bounds(before[0]))
    lines = [f"| | {' | '.join(names)} | seconds |", "|---" * (len(names) + 2) + "|"]
    lines.append(f"| base model | {' | '.join(spread([b[name] for b in before]) for name in names)} | |")
    for method, summaries in results.items():
        cells = [spread([summary["after"][name] for summary in summaries]) for name in names]
        seconds = spread([summary["train_seconds"] for summary in summaries], 0)
        lines.append(f"| {method} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def claim(out: Path, overrides: list[str]) -> None:
    """Mark `out` as the place of these settings and this base model. Exits when it is that of others."""
    weights = (BASE_MODEL / "model.safetensors").read_bytes()
    settings = {"overrides": sorted(overrides), "base_model": hashlib.sha256(weights).hexdigest()}
    record = out / "settings.json"
    if record.is_file() and json.loads(record.read_text()) != settings:
        sys.exit(f"{out} holds runs of other settings or of another base model: give another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["miniature"])
    parser.add_argument("--methods", nargs="+", default=["visurf", "rlvr", "sft"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/paradigms"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the same for every run")
    arguments = parser.parse_intermixed_args()
    claim(arguments.out, arguments.overrides)
    scores = {}
    for task in arguments.tasks:
        runs = {
            method: [train(task, method, seed, arguments.out, arguments.overrides) for seed in arguments.seeds]
            for method in arguments.methods
        }
        print(f"\n{task}\n\n{table(runs)}\n")
        scores[task] = {method: [summary["after"] for summary in summaries] for method, summaries in runs.items()}
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
