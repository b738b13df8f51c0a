"""The installed package outside of a checkout: it composes its own `conf/`, and runs a sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.runs import SMALL, rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package alone, as `pip install .` lays it out; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*pip, str(ROOT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "WANDB_MODE": "offline", "WANDB_API_KEY": ""}
    command = [sys.executable, "-m", "visurf_ray.train", "cluster.address=local", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=folder, env=environment)


def test_the_installed_package_has_its_configuration(installed, tmp_path):
    done = run(installed, tmp_path, "--info", "searchpath", "method=rlvr")
    assert done.returncode == 0 and str(installed / "visurf_ray" / "conf") in done.stdout


@pytest.fixture(scope="module")
def sweep(installed, tmp_path_factory) -> Path:
    """The folder of a sweep: a run that is refused, then one with two stages of one step."""
    folder = tmp_path_factory.mktemp("elsewhere")
    stages = ["method=sft_then_rlvr", "method.sft_steps=9,1", "method.kl_coef=0.01", "train.steps=2"]
    settings = ["train.export=false", "train.checkpoint_every=0", "output_dir=runs"]
    done = run(installed, folder, *SMALL, "-m", *stages, *settings)
    assert done.returncode == 2 and "method.sft_steps=9" in done.stderr, done.stderr[-3000:]
    return folder / "runs"


def test_the_installed_package_runs_a_sweep_and_a_refused_run_does_not_end_it(sweep):
    assert sorted(path.name for path in sweep.iterdir()) == ["method.sft_steps-1", "multirun.yaml"]
    assert json.loads((sweep / "method.sft_steps-1" / "summary.json").read_text())["steps"] == 2


def test_sft_then_rlvr_is_one_run_of_two_stages(sweep):
    """SFT samples nothing, RLVR has no label."""
    first, second = (row for row in rows(sweep / "method.sft_steps-1") if "train/loss" in row)
    for row, absent in ((first, "rollout"), (second, "label")):
        assert not [name for name in row if f"/{absent}" in name and not name.startswith("train/rollout_")]
    assert second["train/kl/rollout"] == pytest.approx(0.0, abs=1e-6), "from the policy at the stage's start"
    assert second["train/rollout_logprob_diff_max"] < 1e-4
