"""launch/slurm.sbatch as Slurm runs it, but for Slurm: stand-ins start its tasks in two network namespaces."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.namespaces import Machine, NoNamespacesError, two_machines
from tests.integration.runs import SMALL

_ROOT = Path(__file__).parents[2]
_CPUS = (2, 2)  # of the nodes

_SCONTROL = """
case $1 in
    show) printf '%s\\n' {addresses} ;;
    requeue) echo "$2" >>{folder}/requeued ;;
esac
"""
_SRUN = """
while [[ $1 == --* ]]; do shift; done
names=({names}) cpus=({cpus})
: >{folder}/tasks
for node in "${{!names[@]}}"; do
    SLURM_NODEID=$node SLURM_CPUS_ON_NODE=${{cpus[node]}} ip netns exec "${{names[node]}}" "$@" &
    echo $! >>{folder}/tasks
done
code=0
for task in $(<{folder}/tasks); do wait "$task" || code=$?; done
exit $code
"""
_SCANCEL = """
[[ $* == "--signal=TERM $SLURM_JOB_ID.0" ]] && kill -TERM $(<{folder}/tasks)
"""


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    try:
        with two_machines() as machines:
            yield machines
    except NoNamespacesError as error:
        pytest.skip(str(error))


@pytest.fixture
def slurm(machines, tmp_path) -> Iterator[dict[str, str]]:
    """The environment of a batch script."""
    values = {
        "addresses": " ".join(machine.address for machine in machines),
        "names": " ".join(machine.name for machine in machines),
        "cpus": " ".join(map(str, _CPUS)),
        "folder": tmp_path,
    }
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"scontrol": _SCONTROL, "srun": _SRUN, "scancel": _SCANCEL}.items():
        (commands / name).write_text("#!/usr/bin/env bash" + text.format(**values))
        (commands / name).chmod(0o755)
    job = str(os.getpid())
    yield os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_SUBMIT_DIR": str(_ROOT),
        "WANDB_MODE": "offline",
    }
    shutil.rmtree(_ROOT / "outputs" / "slurm" / job, ignore_errors=True)


def start(machine: Machine, slurm: dict[str, str], log: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = machine.command("bash", str(_ROOT / "launch/slurm.sbatch"), *SMALL, *overrides)
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd="/", env=slurm, stdout=output, stderr=output, start_new_session=True)


@pytest.mark.slow  # two minutes
def test_a_job_is_requeued_before_its_time_is_over_and_goes_on_from_its_checkpoint(slurm, machines, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    overrides = ["train.steps=40", "train.checkpoint_every=1", "eval.every=0", f"output_dir={run}"]
    job = start(machines[0], slurm, log, *overrides)
    deadline = time.monotonic() + 240
    while not list(run.glob("checkpoints/step_*/state.json")):
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.5)
    os.kill(job.pid, signal.SIGUSR1)  # as --signal=B:USR1@300 sends it
    assert job.wait(timeout=180) == 0, log.read_text()[-5000:]
    assert (tmp_path / "requeued").read_text().split() == [slurm["SLURM_JOB_ID"]]
    assert not (run / "summary.json").exists()
    logs = _ROOT / "outputs" / "slurm" / slurm["SLURM_JOB_ID"]
    for node in (0, 1):
        assert len(list(logs.glob(f"node-{node}-*/raylet.out"))) == 1
    assert list(logs.glob("node-0-*/worker-*.err"))
    assert not (logs / "auth_token").exists()
    assert not list(Path("/tmp").glob(f"visurf-ray-{slurm['SLURM_JOB_ID']}-*"))

    overrides[0] = "train.steps=" + str(max(int(path.name[-6:]) for path in run.glob("checkpoints/step_*")) + 1)
    job = start(machines[0], slurm | {"SLURM_RESTART_COUNT": "1"}, log, *overrides)
    assert job.wait(timeout=240) == 0, log.read_text()[-5000:]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and (run / "summary.json").exists()
    assert len(list(logs.glob("node-1-*-1/raylet.out"))) == 1


def test_a_job_fails_as_its_run_does(slurm, machines, tmp_path):
    log = tmp_path / "log"
    job = start(machines[0], slurm, log, "task.name=nothing", f"output_dir={tmp_path}/run")
    assert job.wait(timeout=180) == 2, log.read_text()[-5000:]
    assert "error: unknown task 'nothing'" in log.read_text() and not (tmp_path / "requeued").exists()
