"""Whole runs of the methods whose loop differs: SFT without engines, two stages, refilled batches."""

import json
import os
import shutil

import psutil
import pytest
import ray

from tests.integration.runs import SMALL, is_refused, rows, run_here
from visurf_ray.learner.config import REFERENCE_FILE
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.rollout.pool import RolloutPool

pytestmark = pytest.mark.usefixtures("ray_cluster")


def processes_of(pool: RolloutPool) -> set[psutil.Process]:
    """The processes of the pool's engines: their actors and what these have started."""
    pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in pool.actors])
    actors = [psutil.Process(pid) for pid in pids]
    return {*actors, *(child for actor in actors for child in actor.children(recursive=True))}


@pytest.fixture
def engines_at_updates(monkeypatch) -> list[int]:
    """Receives at each update how many processes live of all engines that have sampled in the run until then.

    A pool that has ended its engines has 10 s for it: Ray calls an actor dead a moment before its process has gone.
    """
    counts: list[int] = []
    seen: set[psutil.Process] = set()
    pools: set[RolloutPool] = set()
    generate, update = RolloutPool._generate, LearnerGroup.update

    def watched_generate(pool, *arguments):
        for finished in generate(pool, *arguments):
            found = processes_of(pool)
            assert len(found) >= 2, "an actor and its engine"
            seen.update(found)
            pools.add(pool)
            yield finished

    def watched_update(learner, *arguments, **options):
        _, left = psutil.wait_procs(seen, timeout=0 if any(pool.actors for pool in pools) else 10)
        counts.append(sum(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in left))
        return update(learner, *arguments, **options)

    monkeypatch.setattr(RolloutPool, "_generate", watched_generate)
    monkeypatch.setattr(LearnerGroup, "update", watched_update)
    yield counts
    assert seen


@pytest.fixture
def questions(tmp_path) -> str:
    """A file of questions with a short answer."""
    from PIL import Image

    Image.new("RGB", (56, 56)).save(tmp_path / "image.png")
    path = tmp_path / "questions.jsonl"
    row = {"problem": "How many bars?", "solution": "7", "image": "image.png"}
    path.write_text("".join(json.dumps(row | {"id": str(number)}) + "\n" for number in range(12)))
    return str(path)


def test_sft_trains_without_engines_and_without_a_reward(engines_at_updates, questions, tmp_path):
    """On a task that has none. Its two evaluations each start an engine and end it."""
    settings = ["method=sft", "task=vqa", f"task.train={questions}", f"task.held_out={questions}"]
    settings += ["train.steps=2", "eval.every=0", "train.checkpoint_every=0", f"output_dir={tmp_path}/run"]
    small = [setting for setting in SMALL if not setting.startswith("task.")]
    done = run_here("train", *small, *settings, own=["engines"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert engines_at_updates == [0, 0]
    steps = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    assert len(steps) == 2 and steps[1]["train/loss"] < steps[0]["train/loss"]
    for row in steps:
        assert not [name for name in row if name.startswith(("reward/label", "reward/rollout", "advantage/"))]
        assert not {"time/sync", "time/wait"} & row.keys(), "no weights are sent"
    assert [row["step"] for row in rows(tmp_path / "run") if "eval/relaxed_accuracy" in row] == [0, 2]


def test_two_stages_share_the_data_and_have_engines_in_the_second_alone(engines_at_updates, tmp_path):
    """Also when the run is resumed after the first, with the reference of the second; without it that is refused."""
    folder = tmp_path / "run"
    settings = ["method=sft_then_rlvr", "method.sft_steps=1", "method.sft_batch_size=6", "method.kl_coef=0.01"]
    settings += ["method.sft_learning_rate=1e-3", "learner.schedule=linear", "learner.learning_rate=1e-4"]
    settings += ["train.steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=3", "eval.every=0"]
    settings += ["rollout.oversample=1", f"output_dir={folder}"]
    done = run_here("train", *SMALL, *settings, own=["engines"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert engines_at_updates[0] == 0 and min(engines_at_updates[1:]) >= 2
    steps = [row for row in rows(folder) if "train/loss" in row]
    for row, absent in zip(steps, ("rollout", "label", "label"), strict=True):
        assert not [name for name in row if f"/{absent}" in name and not name.startswith("train/rollout_")]
    assert [row["train/learning_rate"] for row in steps] == pytest.approx([1e-3, 1e-4, 0.5e-4])
    assert steps[1]["train/kl/rollout"] == pytest.approx(0.0, abs=1e-6) and steps[2]["train/kl/rollout"] > 1e-6
    assert "train/kl/rollout" not in steps[0] and steps[1]["train/rollout_logprob_diff_max"] < 1e-4
    states = [json.loads((folder / "checkpoints" / f"step_00000{n}" / "state.json").read_text()) for n in (1, 2, 3)]
    assert [state["position"] for state in states] == [6, 11, 16]
    shutil.rmtree(folder / "checkpoints" / "step_000003")
    reference = folder / "checkpoints" / "step_000002" / REFERENCE_FILE
    assert not (folder / "checkpoints" / "step_000001" / REFERENCE_FILE).exists()

    done = run_here("train", *SMALL, *settings, "train.resume=auto")
    assert done.returncode == 0, done.stderr[-3000:]
    again = [row for row in rows(folder) if "train/loss" in row]
    assert len(again) == 3 and again[2]["train/learning_rate"] == pytest.approx(0.5e-4)
    assert 1e-6 < again[2]["train/kl/rollout"] < 1.0
    reference.unlink()
    files = reference.parent / "files.json"  # becomes that of a run without the KL term
    sizes = json.loads(files.read_text())
    del sizes[REFERENCE_FILE]
    files.write_text(json.dumps(sizes))
    done = run_here("train", *SMALL, *settings, f"train.resume={reference.parent}")
    assert is_refused(done, [REFERENCE_FILE, "method.kl_coef=0"]), done.stderr


@pytest.mark.parametrize("pipeline", ["sync", pytest.param("one_step_off", marks=pytest.mark.slow)])
def test_dapo_refills_its_batches(tmp_path, pipeline):
    settings = ["method=dapo", "method.max_refills=2", f"pipeline={pipeline}", "train.steps=2", "eval.every=0"]
    settings += ["train.checkpoint_every=1", "train.export=false", f"output_dir={tmp_path}/run"]
    done = run_here("train", *SMALL, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    for row in (row for row in rows(tmp_path / "run") if "train/loss" in row):
        assert 0 <= row["train/refills"] <= 2 and 0.0 <= row["train/kept_share"] <= 1.0
        full = row["train/groups"] == 4
        assert full or (row["train/refills"] == 2 and "WARNING: step" in done.stdout)
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_000002" / "state.json").read_text())
    assert state["position"] >= 8
