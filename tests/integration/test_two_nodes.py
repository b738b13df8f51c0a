"""A run on two machines: Ray nodes in network namespaces, engines and learner ranks on both, weights over gloo."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration import kept
from tests.integration.namespaces import NoNamespacesError, ray_on, two_machines
from tests.integration.runs import SMALL, rows


@pytest.fixture(scope="module")
def run():
    """Runs a Python module on the first of two machines, with the arguments given; they are one Ray cluster."""
    kept.end()  # their memory is needed
    with ExitStack() as stack:
        try:
            machines = stack.enter_context(two_machines())
        except NoNamespacesError as error:
            pytest.skip(str(error))
        environment = stack.enter_context(ray_on(machines))

        def run(module: str, *arguments: str, timeout: float = 300) -> str:
            command = machines[0].command(sys.executable, "-m", module, *arguments)
            root = Path(__file__).parents[2]
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=timeout)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
            return done.stdout

        yield run


def test_ranks_and_engines_of_two_machines_follow_the_curve_of_one(run):
    """The same rollouts, replayed on one rank: the same losses. And sampler and learner agree after each update.

    With ZeRO-3, which splits the weights over the machines.
    """
    found = json.loads(run("tests.integration.replay", "auto", "learner.zero_stage=3").splitlines()[-1])
    assert sorted(found["engines"]) == sorted(found["ranks"]) == ["10.83.0.1", "10.83.0.2"]
    assert len(found["there"]) == 2
    for there, here in zip(found["there"], found["here"], strict=True):
        assert there["train/rollout_logprob_diff_max"] < 1e-4
        for name in ("train/loss", "train/grad_norm", "train/entropy/rollout", "train/logprob/label"):
            assert there[name] == pytest.approx(here[name], rel=1e-3, abs=1e-4), name


def test_a_run_with_adapters(run, tmp_path):
    """From the command line; the engine loads the adapters, which the rank of the other machine has written."""
    settings = ["learner.lora.rank=4", "learner.learning_rate=1e-3"]
    settings += ["rollout.logprobs_every=1", "train.steps=2", "eval.every=0", "monitor.wandb=disabled"]
    settings += [f"output_dir={tmp_path}/run"]
    output = run("visurf_ray.train", *SMALL, *settings)
    steps = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    assert len(steps) == 2, output
    assert max(row["train/rollout_logprob_diff_max"] for row in steps) < 1e-4
    assert (tmp_path / "run" / "export" / "adapter").is_dir()


@pytest.mark.slow
def test_the_default_job_learns_there(run, tmp_path):
    settings = ["rollout.workers=2", "learner.ranks=2", "monitor.wandb=disabled", f"output_dir={tmp_path}/run"]
    run("visurf_ray.train", *settings, timeout=3000)
    evaluations = [row for row in rows(tmp_path / "run") if "eval/n_acc" in row]
    assert evaluations[0]["eval/n_acc"] == 0
    assert evaluations[-1]["eval/n_acc"] > 0.8, evaluations
