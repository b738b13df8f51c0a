"""What all tests share: nothing is fetched, and what `datasets` converts goes to a folder that is thrown away."""

import os
import shutil
import tempfile

import pytest
import torch

from tests.sam2 import save_sam2

_CACHE = tempfile.mkdtemp(prefix="visurf_ray_tests_")
os.environ["HF_DATASETS_CACHE"] = _CACHE  # read when `datasets` is imported
os.environ["HF_MODULES_CACHE"] = f"{_CACHE}/modules"  # of code that comes with models, when transformers is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
torch.set_num_threads(1)  # the tests' models are small: a second thread waits, far longer where the cores are busy


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def sam2(tmp_path_factory) -> str:
    """The folder of a small SAM2."""
    return str(save_sam2(tmp_path_factory.mktemp("sam2")))
