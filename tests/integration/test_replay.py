"""A step is repeated from its dump: the numbers are those that the run has logged, and what is not finite is named."""

import math
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.integration.runs import ALL, SMALL, is_refused, rows, run_here
from visurf_ray.method import Method

pytestmark = pytest.mark.usefixtures("ray_cluster")

QUICK = [*SMALL, "task.held_out=4", "eval.every=0", "train.export=false", "learner.learning_rate=1e-3"]
NUMBER = re.compile(r"^ *(train/\S+) (\S+)(?:  \(logged: (.*)\))?$", re.MULTILINE)


def train(folder: Path, *overrides: str, own: Collection[str] = ()) -> None:
    done = run_here("train", *QUICK, *overrides, f"output_dir={folder}", own=own)
    assert done.returncode == 0, done.stderr


def replay(dump: Path, *overrides: str, own: Collection[str] = ()) -> str:
    done = run_here("replay", f"dump={dump}", *overrides, own=own)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(printed: str, folder: Path, step: int) -> dict[str, tuple[float, float]]:
    """The metrics of a repeated step, and what the run has logged of it."""
    (row,) = [row for row in rows(folder) if row["step"] == step and "train/loss" in row]
    found = {name: (float(value), float(logged)) for name, value, logged in NUMBER.findall(printed)}
    assert {"train/loss", "train/grad_norm", "train/logprob/rollout", "train/entropy/label"} <= found.keys()
    assert {name: logged for name, (_, logged) in found.items()} == {name: row[name] for name in found}
    return found


def test_a_sound_step_is_repeated_and_what_cannot_be_is_refused(tmp_path):
    train(tmp_path, "train.steps=2", "train.dump_steps=[2]", "train.checkpoint_every=9")
    dump = tmp_path / "dumps" / "step_000002"
    printed = replay(dump)
    print(printed)
    assert f"step 2, from {tmp_path}/checkpoints/step_000001\n" in printed
    for name, (value, logged) in numbers(printed, tmp_path, 2).items():
        assert value == pytest.approx(logged, rel=1e-5, abs=1e-6), name
    alone = re.findall(r"(\S+) loss \S+ grad_norm (\S+)$", printed, re.MULTILINE)
    assert len(alone) == 4 and all(math.isfinite(float(norm)) for _, norm in alone)
    assert "all groups are finite" in printed
    shutil.rmtree(tmp_path / "checkpoints" / "step_000001")
    assert is_refused(run_here("replay", f"dump={dump}"), ["the checkpoint before the step", "is not there"])
    (dump / "groups.json").unlink()
    assert is_refused(run_here("replay", f"dump={dump}"), ["is damaged: its file groups.json is missing"])
    assert is_refused(run_here("replay"), ["name the step to repeat"])


def test_a_step_that_is_not_finite_ends_the_run_and_its_replay_names_the_group(tmp_path, monkeypatch):
    spoilt = []

    def spoil(method, groups, step=0):
        metrics = assign(method, groups, step)
        if step == 1:
            groups[2].responses[1].advantage = math.nan
            spoilt.append(groups[2].example.id)
        return metrics

    assign = Method.assign_advantages
    monkeypatch.setattr(Method, "assign_advantages", spoil)
    settings = ["train.steps=3", "train.checkpoint_every=9", f"output_dir={tmp_path}"]
    done = run_here("train", *QUICK, *settings)
    dump = tmp_path / "dumps" / "step_000002"
    told = ["step 2: the loss or its gradient is not finite", f"python -m visurf_ray.replay dump={dump}"]
    told += ["the checkpoint of step 1 is written", "train.resume=auto train.on_nan=skip"]
    assert done.returncode == 2 and all(part in done.stderr for part in told), done.stderr
    printed = replay(dump)
    assert f"step 2, from {tmp_path}/checkpoints/step_000001\n" in printed
    assert re.search(r"train/loss nan$", printed, re.MULTILINE)
    assert re.search(r"train/grad_norm inf$", printed, re.MULTILINE)
    (named,) = [line for line in printed.splitlines() if line.startswith("not finite: ")]
    assert named.startswith(f"not finite: example {spoilt[0]!r}: advantage of rollout 2: nan, loss: nan, grad_norm: ")
    train(tmp_path, *settings, "train.resume=auto", "train.on_nan=skip")
    steps = [(row["step"], row.get("train/skipped_steps")) for row in rows(tmp_path) if "time/learn" in row]
    assert steps == [(1, None), (2, 1.0), (3, None)]


@pytest.mark.slow
@pytest.mark.parametrize("case", [[], ["learner.ranks=2", "learner.zero_stage=3", "learner.lora.rank=4"]])
def test_a_deterministic_step_is_repeated_bit_for_bit(tmp_path, case):
    train(tmp_path, "train.steps=2", "train.dump_steps=[1,2]", "rollout.deterministic=true", *case, own=ALL)
    for step in (1, 2):
        printed = replay(tmp_path / "dumps" / f"step_{step:06d}", own=ALL)
        for name, (value, logged) in numbers(printed, tmp_path, step).items():
            assert value == logged, name
