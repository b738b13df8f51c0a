"""Checkpoints of a run: written to a temporary folder and renamed, so that only complete ones are ever found."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from visurf_ray.aliases import Json
from visurf_ray.errors import UserError, writing
from visurf_ray.groups import Metrics

_STATE = "state.json"
_PREFIX = "step_"
_BEST = "best.json"


class CheckpointError(UserError):
    """A path that is no checkpoint of a run."""


@dataclass(frozen=True)
class State:
    """What a run needs to resume, beside the learner's own state.

    Attributes:
        step: steps done.
        position: training examples drawn for them; see `DataFeed.position`.
        solved: which rows the curriculum leaves out; see `DataFeed.solved_state`.
        run_id: the W&B run's id.
        before: scores of the evaluation before training.
        train_seconds: time spent training so far.
        ranks: number of learner ranks that wrote the learner's state; it can be read by as many only.
        zero_stage: likewise, their ZeRO stage.
        trained: likewise, the fields of their `learner.trained.Trained`.
    """

    step: int = 0
    position: int = 0
    solved: dict[str, list[list[int]]] = field(default_factory=dict)
    run_id: str | None = None
    before: Metrics | None = None
    train_seconds: float = 0.0
    ranks: int = 1
    zero_stage: int = 1
    trained: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run, as best.json has it.

    Attributes:
        metric: as train.keep_best names it; with a leading `-` lower values are better.
        step: steps done.
        checkpoint: the name of the checkpoint's folder.
    """

    metric: str
    value: float
    step: int
    checkpoint: str

    def beats(self, other: "Best | None") -> bool:
        """Return whether this is better than another evaluation by the same metric. NaN never is."""
        if math.isnan(self.value):
            return False
        sign = -1 if self.metric.startswith("-") else 1
        return other is None or sign * self.value > sign * other.value


class Checkpoints:
    """The checkpoints in one folder: the newest `keep` are kept, and the one that best.json names."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: State, save_learner: Callable[[Path], None]) -> Path:
        """Write a checkpoint, then remove the oldest beyond `keep` and all of later steps; returns its folder.

        The best is not among the oldest. Checkpoints of later steps exist when the run was resumed from an older one:
        they belong to an abandoned branch of the run.

        Args:
            save_learner: writes the learner's state into a folder.

        Raises:
            DiskFullError: there is no space. Nothing of the checkpoint is left, and the older ones stay.
        """
        final = self.folder / self.name(state.step)
        partial = self.folder / f".{final.name}.partial"
        for unfinished in self.folder.glob(f".{_PREFIX}*.partial"):  # of a run that was killed
            shutil.rmtree(unfinished)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with writing(f"the checkpoint of step {state.step}", self.folder):
                partial.mkdir()
                save_learner(partial.resolve())
                (partial / _STATE).write_text(json.dumps(asdict(state)))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        if (best := self._read_best()) and best.step >= state.step:  # of an abandoned branch, or written again
            (self.folder / _BEST).unlink()
        self._prune(final)
        return final

    def keep_best(self, best: Best) -> None:
        """Name the newest checkpoint in best.json. The one that was named before is removed if it is too old."""
        self._write_best(best)
        self._prune(self.folder / best.checkpoint)

    def best(self, metric: str, step: int) -> Best | None:
        """Return the best evaluation by a metric in the first `step` steps of the run; None if there is none."""
        best = self._read_best()
        return best if best and best.metric == metric and best.step <= step else None

    def _prune(self, newest: Path) -> None:
        whole = self.all()
        own = whole.index(newest)
        best = self._read_best()
        for other in whole[: max(0, own + 1 - self.keep)] + whole[own + 1 :]:
            if best is None or other.name != best.checkpoint:
                shutil.rmtree(other)

    def _read_best(self) -> Best | None:
        """Return what best.json says; None if there is none, or its checkpoint has been removed by hand."""
        path = self.folder / _BEST
        best = Best(**json.loads(path.read_text())) if path.is_file() else None
        return best if best and (self.folder / best.checkpoint / _STATE).is_file() else None

    def _write_best(self, best: Best) -> None:
        partial = self.folder / f".{_BEST}.partial"
        try:
            with writing(_BEST, self.folder):
                partial.write_text(json.dumps(asdict(best), indent=2) + "\n")
                os.replace(partial, self.folder / _BEST)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def name(step: int) -> str:
        """Return the name of the folder of a checkpoint after so many steps."""
        return f"{_PREFIX}{step:06d}"

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        whole = [path for path in self.folder.glob(f"{_PREFIX}*") if (path / _STATE).is_file()]
        return sorted(whole, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def find_resume(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to resume from, or None to begin a new run.

    Args:
        resume: train.resume: None, "auto" for the newest checkpoint in `folder` if there is one, or a path.
        folder: the run's checkpoints.

    Raises:
        CheckpointError: the path is no checkpoint.
    """
    if resume is None:
        return None
    found = Checkpoints(folder, keep=1).all()
    if resume == "auto":
        return found[-1] if found else None
    path = Path(resume).expanduser()
    if not (path / _STATE).is_file():
        here = f" Checkpoints in {folder}: {', '.join(p.name for p in found)}." if found else ""
        raise CheckpointError(
            f"train.resume={resume}: this is no checkpoint: it has no {_STATE}. Set it to a checkpoint's folder, to "
            f"auto for the newest in output_dir, or to null for a new run.{here}"
        )
    return path


def read_state(path: Path) -> State:
    """Read the state of the checkpoint at `path`.

    Raises:
        CheckpointError: another version of the program wrote it.
    """
    found = json.loads((path / _STATE).read_text())
    if found.keys() != {field.name for field in fields(State)}:
        raise CheckpointError(
            f"{path}: another version of visurf_ray wrote this checkpoint: resume it with that version"
        )
    return State(**found)
