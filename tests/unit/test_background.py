"""Checkpoints that are written in the background: they hold what was saved, whatever has changed since."""

from pathlib import Path
from threading import Event

import pytest
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch.nn import Parameter

from visurf_ray.learner.background import BackgroundEngine


@pytest.fixture
def engine():
    return BackgroundEngine(None)


@pytest.fixture
def blocked(engine):
    """Holds the engine's thread until it is set."""
    release = Event()
    engine._thread.submit(release.wait, 60)
    yield release
    release.set()


def a_state() -> dict:
    """With views that share memory, a tied parameter, and numbers in lists of dictionaries."""
    flat = torch.arange(100.0)
    tied = Parameter(torch.randn(5, 7))
    return {
        "module": {
            "a": flat[:40].view(8, 5),
            "b": flat[40:],
            "tied": tied,
            "again": tied,
            "half": torch.randn(3).half(),
        },
        "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
        "empty": torch.empty(0),
    }


def equal(found, expected) -> bool:
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return found == expected


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_saved_is_the_state_of_that_moment(engine, blocked, tmp_path, zipped):
    engine.zipfile_serialization = zipped
    state = a_state()
    torch.save(state, tmp_path / "expected.pt")
    engine.save(state, tmp_path / "state.pt")
    with torch.no_grad():
        state["module"]["a"].zero_(), state["module"]["tied"].zero_(), state["empty"].resize_(3)
    state["groups"][0]["lr"] = 7.0
    assert not engine.written(wait=False) and not (tmp_path / "state.pt").exists()
    blocked.set()
    assert engine.written(wait=True) and engine.written(wait=False)
    found, expected = (engine.load(str(tmp_path / name)) for name in ("state.pt", "expected.pt"))
    assert equal(found, expected) and expected["groups"][0]["lr"] == 0.1
    assert found["module"]["again"] is found["module"]["tied"]
    assert found["module"]["a"].untyped_storage().data_ptr() == found["module"]["b"].untyped_storage().data_ptr()


def test_the_files_are_those_of_deepspeeds_engine(engine, tmp_path):
    """But for checksums, which PyTorch does not read."""
    for saving, name in ((engine, "a"), (TorchCheckpointEngine(None), "b")):
        (tmp_path / name).mkdir()
        saving.save(a_state(), tmp_path / name / "state.pt")
    engine.written(wait=True)
    sizes = [(tmp_path / name / "state.pt").stat().st_size for name in "ab"]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("wait", [True, False])
def test_a_file_that_cannot_be_written_is_told_once(engine, tmp_path, wait):
    engine.write(tmp_path / "nowhere" / "state.pt", [b"x"])
    while not engine._writes[0].done():
        pass
    with pytest.raises(FileNotFoundError, match=r"nowhere/state\.pt"):
        engine.written(wait=wait)
    assert engine.written(wait=wait)


def test_a_full_disk_is_told_of(engine):
    from collections import deque

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    engine.write(Path("/dev/full"), deque([b"x" * 100_000]))
    with pytest.raises(OSError, match="No space left on device"):
        engine.written(wait=True)
