"""The environment of processes that compute on a CPU."""

import platform
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from visurf_ray.cluster import cpu
from visurf_ray.cluster.cpu import on_cpu


@pytest.fixture(autouse=True)
def nothing_preloaded(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Intel's OpenMP exists for x86-64 alone")
def test_intels_openmp_is_loaded_beside_what_the_user_loads(monkeypatch):
    library = on_cpu()["LD_PRELOAD"]
    assert Path(library).is_file() and Path(library).name == "libiomp5.so"
    monkeypatch.setenv("LD_PRELOAD", "/lib/libtcmalloc.so")
    assert on_cpu()["LD_PRELOAD"] == f"{library}:/lib/libtcmalloc.so"


def test_the_users_openmp_stays(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/lib/libgomp.so.1")
    assert "LD_PRELOAD" not in on_cpu()


def test_where_intels_openmp_is_not_installed_threads_sleep(monkeypatch):
    def files(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cpu, "files", files)
    assert "LD_PRELOAD" not in on_cpu() and on_cpu()["OMP_WAIT_POLICY"] == "PASSIVE"
