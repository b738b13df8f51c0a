"""The installed package outside of a checkout: it composes its own `conf/`, and runs a sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_train import SMALL, rows

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
    command = [sys.executable, "-m", "visurf_ray.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=folder, env=environment)


def test_the_installed_package_has_its_configuration(installed, tmp_path):
    done = run(installed, tmp_path, "--info", "searchpath", "method=rlvr")
    assert done.returncode == 0 and str(installed / "visurf_ray" / "conf") in done.stdout


@pytest.fixture(scope="module")
def sweep(installed, tmp_path_factory) -> Path:
    """The folder of a sweep over two seeds, each run with two stages of one step."""
    folder = tmp_path_factory.mktemp("elsewhere")
    stages = ["method=sft_then_rlvr", "method.sft_steps=1", "method.kl_coef=0.01", "train.steps=2"]
    settings = ["train.export=false", "train.checkpoint_every=0", "output_dir=runs"]
    done = run(installed, folder, *SMALL, "-m", "seed=0,1", *stages, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs"


def test_the_installed_package_runs_a_sweep_one_run_after_the_other(sweep):
    assert sorted(path.name for path in sweep.iterdir()) == ["multirun.yaml", "seed-0", "seed-1"]
    summaries = [json.loads((sweep / f"seed-{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    assert [(summary["seed"], summary["steps"]) for summary in summaries] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("seed", [0, 1])
def test_sft_then_rlvr_is_one_run_of_two_stages(sweep, seed):
    """SFT samples nothing, RLVR has no label."""
    first, second = (row for row in rows(sweep / f"seed-{seed}") if "train/loss" in row)
    for row, absent in ((first, "rollout"), (second, "label")):
        assert not [name for name in row if f"/{absent}" in name and not name.startswith("train/rollout_")]
    assert second["train/kl/rollout"] > 0.0 and second["train/rollout_logprob_diff_max"] < 1e-4
