"""Every architecture trains end to end from a folder with a small random model; sampler and learner agree on it.

Qwen2.5-VL is the miniature's own, which `test_train` trains: here it is left to the slow tests.
"""

import pytest

from tests.integration.architectures import make_whole_model
from tests.integration.runs import SMALL, rows, run_here


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("architecture", ["qwen2_vl", pytest.param("qwen2_5_vl", marks=pytest.mark.slow), "qwen3_vl"])
def test_two_steps_and_the_sampler_has_the_learners_weights(architecture, processor, tmp_path):
    """Image tokens, M-RoPE and deepstack: the same log-probs before the first step, and after a sync."""
    model = make_whole_model(architecture, tmp_path / "model", processor)
    settings = ["train.steps=2", "learner.learning_rate=1e-2", "eval.examples=4", "train.checkpoint_every=0"]
    done = run_here("train", *SMALL, *settings, f"model.path={model}", f"output_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    steps = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["train/rollout_logprob_diff_max"] < 1e-5 and row["train/grad_norm"] > 0.0
