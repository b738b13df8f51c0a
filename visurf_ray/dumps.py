"""Dumps of steps: what the learner gets in a step is saved, so that `python -m visurf_ray.replay` can repeat the step.

A dump is the folder `dumps/step_…` of a run: dump.json and the step's groups. It holds no weights: those before the
step are in a checkpoint of the run.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from visurf_ray.aliases import Json
from visurf_ray.checkpoints.stored import CheckpointError, all_checkpoints, damage, list_files, read_fields, read_state
from visurf_ray.checkpoints.writing import written_whole
from visurf_ray.config.choices import OnError, Packing
from visurf_ray.config.schema import Config, to_dict
from visurf_ray.errors import LearnerLostError, UserError, short, writing
from visurf_ray.groups import Group, Metrics
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.method import LossConfig
from visurf_ray.monitor import Monitor
from visurf_ray.progress import Progress

_FILE = "dump.json"


class DumpError(UserError):
    """A dump that cannot be replayed; the message says why, and what to do."""


@dataclass(frozen=True)
class Dump:
    """What a step is, beside its groups.

    Attributes:
        step: its number, from 1.
        packing: how the learner packs groups.
        checkpoint: the name of the checkpoint that has the state before the step. None: there is none, as before
            step 1, where the policy is the initial one.
        config: the run's configuration, as `config.schema.to_dict` returns it.
    """

    step: int
    loss: LossConfig
    learning_rate: float
    packing: Packing
    checkpoint: str | None
    config: dict[str, Json]


@dataclass(frozen=True)
class Update:
    """What the learner gets in a step. Steps count from 0 here."""

    step: int
    groups: list[Group]
    loss: LossConfig
    learning_rate: float


class Dumps:
    """Dumps the steps of a run that train.dump_steps names, and the first one that the learner does not take."""

    def __init__(self, config: Config, progress: Progress, learner: LearnerGroup, monitor: Monitor) -> None:
        self.config = config
        self.progress = progress
        self.learner = learner
        self.monitor = monitor
        self._told = False  # of a step that was not taken

    def before(self, update: Update) -> None:
        """Dump a step before it is taken, if train.dump_steps names it.

        Raises:
            WriteError: files cannot be written.
            LostError: groups are lost.
        """
        if update.step + 1 in self.config.train.dump_steps:
            self._dump(update, self.progress.save_now())

    def after(self, update: Update, metrics: Metrics) -> None:
        """Tell of a step that was not taken, and dump it if it is the first one.

        Args:
            metrics: of the step.

        Raises:
            UserError: the step was not taken, and train.on_nan is stop.
            LearnerLostError: the step cannot be dumped, and will be repeated.
        """
        train, learner = self.config.train, self.config.learner
        if "train/skipped_steps" not in metrics or self._told:
            return
        unchanged = learner.minibatches * learner.epochs == 1  # else the learner may have taken a part of the step
        try:
            folder = self._dump(update, self.progress.save_now() if unchanged else None)
            command = f"python -m visurf_ray.replay dump={folder}"
            saved = f"its groups are saved: `{command}` repeats it, and names those that are not finite"
        except LearnerLostError:  # the step will be repeated
            raise
        except Exception as error:
            saved = f"its groups are not saved: {short(error, 500)}"
        self._told = True
        message = f"step {update.step + 1}: the loss or its gradient is not finite, and the step is not taken; {saved}"
        if train.on_nan is OnError.stop:
            again = "train.resume=auto " if train.checkpoint_every else ""
            raise UserError(f"{message}. Lower learner.learning_rate, or skip such steps: {again}train.on_nan=skip")
        self.monitor.warn_once("not taken", f"{message}. train/skipped_steps counts all such steps")

    def _dump(self, update: Update, checkpoint: str | None) -> Path:
        """Write a dump; returns its folder.

        Args:
            checkpoint: the name of that of the state before the step, if there is one.
        """
        number, packing = update.step + 1, self.learner.cost.packing
        dump = Dump(number, update.loss, update.learning_rate, packing, checkpoint, to_dict(self.config))
        folder = self.progress.checkpoints.dump(number)
        with self.monitor.phase("dump"):
            write_dump(dump, folder, partial(self.learner.write_groups, update.groups))
        return folder


def write_dump(dump: Dump, folder: Path, write_groups: Callable[[Path], None]) -> None:
    """Write a dump to a folder, which appears when it is whole.

    Args:
        write_groups: writes the step's groups into a folder.

    Raises:
        WriteError: files cannot be written.
    """
    with writing(f"the groups of step {dump.step}", folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(folder) as unfinished:
            write_groups(unfinished)
            (unfinished / _FILE).write_text(json.dumps(asdict(dump)))
            list_files(unfinished)


def read_dump(folder: Path) -> Dump:
    """Read the dump in a folder.

    Raises:
        DumpError: there is none, it is damaged, or another version of the program wrote it.
    """
    if not (folder / _FILE).is_file():
        raise DumpError(f"dump={folder}: this is no dump of a step: it has no {_FILE}. Name a folder in a run's dumps/")
    if lack := damage(folder):
        raise DumpError(f"dump={folder}: this dump {lack}. Copy it again, or name another one")
    try:
        found = read_fields(Dump, folder / _FILE)
        dump = TypeAdapter(Dump).validate_python(found)
    except CheckpointError as error:
        raise DumpError(f"dump={folder}: {error}") from error
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise DumpError(f"dump={folder}: {_FILE} is of another version of visurf_ray: see {short(wrong)}") from error
    if other := found["loss"].keys() ^ asdict(dump.loss).keys():
        names = short(", ".join(f"loss.{name}" for name in sorted(other)))
        raise DumpError(f"dump={folder}: {_FILE} is of another version of visurf_ray, which differs in {names}")
    return dump


def find_start(dump: Dump, folder: Path, checkpoint: str | None = None) -> tuple[Path | None, int]:
    """Return the checkpoint to repeat a step from, and how many steps it has done; None and 0 for the initial policy.

    If the dump names no checkpoint, it is the newest whole one before the step, or the initial policy.

    Args:
        folder: of the dump, in that of its run.
        checkpoint: another checkpoint to take instead.

    Raises:
        DumpError: the checkpoint is gone, damaged, or of a later step.
        CheckpointError: another version of the program wrote it.
    """
    checkpoints = folder.parent.parent / "checkpoints"
    if checkpoint is None and dump.checkpoint is None:
        for path in reversed(all_checkpoints(checkpoints)):
            if damage(path) is None and (done := read_state(path).step) < dump.step:
                return path, done
        return None, 0
    path = Path(checkpoint) if checkpoint else checkpoints / str(dump.checkpoint)
    which = f"checkpoint={path}" if checkpoint else f"dump={folder}: the checkpoint before the step, {path},"
    cure = f"Name one of a step before {dump.step} by checkpoint=…"
    if not path.is_dir():
        raise DumpError(f"{which} is not there. {cure}")
    if lack := damage(path):
        raise DumpError(f"{which} {lack}. {cure}")
    if (done := read_state(path).step) >= dump.step:
        raise DumpError(f"{which} is of step {done}. {cure}")
    return path, done
