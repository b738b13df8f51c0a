"""On CUDA devices: attention, the learner in bfloat16, and a whole run whose weights travel by NCCL."""

import json

import pytest
import ray
import torch

from tests.integration.runs import run
from tests.integration.test_learner import batches, rank_config  # noqa: F401  (the first is a fixture)
from tests.unit.test_cascade import ROWS, SCALE, attend, make_row, outputs_and_gradients, plain, plan_of
from visurf_ray.learner import attention
from visurf_ray.learner.actor import LearnerActor
from visurf_ray.learner.cascade import cascade
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.logprob import logprob_and_entropy
from visurf_ray.learner.sequences import Sequences
from visurf_ray.learner.vision import vision_attention
from visurf_ray.method import LossConfig

CUDA = torch.device("cuda")


def needs(devices: int):
    found = torch.cuda.device_count()
    return pytest.mark.skipif(found < devices, reason=f"needs {devices} CUDA device(s), there are {found}")


@pytest.mark.gpu
@needs(1)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_cascade_attention_by_cudas_kernels_is_plain_softmax(row, kv_heads, dtype, tolerance):
    *tensors, grad = make_row(row, kv_heads=kv_heads, size=64)
    exact = outputs_and_gradients(lambda *qkv: plain(*qkv, row), tensors, grad)
    plan, on_gpu = plan_of(row).to(CUDA), [tensor.to(CUDA, dtype) for tensor in (*tensors, grad)]
    found = outputs_and_gradients(lambda *qkv: cascade(*qkv, plan, SCALE), on_gpu[:3], on_gpu[3])
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.cpu().double() - theirs).norm() < tolerance * theirs.norm()


@pytest.mark.gpu
@needs(1)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_float32_on_a_gpu_takes_the_dense_mask(row, monkeypatch):
    monkeypatch.setattr(attention, "cascade", None)
    *tensors, _ = make_row(row)
    found = attend(row, [tensor.to(CUDA, torch.float32) for tensor in tensors])
    torch.testing.assert_close(found.cpu().double(), plain(*tensors, row), atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@needs(1)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
def test_vision_attention_on_a_gpu_never_waits_for_it(dtype, tolerance):
    lengths = [64] * 5 + [32, 16, 300]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 4, sum(lengths), 80, generator=generator, dtype=torch.float64) for _ in range(4)]
    sequences = Sequences.of(lengths)

    def attention_of(sequences):
        return lambda *qkv: vision_attention(None, *qkv, None, scaling=0.1, cu_seq_lens_q=sequences)[0].transpose(1, 2)

    exact = outputs_and_gradients(attention_of(sequences), tensors[:3], tensors[3])
    sequences, on_gpu = sequences.to(CUDA), [tensor.to(CUDA, dtype) for tensor in tensors]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = outputs_and_gradients(attention_of(sequences), on_gpu[:3], on_gpu[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.cpu().double() - theirs).norm() < tolerance * theirs.norm()


@pytest.mark.gpu
@needs(1)
def test_a_float32_head_on_a_gpu_does_not_round_logits():
    """Products of bfloat16 numbers, accumulated and kept in float32, against float64; and the gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(n, 128, generator=generator).mul_(0.3).bfloat16().to(CUDA).requires_grad_() for n in (300, 2000)
    )
    target = torch.randint(0, 2000, (300,), generator=generator).to(CUDA)
    found, _ = logprob_and_entropy(hidden, weight, target, chunk=512)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1).gather(1, target[:, None])[:, 0]
    assert (found - exact).abs().max() < 1e-4
    for ours, theirs in zip(*(torch.autograd.grad(v.sum(), (hidden, weight)) for v in (found, exact)), strict=True):
        assert (ours.double() - theirs.double()).norm() < 1e-2 * theirs.double().norm()


@pytest.mark.gpu
@needs(1)
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("ray_cluster")
def test_the_learner_computes_on_a_gpu_what_it_computes_on_a_cpu(
    config,
    processor,
    batches,  # noqa: F811
    stage,
    dtype,
):
    metrics = []
    for gpus, chosen, environment in (
        (0, "float32", {"DS_ACCELERATOR": "cpu"}),
        (1, dtype, {"DS_ACCELERATOR": "cuda"}),
    ):
        actor = LearnerActor.options(num_cpus=1, num_gpus=gpus, runtime_env={"env_vars": environment}).remote()
        settings = rank_config(config, processor, zero_stage=stage, dtype=chosen)
        learner = LearnerGroup([actor], settings, seed=0, minibatches=1, cores=[[]])
        metrics.append(learner.update(batches[0], LossConfig()))
        ray.kill(actor)
    on_cpu, on_gpu = metrics
    tolerance = 1e-3 if dtype == "float32" else 0.05
    for name in ("train/grad_norm", "train/entropy/rollout", "train/logprob/rollout", "train/logprob/label"):
        assert on_gpu[name] == pytest.approx(on_cpu[name], rel=tolerance), name


_SETTINGS = (
    "train.steps=3",
    "train.batch_size=8",
    "rollout.n=4",
    "task.train=32",
    "task.held_out=12",
    "rollout.gpus=1",
    "rollout.dtype=bfloat16",
    "rollout.memory=0.3",
    "learner.gpus=1",
    "learner.dtype=bfloat16",
    "learner.learning_rate=1e-4",
)


def check_differences(folder) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    differences = [row["train/rollout_logprob_diff"] for row in rows if "train/loss" in row]
    assert len(differences) == 3 and max(differences) < 0.05


@pytest.mark.gpu
@needs(2)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=needs(3))])
def test_a_run_on_gpus_keeps_sampler_and_learner_together(tmp_path, workers):
    done = run("train", *_SETTINGS, f"rollout.workers={workers}", f"output_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-3000:]
    check_differences(tmp_path / "run")


@pytest.mark.gpu
@needs(1)
@pytest.mark.parametrize(
    "settings",
    [
        ["rollout.sleep_level=1"],
        ["rollout.sleep_level=2"],
        ["learner.lora.rank=16", "learner.lora.targets=[q_proj,v_proj,visual.qkv]"],
        ["learner.max_tokens_per_micro_batch=400", "learner.epochs=2"],
    ],
    ids=["level 1", "level 2", "adapters", "parts and epochs"],
)
def test_sampler_and_learner_share_a_gpu(tmp_path, settings):
    done = run("train", *_SETTINGS, "cluster.layout=colocated", *settings, f"output_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-3000:]
    check_differences(tmp_path / "run")


@pytest.mark.gpu
@needs(2)
def test_an_engine_of_two_gpus_stands_on_those_of_two_ranks(tmp_path):
    settings = ["cluster.layout=colocated", "rollout.gpus=2", "learner.ranks=2", "learner.zero_stage=3"]
    done = run("train", *_SETTINGS, *settings, f"output_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-3000:]
    check_differences(tmp_path / "run")


@pytest.mark.gpu
@needs(3)
def test_an_engine_has_two_gpus_of_its_own(tmp_path):
    done = run("train", *_SETTINGS, "rollout.gpus=2", f"output_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-3000:]
    check_differences(tmp_path / "run")
