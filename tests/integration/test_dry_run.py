"""A dry run: what it tells, that it leaves nothing, and that it refuses what a run refuses."""

import re

import pytest

from tests.integration.runs import is_refused, run_here
from tests.integration.test_train import grounding


@pytest.fixture
def dry_run(tmp_path, monkeypatch):
    """A dry run in an empty working folder, with the output folder below it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield lambda *arguments: run_here("train", "train.dry_run=true", *arguments)
    assert list(folder.iterdir()) == []


def test_a_dry_run_tells_what_would_be_run(dry_run):
    settings = ["task.train=40", "task.held_out=10", "train.steps=5", "learner.ranks=2", "learner.cpus=0.25"]
    done = dry_run(*settings)
    assert done.returncode == 0, done.stderr
    for part in (
        "40 training rows, 10 held-out rows",
        "5 of 16 prompts: 2.00 epochs",
        "1,929,440 parameters",
        "1 rollout worker(s), 2 learner rank(s)",
        "optimizer states",
        "KV cache",
        "all checks passed; nothing was trained, or written to output_dir",
    ):
        assert part in done.stdout


_REFUSED = {
    "no data file": (
        lambda d: grounding(d / "none.jsonl"),
        ["task.held_out: there is no data file", "none.jsonl"],
    ),
    "no data set": (
        lambda d: ["task=non_object", "task.train=owner/none", "task.held_out=owner/none"],
        ["task.held_out: owner/none cannot be read"],
    ),
    "data not given": (lambda d: ["task=non_object"], ["task.held_out: it is not set"]),
    "long prompt": (lambda d: ["task.train=8", "rollout.max_model_len=40"], ["scene train-0", "rollout.max_model_len"]),
    "row without room for a rollout": (
        lambda d: ["learner.max_tokens_per_micro_batch=150"],
        ["learner.max_tokens_per_micro_batch=150", "a rollout of rollout.max_tokens=128", "set it to at least 2"],
    ),
    "row without room for a label": (
        lambda d: ["learner.max_tokens_per_micro_batch=95", "rollout.max_tokens=8"],
        ["learner.max_tokens_per_micro_batch=95", "the longest prompt with its label", "set it to at least 1"],
    ),
    "too many workers": (lambda d: ["rollout.workers=4000"], ["rollout.workers=4000", "CPU", "Lower"]),
    "GPUs": (lambda d: ["rollout.gpus=1", "learner.gpus=1"], ["rollout.gpus=1"]),
    "memory": (lambda d: ["rollout.memory=1e6"], ["does not fit into memory: memory of", "Lower rollout.memory"]),
    "imagined GPUs without room for a worker": (
        lambda d: ["+experiment=four_nodes_72b", "model=miniature", "cluster.gpu_memory=80", "cluster.gpus_per_node=4"],
        ["rollout.workers=4) with 8 GPU of ranks on one node", "node 1 (imagined): 4 GPU (4 free)"],
    ),
    "imagined GPUs that are too small": (
        lambda d: ["+experiment=one_gpu", "cluster.gpu_memory=1"],
        ["a GPU that a rank and a worker share needs", "and has 1.0 GiB"],
    ),
    "model": (lambda d: ["model.path=owner/none"], ["model.path=owner/none", "hf download owner/none"]),
}


def test_a_dry_run_without_gpus_draws_a_run_on_imagined_ones(dry_run):
    done = dry_run("+experiment=two_nodes_16_gpus", "cluster.gpu_memory=80", "task.train=16", "task.held_out=4")
    assert done.returncode == 0, done.stderr
    drawn = re.findall(r"(GPU \d) +(rank \d+) +1\.0 +(worker \d+) +40\.0", done.stdout)
    assert drawn == [(f"GPU {number % 8}", f"rank {number}", f"worker {number}") for number in range(16)]
    assert re.search(r"node 2 \(imagined\) +GPU 0 +rank 8 ", done.stdout)


@pytest.mark.parametrize("case", _REFUSED)
def test_a_dry_run_refuses_in_one_message_what_a_run_refuses(tmp_path, dry_run, case):
    make, expected = _REFUSED[case]
    done = dry_run(*make(tmp_path))
    assert is_refused(done, expected), done.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_a_dry_run_asks_the_cluster_and_starts_no_actor(tmp_path):
    """On the tests' cluster of 8 CPUs: four are asked for; then five times two, too many."""
    import ray

    settings = [f"cluster.address={ray.get_runtime_context().gcs_address}", "train.dry_run=true"]
    settings += ["task.train=16", "task.held_out=4", "rollout.cpus=2", f"output_dir={tmp_path}/output"]
    before = len(ray._private.state.actors())
    done = run_here("train", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    gpus = ray.cluster_resources().get("GPU", 0)
    assert f"1 node(s), {f'{gpus:g} GPU, ' if gpus else ''}8 CPU" in done.stdout
    done = run_here("train", *settings, "rollout.workers=5")
    assert is_refused(done, ["rollout.workers=5", "8 CPU (8 free)"]), done.stderr
    assert len(ray._private.state.actors()) == before and list(tmp_path.iterdir()) == []
