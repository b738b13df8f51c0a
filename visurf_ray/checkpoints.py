"""Checkpoints of a run: written aside and renamed, so that a torn one is never chosen; the newest K are kept."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visurf_ray.errors import UserError
from visurf_ray.groups import Metrics

_STATE = "state.json"
_PREFIX = "step_"


class CheckpointError(UserError):
    """A path that is no checkpoint of a run."""


@dataclass(frozen=True)
class State:
    """What a run needs beside the learner's own state to go on.

    Steps done, W&B run, scores before, seconds trained; what the learner's state is cut for: ranks, ZeRO stage, and
    which weights are trained (`learner.trained.Trained`).
    """

    step: int = 0
    run_id: str | None = None
    before: Metrics | None = None
    train_seconds: float = 0.0
    ranks: int = 1
    zero_stage: int = 1
    trained: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: State, save_learner: Callable[[Path], None]) -> Path:
        """Write a checkpoint, then remove the oldest beyond `keep`, and those of later steps.

        Later ones are there when a run went on from an older checkpoint: they belong to a course that was left.
        """
        final = self.folder / f"{_PREFIX}{state.step:06d}"
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_learner(partial.resolve())
        (partial / _STATE).write_text(json.dumps(asdict(state)))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        whole = self.all()
        own = whole.index(final)
        for other in whole[: max(0, own + 1 - self.keep)] + whole[own + 1 :]:
            shutil.rmtree(other)
        return final

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        whole = [path for path in self.folder.glob(f"{_PREFIX}*") if (path / _STATE).is_file()]
        return sorted(whole, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def find_resume(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint that `train.resume` means: none | the newest in `folder`, if any | the one at a path.

    Raises CheckpointError for a path that is no checkpoint.
    """
    if resume is None:
        return None
    found = Checkpoints(folder, keep=1).all()
    if resume == "auto":
        return found[-1] if found else None
    path = Path(resume).expanduser()
    if not (path / _STATE).is_file():
        here = f" Checkpoints in {folder}: {', '.join(p.name for p in found)}." if found else ""
        raise CheckpointError(f"train.resume={resume}: this is no checkpoint (no {_STATE} in it).{here}")
    return path


def read_state(path: Path) -> State:
    return State(**json.loads((path / _STATE).read_text()))
