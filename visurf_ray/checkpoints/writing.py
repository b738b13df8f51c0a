"""Writing of checkpoints: to a temporary folder that is renamed, so that only complete ones are ever found."""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from visurf_ray.checkpoints.stored import (
    BEST,
    PREFIX,
    STATE,
    Best,
    State,
    all_checkpoints,
    folder_name,
    is_kept,
    list_files,
    read_best,
    step_of,
)
from visurf_ray.errors import LearnerLostError, StalledError, during, short, writing
from visurf_ray.stopping import time_left


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
        final = self.folder / folder_name(state.step)
        with writing(f"the checkpoint of step {state.step}", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob(f".{PREFIX}*.partial"):  # of a run that was killed
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
                (begun.partial / STATE).write_text(json.dumps(asdict(state)))
                list_files(begun.partial)
                _replace(begun.partial, begun.final)
        except Exception:  # Ctrl-C leaves it to be finished
            self._begun = None
            shutil.rmtree(begun.partial, ignore_errors=True)
            raise
        self._begun = None
        self.newest = begun.final, state
        if (best := read_best(self.folder)) and best.step >= state.step:  # of an abandoned branch, or written again
            (self.folder / BEST).unlink()
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

    def best(self, metric: str, state: State) -> Best | None:
        """Return the best evaluation by a metric until a state; None if there is none, or its checkpoint is not kept.

        best.json names it from now on: it may name that of a branch that is left, or the run was killed before it wrote
        the file.
        """
        known = [best for best in (read_best(self.folder), state.best) if best and is_kept(best, self.folder)]
        fitting = [best for best in known if best.metric == metric and best.step <= state.step]
        found = max(fitting, key=lambda best: best.step, default=None)
        if found and found != read_best(self.folder):
            self._write_best(found)
        return found

    def _prune(self, newest: Path) -> None:
        whole = all_checkpoints(self.folder)
        own = whole.index(newest)
        best = read_best(self.folder)
        old = [path for path in whole[: max(0, own + 1 - self.keep)] if not self._is_of_dump(path)]
        for other in old + whole[own + 1 :]:
            if (best is None or other.name != best.checkpoint) and not other.is_symlink():  # a link is its user's
                shutil.rmtree(other)

    def dump(self, step: int) -> Path:
        """Return the folder of a step's dump, steps counted from 1. See `dumps`.

        While it exists, the checkpoint of the step before is not removed for its age.
        """
        return self.folder.parent / "dumps" / folder_name(step)

    def _is_of_dump(self, checkpoint: Path) -> bool:
        return self.dump(step_of(checkpoint) + 1).is_dir()

    def _write_best(self, best: Best) -> None:
        partial = self.folder / f".{BEST}.partial"
        try:
            with writing(BEST, self.folder):
                partial.write_text(json.dumps(asdict(best), indent=2) + "\n")
                os.replace(partial, self.folder / BEST)
        finally:
            partial.unlink(missing_ok=True)


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
