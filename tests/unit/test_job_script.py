"""launch/job.sh: which runs are submitted again, how often, and how. Stand-ins take Ray's place."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SCRIPT = """
set -euo pipefail
source {root}/launch/job.sh
root={root} address=http://127.0.0.1:1 job=first settle_seconds=0
ray() {{ printf '%s ' "$@" >>submitted; echo >>submitted; }}
api() {{ sed -n "$(wc -l <submitted)p" answers; }}
run_job python -m visurf_ray.train {arguments} 2>said
echo "$job_status $job_code"
"""
_KILLED = "FAILED -9 JOB_ENTRYPOINT_COMMAND_ERROR"


def run(folder: Path, answers: list[str], *arguments: str) -> tuple[str, list[list[str]]]:
    """Run a job of which Ray says this after each submission.

    Returns:
        Status and exit status at the end, and of each submission the job's name and overrides.
    """
    (folder / "answers").write_text("\n".join(answers) + "\n")
    script = _SCRIPT.format(root=_ROOT, arguments=shlex.join(arguments or ["seed=1"]))
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in (folder / "submitted").read_text().splitlines()]
    jobs = [[words[words.index("--submission-id") + 1], *words[words.index("--") + 4 :]] for words in commands]
    return done.stdout.strip(), jobs


@pytest.mark.parametrize(
    "killed", [_KILLED, "FAILED 137 None", "FAILED -11 None", "FAILED None JOB_SUPERVISOR_ACTOR_DIED"]
)
def test_a_run_that_is_killed_is_submitted_again_and_goes_on_from_its_checkpoint(tmp_path, killed):
    end, jobs = run(tmp_path, [killed, "SUCCEEDED 0 None"])
    assert end == "SUCCEEDED 0"
    assert jobs == [["first", "seed=1"], ["first-again-1", "seed=1", "train.resume=auto"]]
    told = "submitting the run again as first-again-1, from its newest checkpoint, if it has one (1 of 2 times)"
    assert told in (tmp_path / "said").read_text()


def test_a_run_that_is_killed_again_and_again_is_given_up(tmp_path):
    end, jobs = run(tmp_path, [_KILLED] * 9)
    assert end == "FAILED 137"
    assert [name for name, *_ in jobs] == ["first", "first-again-1", "first-again-2"]
    assert jobs[2][1:] == ["seed=1", "train.resume=auto"]


@pytest.mark.parametrize(
    "end",
    [
        "SUCCEEDED 0 None",
        "FAILED 1 JOB_ENTRYPOINT_COMMAND_ERROR",
        "FAILED 2 JOB_ENTRYPOINT_COMMAND_ERROR",
        "FAILED 130 JOB_ENTRYPOINT_COMMAND_ERROR",
        "FAILED 143 JOB_ENTRYPOINT_COMMAND_ERROR",
        "FAILED 255 JOB_ENTRYPOINT_COMMAND_ERROR",  # sys.exit(-1)
        "FAILED -15 JOB_ENTRYPOINT_COMMAND_ERROR",
        "FAILED None RUNTIME_ENV_SETUP_FAILURE",
        "STOPPED -9 None",
    ],
)
def test_a_run_that_fails_or_is_stopped_is_not(tmp_path, end):
    assert len(run(tmp_path, [end, "SUCCEEDED 0 None"])[1]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["train.resume=/a/step_000002", "seed=1"],
        ["++train.resume='/a/step_000002'"],
        ["train.resume=auto", "train.resume=/a/step_000002"],
        ["-m", "seed=1,2"],
        ["seed=1,2", "--multirun"],
        ["seed=1,2", "--multi"],
        ["seed=1,2", "hydra.mode=MULTIRUN"],
    ],
)
def test_a_run_that_begins_from_a_given_checkpoint_and_a_sweep_are_not(tmp_path, arguments):
    assert len(run(tmp_path, [_KILLED, "SUCCEEDED 0 None"], *arguments)[1]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["train.resume=auto", "train.resume_override=true"],
        ["train.resume='auto'"],
        ["train.resume=/a/step_000002", "++train.resume=null"],  # Hydra takes the last
    ],
)
def test_a_run_that_begins_from_its_own_checkpoint_or_from_none_is(tmp_path, arguments):
    assert len(run(tmp_path, [_KILLED, "SUCCEEDED 0 None"], *arguments)[1]) == 2


@pytest.mark.parametrize(("given", "submitted"), [("0", 1), ("1", 2), ("08", 9), ("", 3)])
def test_the_user_says_how_often_a_run_is_submitted_again(tmp_path, monkeypatch, given, submitted):
    monkeypatch.setenv("RESUBMISSIONS", given)
    assert len(run(tmp_path, [_KILLED] * 9)[1]) == submitted


@pytest.mark.parametrize("given", ["-1", "two", "1.5", "1 2", "a[$(touch ran)]"])
def test_another_number_is_refused_before_anything_is_submitted(tmp_path, given):
    script = _SCRIPT.format(root=_ROOT, arguments="")
    environment = os.environ | {"RESUBMISSIONS": given}
    command = ["bash", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert f"RESUBMISSIONS must be a whole number from 0 on, not '{given}'" in done.stderr
    assert not list(tmp_path.iterdir())
