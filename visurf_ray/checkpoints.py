"""Checkpoints of a run: written to a temporary folder and renamed, so that only complete ones are ever found."""

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from visurf_ray.aliases import Json
from visurf_ray.errors import LearnerLostError, StalledError, UserError, during, short, writing
from visurf_ray.groups import Metrics
from visurf_ray.stopping import time_left

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_STATE = "state.json"
_PREFIX = "step_"
_BEST = "best.json"
_FILES = "files.json"  # the size in bytes of each file of a checkpoint
_LENGTH = 200  # of a list of keys in a message


class CheckpointError(UserError):
    """A path that is no checkpoint of a run."""


@dataclass(frozen=True)
class State:
    """What a run needs to resume, beside the learner's own state.

    Attributes:
        step: steps done.
        position: training examples drawn for them; see `DataFeed.position`.
        solved: which rows the curriculum leaves out; see `DataFeed.solved_state`.
        dropped: which rows were dropped when they were used; see `DataFeed.dropped_state`.
        styles: of the labels, by part; see `Method.chosen_styles`.
        run_id: the W&B run's id.
        before: scores of the evaluation before training.
        faults: those of the run until then, as summary.json has them; see `cluster.supervision.Fault`.
        train_seconds: time spent training so far.
        trained: the fields of the `learner.trained.Trained` that wrote the learner's state; no other can read it.
        config: the run's configuration, as `config.schema.to_dict` returns it.
        rows: the fingerprint of the training rows, by part; see `feed.fingerprint`.
        best: the best evaluation by train.keep_best until then.
    """

    step: int = 0
    position: int = 0
    solved: dict[str, list[list[int]]] = field(default_factory=dict)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    styles: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None
    before: Metrics | None = None
    faults: list[dict[str, Json]] = field(default_factory=list)
    train_seconds: float = 0.0
    trained: dict[str, Json] = field(default_factory=dict)
    config: dict[str, Json] = field(default_factory=dict)
    rows: dict[str, dict[str, Json]] = field(default_factory=dict)
    best: "Best | None" = None


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


@dataclass(frozen=True)
class _Begun:
    """A checkpoint that is being written.

    Attributes:
        partial: where its files lie until it is whole.
        final: its folder.
        written: returns whether the learner has written its files; its argument: whether to wait for them.
        best: the evaluation to name in best.json with it, if any.
    """

    state: State
    partial: Path
    final: Path
    written: Callable[[bool], bool]
    best: Best | None


class Checkpoints:
    """The checkpoints in one folder: the newest `keep` are kept, and the one that best.json names.

    A checkpoint is begun, and finished when the learner has written its files, which it may do in the background. At
    most one is being written at a time.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.newest: tuple[Path, State] | None = None  # that this process has written
        self._begun: _Begun | None = None

    @property
    def unfinished(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._begun is not None

    def begin(
        self,
        state: State,
        save_learner: Callable[[Path], None],
        written: Callable[[bool], bool],
        best: Best | None = None,
    ) -> None:
        """Begin a checkpoint, after the one before is finished; call `finish` then.

        Args:
            save_learner: writes the learner's state into a folder, or begins to; returns when the state may change.
            written: returns whether that is done; its argument: whether to wait for it.
            best: the evaluation that makes this checkpoint the best, if any; see `keep_best`.

        Raises:
            WriteError: files cannot be written. Nothing of the checkpoint is left, and the older ones stay.
        """
        self.finish(wait=True)
        final = self.folder / self.name(state.step)
        with writing(f"the checkpoint of step {state.step}", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob(f".{_PREFIX}*.partial"):  # of a run that was killed
                shutil.rmtree(unfinished)
            partial = _empty(final)
            with _removed_by_errors(partial):
                save_learner(partial)
        self._begun = _Begun(state, partial, final, written, best)

    def finish(self, *, wait: bool) -> None:
        """Finish the checkpoint that is being written, if the learner has written its files; see `begin`.

        Then the oldest beyond `keep` and all of later steps are removed. The best is not among the oldest. Checkpoints
        of later steps exist when the run was resumed from an older one: they belong to an abandoned branch of the run.

        Args:
            wait: whether to wait for the files.

        Raises:
            WriteError: files cannot be written. Nothing of the checkpoint is left, and the older ones stay.
        """
        if self._begun is None:
            return
        begun, state = self._begun, self._begun.state
        try:
            with writing(f"the checkpoint of step {state.step}", self.folder):
                if not begun.written(wait):
                    return
                (begun.partial / _STATE).write_text(json.dumps(asdict(state)))
                list_files(begun.partial)
                _replace(begun.partial, begun.final)
        except Exception:  # Ctrl-C leaves it to be finished
            self._begun = None
            shutil.rmtree(begun.partial, ignore_errors=True)
            raise
        self._begun = None
        self.newest = begun.final, state
        if (best := self._read_best()) and best.step >= state.step:  # of an abandoned branch, or written again
            (self.folder / _BEST).unlink()
        if begun.best:
            self._write_best(begun.best)
        self._prune(begun.final)

    @contextmanager
    def finishing(self, grace: float = math.inf) -> Iterator[None]:
        """Finish what is being written at the end of the context, also after Ctrl-C or an error.

        After an error of another kind, a checkpoint that cannot be finished is reported on standard error.

        Args:
            grace: seconds from the signal on that this may take, after a signal.
        """
        try:
            yield
        except (LearnerLostError, StalledError):  # the learner would not answer again
            if self._begun:
                shutil.rmtree(self._begun.partial, ignore_errors=True)
                self._begun = None
            raise
        except BaseException:
            if self._begun:
                what = f"the checkpoint of step {self._begun.state.step}"
                print(
                    f"the run ends when {what} is written; press Ctrl-C again to leave it", file=sys.stderr, flush=True
                )
                try:
                    with time_left(grace):
                        self.finish(wait=True)
                except Exception as failure:
                    print(f"{what} is not written: {short(failure, 500)}", file=sys.stderr, flush=True)
            raise
        with during("checkpoint"):
            self.finish(wait=True)

    def keep_best(self, best: Best) -> None:
        """Name the newest checkpoint in best.json. The one that was named before is removed if it is too old."""
        self.finish(wait=True)
        self._write_best(best)
        self._prune(self.folder / best.checkpoint)

    def check(self) -> None:
        """Raise CheckpointError if best.json cannot be read: its checkpoint would not be kept."""
        self._read_best()

    def best(self, metric: str, state: State) -> Best | None:
        """Return the best evaluation by a metric until a state; None if there is none, or its checkpoint is not kept.

        best.json names it from now on: it may name that of a branch that is left, or the run was killed before it wrote
        the file.
        """
        known = [best for best in (self._read_best(), state.best) if best and self._kept(best)]
        fitting = [best for best in known if best.metric == metric and best.step <= state.step]
        found = max(fitting, key=lambda best: best.step, default=None)
        if found and found != self._read_best():
            self._write_best(found)
        return found

    def _prune(self, newest: Path) -> None:
        whole = self.all()
        own = whole.index(newest)
        best = self._read_best()
        old = [path for path in whole[: max(0, own + 1 - self.keep)] if not self._is_of_dump(path)]
        for other in old + whole[own + 1 :]:
            if (best is None or other.name != best.checkpoint) and not other.is_symlink():  # a link is its user's
                shutil.rmtree(other)

    def dump(self, step: int) -> Path:
        """Return the folder of a step's dump, steps counted from 1. See `dumps`.

        While it exists, the checkpoint of the step before is not removed for its age.
        """
        return self.folder.parent / "dumps" / self.name(step)

    def _is_of_dump(self, checkpoint: Path) -> bool:
        return self.dump(int(checkpoint.name.removeprefix(_PREFIX)) + 1).is_dir()

    def _read_best(self) -> Best | None:
        """Return what best.json says; None if there is none, or its checkpoint has been removed by hand."""
        path = self.folder / _BEST
        best = Best(**read_fields(Best, path)) if path.is_file() else None
        return best if best and self._kept(best) else None

    def _kept(self, best: Best) -> bool:
        return (self.folder / best.checkpoint / _STATE).is_file()

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
        """Return the checkpoints, oldest first. Folders with other names, such as copies, are not among them."""
        found = [path for path in self.folder.glob(f"{_PREFIX}*") if (path / _STATE).is_file()]
        named = [path for path in found if re.fullmatch(rf"{_PREFIX}[0-9]{{6,}}", path.name)]
        return sorted(named, key=lambda path: int(path.name.removeprefix(_PREFIX)))


@contextmanager
def written_whole(final: Path) -> Iterator[Path]:
    """Give an empty folder beside `final`, which takes its place at the end; after an error nothing of it is left."""
    partial = _empty(final)
    with _removed_by_errors(partial):
        yield partial
        _replace(partial, final)


def _empty(final: Path) -> Path:
    """Return a new empty folder beside `final`."""
    partial = final.parent.resolve() / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    return partial


@contextmanager
def _removed_by_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _replace(partial: Path, final: Path) -> None:
    old = final.parent / f".{final.name}.old.partial"  # renamed, not removed, until the new folder has its name
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def list_files(folder: Path) -> None:
    """Write the list of a folder's files that `damage` compares it with."""
    (folder / _FILES).write_text(json.dumps(_sizes(folder)))


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _FILES)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with the files that `list_files` has listed, as the end of a sentence; None if nothing."""
    try:
        expected = json.loads((checkpoint / _FILES).read_text())
    except FileNotFoundError:
        return (
            f"has no {_FILES}, which lists the files that it was written with: an older version of visurf_ray wrote "
            "it, or it is an unfinished copy"
        )
    except ValueError:
        return f"is damaged: its {_FILES} is not JSON"
    found = _sizes(checkpoint)
    for name, size in expected.items():
        if name not in found:
            return f"is damaged: its file {name} is missing"
        if found[name] != size:
            return f"is damaged: its file {name} has {found[name]:,} bytes instead of {size:,}"
    return None


def _renamed(checkpoint: Path) -> str | None:
    """Return of which step a checkpoint is, like `damage`, if its folder has the name of another."""
    step = read_state(checkpoint).step
    return None if checkpoint.name == Checkpoints.name(step) else f"is of step {step}"


def find_resume(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to resume from, or None to begin a new run.

    Args:
        resume: train.resume: None, "auto" for the newest whole checkpoint in `folder` if there is one, or a path.
        folder: the run's checkpoints.

    Raises:
        CheckpointError: the path is no checkpoint, or a damaged one.
    """
    if resume is None:
        return None
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.check()
    found = checkpoints.all()
    if resume == "auto":
        damaged = []
        for path in reversed(found):
            if (lack := damage(path) or _renamed(path)) is None:
                break
            damaged.append(f"{path.name} {lack}")
        else:
            if damaged:
                raise CheckpointError(
                    f"train.resume=auto: {folder} has no whole checkpoint: {'; '.join(damaged)}. "
                    "Set train.resume=null and another output_dir for a new run"
                )
            return None
        for each in damaged:
            print(f"{each}; the run resumes from an older one", flush=True)
        return path
    path = Path(resume).expanduser()
    if not (path / _STATE).is_file():
        here = f" Checkpoints in {folder}: {', '.join(p.name for p in found)}." if found else ""
        raise CheckpointError(
            f"train.resume={resume}: this is no checkpoint: it has no {_STATE}. Set it to a checkpoint's folder, to "
            f"auto for the newest in output_dir, or to null for a new run.{here}"
        )
    if lack := damage(path):
        raise CheckpointError(
            f"train.resume={resume}: this checkpoint {lack}. Copy it again, or resume from another one"
        )
    return path


def read_state(path: Path) -> State:
    """Read the state of the checkpoint at `path`.

    Raises:
        CheckpointError: it is damaged, or another version of the program wrote it.
    """
    found = read_fields(State, path / _STATE)
    best = found.pop("best")
    return State(**found, best=Best(**best) if best else None)


def read_fields(kind: "type[DataclassInstance]", file: Path) -> dict[str, Json]:
    """Return the values of a dataclass's fields in a JSON file.

    Raises:
        CheckpointError: the file does not hold it.
    """
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: it is not JSON ({error})") from error
    known = {field.name for field in fields(kind)}
    if not isinstance(found, dict) or found.keys() != known:
        keys = found.keys() if isinstance(found, dict) else set()
        lacking = f"{', '.join(sorted(known - keys)) or 'nothing'} is missing"
        unknown = f"; {short(', '.join(sorted(keys - known)), _LENGTH)} is unknown" if keys - known else ""
        raise CheckpointError(
            f"{file} is of another version of visurf_ray: {lacking}{unknown}. Use the version that wrote it"
        )
    return found
