"""Restarts are bounded, the first cause is kept, and what is lost is asked for again. Ray is not needed."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest

from visurf_ray.cluster import supervision
from visurf_ray.cluster.supervision import Supervisor, again_if_lost
from visurf_ray.errors import ClusterError, LostError, during


def failing(*answers):
    """What returns or raises the answers, one after the other."""
    left = list(answers)

    def start():
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return start


def test_a_lost_role_is_started_until_it_starts_and_the_first_cause_is_kept():
    supervisor = Supervisor(max_restarts=3, patience=1)
    with during("sample"):
        supervisor.record("engine", "died of this\nand its log")
    assert supervisor.restart("engine", failing(ClusterError("no memory"), "new")) == "new"
    (fault,) = supervisor.faults
    assert (fault.role, fault.cause, fault.phase, fault.replaced) == (
        "engine",
        "died of this",
        "sample",
        True,
    )


def test_a_role_is_given_up_after_so_many_restarts_within_the_window(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(supervision.time, "monotonic", lambda: now[0])
    supervisor = Supervisor(max_restarts=2, patience=1)

    def lose(role="engine"):
        supervisor.record(role, "died")
        return supervisor.restart(role, lambda: "new")

    assert [lose(), lose(), lose("another")] == ["new"] * 3
    with pytest.raises(ClusterError, match=r"the engine was lost .* cluster.max_restarts=2 .* The first cause: died"):
        lose()
    now[0] += supervision.WINDOW
    assert lose() == "new"
    assert [fault.replaced for fault in supervisor.faults] == [True, True, True, False, True]


def test_an_error_of_ours_is_no_fault_of_an_actor():
    supervisor = Supervisor(max_restarts=2, patience=1)
    supervisor.record("engine", "died")
    with pytest.raises(ValueError, match="ours"):
        supervisor.restart("engine", failing(ValueError("ours")))


def test_an_actor_that_was_not_lost_is_restarted_without_being_counted():
    """So are those that have to start anew beside a lost one."""
    supervisor = Supervisor(max_restarts=0, patience=1)
    assert supervisor.restart("engine", lambda: "new") == "new" and supervisor.faults == []
    with pytest.raises(ClusterError, match="did not start again: no memory"):
        supervisor.restart("engine", failing(ClusterError("no memory")))


def test_what_is_lost_is_asked_for_again_a_few_times():
    assert again_if_lost(failing(LostError("gone"), LostError("gone"), 7)) == 7
    with pytest.raises(ClusterError, match="gone, at each of 3 attempts"):
        again_if_lost(failing(*[LostError("gone")] * 3))


STOPPING = """
import os, signal, sys, time
from visurf_ray.stopping import Stopped, finishing_first, stop_on_signals, stopped, time_left
signal.signal(signal.SIGINT, signal.default_int_handler)
stopping = stop_on_signals()
stopping.__enter__()
done = []
try:
    {0}
except Stopped as stop:
    print(*done, stop.signum)
"""

CASES = {
    "at once": ("os.kill(os.getpid(), signal.SIGTERM); done.append('not')", "15"),
    "held back": (
        "with finishing_first(9): os.kill(os.getpid(), signal.SIGTERM); done.append('finished')",
        "finished 15",
    ),
    "for so long": (
        "with finishing_first(0.2): os.kill(os.getpid(), signal.SIGINT); time.sleep(9); done.append('not')",
        "2",
    ),
    "but not twice": (
        "with finishing_first(9):\n        [os.kill(os.getpid(), 15) for _ in range(2)]\n        done.append('not')",
        "15",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signal_ends_the_program(case):
    code, expected = CASES[case]
    done = subprocess.run([sys.executable, "-c", STOPPING.format(code)], capture_output=True, text=True, timeout=8)
    assert done.stdout.strip() == expected, done.stderr


def test_what_a_signal_leaves_time_for_has_a_limit():
    code = "try: os.kill(os.getpid(), 15)\n    except Stopped: pass\n    with time_left(0.3): time.sleep(9)"
    done = subprocess.run([sys.executable, "-c", STOPPING.format(code)], capture_output=True, text=True, timeout=8)
    assert done.stdout.strip() == str(int(signal.SIGTERM)), done.stderr


def test_a_signal_is_forgotten_when_the_program_has_ended():
    code = (
        "try: os.kill(os.getpid(), 15)\n    except Stopped: stopping.__exit__(None, None, None)\n    print(stopped())"
    )
    done = subprocess.run([sys.executable, "-c", STOPPING.format(code)], capture_output=True, text=True, timeout=8)
    assert done.stdout.strip() == "False", done.stderr


def test_faults_before_a_resume_come_first():
    before, supervisor = Supervisor(2, 1), Supervisor(2, 1)
    before.record("engine", "died")
    before.restart("engine", lambda: "new")
    supervisor.record("data worker 0", "died while the run was resumed")
    supervisor.recall([asdict(fault) for fault in before.faults])
    assert [fault.role for fault in supervisor.faults] == ["engine", "data worker 0"]
    assert supervisor.faults[0] == before.faults[0]


def test_what_was_lost_when_a_checkpoint_was_written_is_replaced_by_the_run_that_resumes_from_it():
    before, supervisor = Supervisor(1, 1), Supervisor(1, 1)
    before.record("engine", "died twice")
    with pytest.raises(ClusterError):
        before.restart("engine", failing(ClusterError("no memory")))  # it is given up
    before.record("data worker 0", "died")
    saved = json.loads(json.dumps([asdict(fault) for fault in before.faults]))
    assert [(fault["replaced"], fault["seconds"]) for fault in saved] == [(False, 0.0), (False, None)]
    supervisor.recall(saved)
    assert [(fault.replaced, fault.seconds) for fault in supervisor.faults] == [(False, 0.0), (True, None)]
