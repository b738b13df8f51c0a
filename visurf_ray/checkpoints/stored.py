"""What the checkpoints of a run hold, and which of them it resumes from."""

import json
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from visurf_ray.aliases import Json
from visurf_ray.errors import UserError, short
from visurf_ray.groups import Metrics

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PREFIX = "step_"  # of the folders' names
STATE = "state.json"
BEST = "best.json"  # beside the folders
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


def folder_name(step: int) -> str:
    """Return the name of the folder of a checkpoint after so many steps."""
    return f"{PREFIX}{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Return the steps in the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix(PREFIX))


def all_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first, without folders of other names, such as copies."""
    found = [path for path in folder.glob(f"{PREFIX}*") if (path / STATE).is_file()]
    return sorted((path for path in found if re.fullmatch(rf"{PREFIX}[0-9]{{6,}}", path.name)), key=step_of)


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
    read_best(folder)  # raises an error if best.json cannot be read: its checkpoint would not be kept
    found = all_checkpoints(folder)
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
    if not (path / STATE).is_file():
        here = f" Checkpoints in {folder}: {', '.join(p.name for p in found)}." if found else ""
        raise CheckpointError(
            f"train.resume={resume}: this is no checkpoint: it has no {STATE}. Set it to a checkpoint's folder, to "
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
    found = read_fields(State, path / STATE)
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


def read_best(folder: Path) -> Best | None:
    """Return what best.json in a folder of checkpoints says; None if there is none, or its checkpoint has been removed.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / BEST
    best = Best(**read_fields(Best, path)) if path.is_file() else None
    return best if best and is_kept(best, folder) else None


def is_kept(best: Best, folder: Path) -> bool:
    """Return whether the checkpoint of an evaluation is in a folder of checkpoints."""
    return (folder / best.checkpoint / STATE).is_file()


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
    return None if checkpoint.name == folder_name(step) else f"is of step {step}"
