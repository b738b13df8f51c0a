"""The installed package outside of a checkout: it composes its own `conf/`, and runs a sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.runs import SMALL

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


def files(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their paths in it."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_the_installed_package_has_the_files_of_the_checkout(installed):
    """All that a run imports, reads and renders is there, so that it runs as from the checkout."""
    package, conf = files(ROOT / "visurf_ray"), files(ROOT / "conf")
    assert "miniature/base/model.safetensors" in package and "config.yaml" in conf
    assert files(installed / "visurf_ray") == package | {f"conf/{name}": content for name, content in conf.items()}


SWEEP = ["-m", "learner.zero_stage=9,1", "output_dir=runs"]


def test_the_installed_package_sweeps_and_a_refused_run_does_not_end_it(installed, tmp_path):
    done = run(installed, tmp_path, *SMALL, *SWEEP, "train.dry_run=true")
    assert done.returncode == 2 and "learner.zero_stage=9" in done.stderr, done.stderr[-3000:]
    assert "all checks passed" in done.stdout and "run learner.zero_stage-1\n" in done.stdout


@pytest.mark.slow  # a run of the same files as in the checkout
def test_the_installed_package_runs_a_sweep(installed, tmp_path):
    settings = ["train.steps=1", "train.export=false", "train.checkpoint_every=0"]
    done = run(installed, tmp_path, *SMALL, *SWEEP, *settings)
    assert done.returncode == 2 and "learner.zero_stage=9" in done.stderr, done.stderr[-3000:]
    runs = tmp_path / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["learner.zero_stage-1", "multirun.yaml"]
    assert json.loads((runs / "learner.zero_stage-1" / "summary.json").read_text())["steps"] == 1
