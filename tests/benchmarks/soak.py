"""A long run of the miniature whose processes are killed and stopped, and whose memory is watched.

    python -m tests.benchmarks.soak [--steps 300] [--every 20] [--seed 0] [--compare] [--quick]
        [--out FOLDER] [key=value …]

Every `--every` steps SIGKILL or SIGSTOP hits a process of the run, up to three seconds after the step: the actor of a
rollout worker, the engine's process that vLLM has started in it, a reward actor, a data actor or a learner rank.
`--seed` draws them. A reward actor is killed only: one that is stopped cannot be told from a reward that never returns,
whose group is dropped.

The run has survived if it ends with every step logged once, no group dropped, and as many examples drawn as without
faults. It is a deterministic run. With `--compare` the same run without faults goes before, and `equal` tells whether
all numbers in both metrics.jsonl are equal, times aside.

The resident memory of each role is sampled every two seconds. `rss_slope_mib` is how much it grows in 100 steps: one
slope for all processes of a role, each without its first steps. `private_slope_mib` leaves out shared pages, such as
those of Ray's object store, and `descriptor_slope` counts open files. `leaks` names the processes that live on after
the end, and what nobody uses any more in /dev/shm.
"""

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from tests.benchmarks.harness import arguments, finish, start, table
from tests.processes import Family, title

# Small, and with limits for machines on which a step takes a second.
SETTINGS = [
    *("train.batch_size=4", "rollout.n=3", "rollout.max_tokens=70", "rollout.memory=0.25", "task.train=64"),
    *("task.held_out=12", "eval.every=25", "train.checkpoint_every=10", "train.export=false"),
    *("rollout.deterministic=true", "cluster.health_timeout=10", "cluster.timeout=60", "cluster.max_restarts=1000"),
]
BATCH = 4
# Roles by what their processes call themselves.
ROLES = {
    "ray::RolloutActor": "rollout actor",
    "VLLM::EngineCore": "engine",
    "ray::RewardActor": "reward actor",
    "ray::DataActor": "data actor",
    "ray::LearnerActor": "learner rank",
}
OTHERS = {"wandb": "W&B", "gpu_stats": "W&B", "raylet": "Ray, raylet", "gcs_server": "Ray, GCS"}
# What a run calls the roles that are lost, in summary.json.
RECORDED = {"rollout actor": "rollout worker", "engine": "rollout worker", "learner rank": "learner"}
RECORDED |= {"reward actor": "reward worker", "data actor": "data worker"}
FAULTS = [
    (role, signum)
    for role in ROLES.values()
    for signum in (signal.SIGKILL, signal.SIGSTOP)
    if (role, signum) != ("reward actor", signal.SIGSTOP)
]
WARM_UP = 10  # steps of a process that count for no slope
PATIENCE = 300  # seconds without a step after which the run hangs
TIMES = re.compile(r"time|time/.*|train/tokens_per_second|faults")


class Struck(NamedTuple):
    """A fault: after which step, when (`time.time()`), whom and how."""

    step: int
    time: float
    role: str
    signum: signal.Signals


class Sample(NamedTuple):
    """Of a process, after so many steps: resident and private memory in MiB, and open files."""

    step: int
    rss: float
    private: float
    descriptors: float


@dataclass
class Watched:
    """What was seen of a run.

    Attributes:
        samples: by role, then by process id.
        left: processes after the end.
        shared: names in /dev/shm after the end.
    """

    status: int = 0
    seconds: float = 0.0
    struck: list[Struck] = field(default_factory=list)
    samples: dict[str, dict[int, list[Sample]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    left: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)


def role_of(process: psutil.Process, root: int) -> str:
    if process.pid == root:
        return "driver"
    name = title(process)
    return next((role for prefix, role in (ROLES | OTHERS).items() if name.startswith(prefix)), "Ray, others")


def last_step(folder: Path) -> int:
    """The last step in the run's metrics file; 0 before there is any."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2**16))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        with suppress(ValueError):  # the first of them, or one that is being written
            return int(json.loads(line)["step"])
    return 0


def watch(folder: Path, overrides: Sequence[str], faults: Iterator[tuple[int, str, signal.Signals, float]]) -> Watched:
    """Run it to its end, with faults: each after a step, with a role, a signal and a delay in seconds."""
    watched = Watched()
    begin = time.time()
    command = [sys.executable, "-m", "visurf_ray.train", "cluster.address=local", *overrides, f"output_dir={folder}"]
    environment = os.environ | {"WANDB_MODE": "offline"}
    with Path(f"{folder}.log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    family = Family(run.pid)
    due = next(faults, None)
    shown, passed, progress = 0, 0, time.monotonic()
    while run.poll() is None:
        step = last_step(folder)
        if step != shown:
            passed += max(0, step - shown)  # steps that are repeated count
            shown, progress = step, time.monotonic()
        sample(family, passed, watched)
        if due and step >= due[0]:
            time.sleep(due[3])
            if strike(family, due[1], due[2]):
                watched.struck.append(Struck(step, time.time(), due[1], due[2]))
                print(f"{time.time() - begin:5.0f} s, step {step}: {due[2].name} to the {due[1]}", flush=True)
                due = next(faults, None)
        if time.monotonic() - progress > PATIENCE:
            print(f"no step for {PATIENCE} s after step {step}: the run hangs, and is ended", flush=True)
            for process in family.living():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        with suppress(subprocess.TimeoutExpired):
            run.wait(2)
    watched.status, watched.seconds = run.returncode, time.time() - begin
    watched.left, watched.shared = family.left(seconds=10)
    return watched


def strike(family: Family, role: str, signum: signal.Signals) -> bool:
    """Send a signal to a process of this role; returns whether there is one."""
    for process in family.living():
        if role_of(process, family.root.pid) == role:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
                return True
    return False


def sample(family: Family, step: int, watched: Watched) -> None:
    for process in family.living():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory = process.memory_info()
            found = Sample(step, memory.rss / 2**20, (memory.rss - memory.shared) / 2**20, process.num_fds())
            watched.samples[role_of(process, family.root.pid)][process.pid].append(found)


def slope(processes: dict[int, list[Sample]], name: str) -> float | None:
    """By how much a number of a role's processes grows in 100 steps: least squares, each process from its own level."""
    over = under = 0.0
    for samples in processes.values():
        warm = [each for each in samples if each.step >= samples[0].step + WARM_UP]
        if not warm or warm[-1].step - warm[0].step < WARM_UP:
            continue
        steps = np.array([each.step for each in warm], float)
        values = np.array([getattr(each, name) for each in warm], float)
        over += float((steps - steps.mean()) @ (values - values.mean()))
        under += float((steps - steps.mean()) @ (steps - steps.mean()))
    return round(100 * over / under, 2) if under else None


def slopes(watched: Watched, name: str) -> dict[str, float]:
    found = {role: slope(processes, name) for role, processes in sorted(watched.samples.items())}
    return {role: value for role, value in found.items() if value is not None}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def complaints(folder: Path, steps: int) -> list[str]:
    """What tells the run from one without faults; nothing if it has survived."""
    if not (folder / "summary.json").is_file():
        return ["there is no summary.json"]
    trained = [row for row in rows(folder) if "train/loss" in row]
    found = []
    if [row["step"] for row in trained] != list(range(1, steps + 1)):
        found.append("not every step is logged once")
    if any(row["reward/skipped"] for row in trained):
        found.append("groups were dropped")
    state = folder / "checkpoints" / f"step_{steps:06d}" / "state.json"
    if (position := json.loads(state.read_text())["position"]) != BATCH * steps:
        found.append(f"{position} examples were drawn, not {BATCH * steps}")
    recorded = json.loads((folder / "summary.json").read_text())["faults"]
    return [*found, *(f"the {fault['role']} was not replaced" for fault in recorded if not fault["replaced"])]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What the run has logged, but for times and the number of faults."""
    return [{name: value for name, value in row.items() if not TIMES.fullmatch(name)} for row in rows(folder)]


def report_faults(folder: Path, struck: Sequence[Struck]) -> None:
    """Print what each fault cost, as the run has recorded it."""
    recorded = json.loads((folder / "summary.json").read_text())["faults"]
    lines = []
    for fault in struck:
        same = [each for each in recorded if each["role"].startswith(RECORDED[fault.role])]
        noticed = next((each for each in same if each["time"] > fault.time - 1), None)
        found = [noticed["phase"], round(noticed["time"] - fault.time, 1), noticed["seconds"]] if noticed else ["–"] * 3
        lines.append([fault.step, fault.role, fault.signum.name, *found])
    table(["after step", "hit", "signal", "noticed in", "after s", "replaced after s more"], lines)


def drawn(seed: int, steps: int, every: int) -> Iterator[tuple[int, str, signal.Signals, float]]:
    generator = random.Random(seed)
    for step in range(every, steps, every):
        role, signum = generator.choice(FAULTS)
        yield step, role, signum, generator.uniform(0, 3)


def main() -> None:
    parser = arguments(__doc__, devices=["cpu"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=20, help="steps between faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="with the same run without faults")
    parser.add_argument("--out", type=Path, help="a folder for the runs and the samples")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    steps, every = (8, 3) if options.quick else (options.steps, options.every)
    start(options)
    out = options.out or Path(tempfile.mkdtemp(prefix="soak-"))
    out.mkdir(parents=True, exist_ok=True)
    print(f"{steps} steps, a fault every {every}, seed {options.seed}; the runs are in {out}\n", flush=True)
    overrides = [*SETTINGS, f"train.steps={steps}", *options.overrides]
    results: dict[str, Any] = {}
    if options.compare:
        calm = watch(out / "calm", overrides, iter(()))
        results = {"calm_status": calm.status, "calm_rss_slope_mib": slopes(calm, "rss")}
        results |= {"calm_private_slope_mib": slopes(calm, "private"), "calm_seconds": round(calm.seconds)}
        (out / "calm.json").write_text(json.dumps(calm.samples))
    watched = watch(out / "struck", overrides, drawn(options.seed, steps, every))
    (out / "struck.json").write_text(json.dumps(watched.samples))
    folder = out / "struck"
    wrong = complaints(folder, steps) + ([f"exit status {watched.status}"] if watched.status else [])
    if (folder / "summary.json").is_file():
        report_faults(folder, watched.struck)
        seconds = [row["time/step"] for row in rows(folder) if "train/loss" in row]
        results |= {"median_step_seconds": round(statistics.median(seconds), 2)}
    else:
        print(Path(f"{folder}.log").read_text()[-5000:])
    for complaint in wrong:
        print(complaint)
    if options.compare:
        results |= {"equal": not wrong and numbers(out / "calm") == numbers(folder)}
    finish(
        {
            "faults": len(watched.struck),
            "survived": 0 if wrong else len(watched.struck),  # the run survives all of them, or not
            "steps": last_step(folder),
            "rss_slope_mib": slopes(watched, "rss"),
            "private_slope_mib": slopes(watched, "private"),
            "descriptor_slope": slopes(watched, "descriptors"),
            "leaks": {"processes": watched.left, "shared_memory": watched.shared},
            "seconds": round(watched.seconds),
            **results,
        }
    )
    sys.exit(bool(wrong or watched.left or watched.shared))


if __name__ == "__main__":
    main()
