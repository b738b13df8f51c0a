"""How far a run is, what it saves of that, and when."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic

from visurf_ray.checkpoints.stored import Best, State, folder_name
from visurf_ray.checkpoints.writing import Checkpoints
from visurf_ray.config.schema import TrainConfig
from visurf_ray.errors import ConfigError, LostError, short
from visurf_ray.groups import Metrics, without_bounds
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.monitor import Monitor
from visurf_ray.names import nearest
from visurf_ray.stopping import finishing_first, time_left


@dataclass(frozen=True)
class Reached:
    """What a step leads to; see the fields of `State` with these names."""

    step: int
    position: int
    solved: dict[str, list[list[int]]]
    dropped: dict[str, list[int]]
    styles: dict[str, str]


class Progress:
    """Keeps a run's state, and saves it every train.checkpoint_every steps, after the best evaluation and at a signal.

    Attributes:
        state: after the last step.
        best: the best evaluation so far by train.keep_best.
    """

    def __init__(self, train: TrainConfig, checkpoints: Checkpoints, learner: LearnerGroup, monitor: Monitor) -> None:
        self.train = train
        self.checkpoints = checkpoints
        self.learner = learner
        self.monitor = monitor
        self.state = State()
        self.best: Best | None = None
        self._start = 0  # the step at which the run starts
        self._saved: int | None = None  # the step of the newest checkpoint that this run has begun
        self._learning = False  # whether the learner may be ahead of the state
        self._noted = monotonic()  # until when the time of training is in the state

    @contextmanager
    def saving(self, state: State) -> Iterator[None]:
        """Begin at `state`; at the end of the context save what a signal leaves unsaved, and finish all files.

        That takes at most train.grace seconds after a signal.
        """
        self.state, self._start, self._saved, self._learning = state, state.step, None, False
        self.best = self.checkpoints.best(self.train.keep_best, state) if self.train.keep_best else None
        with self.checkpoints.finishing(self.train.grace):
            try:
                yield
            except KeyboardInterrupt:
                self._save_before_end()
                raise

    def begin(self, run_id: str | None, before: Metrics) -> None:
        """Note the run's W&B id and its scores before training; the time of training counts from now on."""
        self.state = replace(self.state, run_id=run_id, before=before)
        self._noted = monotonic()

    @contextmanager
    def step(self, reached: Reached) -> Iterator[None]:
        """Take a step inside the context, which a signal interrupts only after train.grace seconds.

        Args:
            reached: what the state has afterwards.
        """
        with finishing_first(self.train.grace):
            self._learning = True
            try:
                yield
            except LostError:  # raised before anything is learnt
                self._learning = False
                raise
            self.state = replace(self.state, **vars(reached))
            self._learning = False
        self._finish()

    def note_time(self) -> None:
        """Add the time of training since the last call to the state."""
        noted, self._noted = self._noted, monotonic()
        self.state = replace(self.state, train_seconds=self.state.train_seconds + self._noted - noted)

    def save_if_due(self, scores: Metrics | None) -> None:
        """Begin a checkpoint of the last step if it is time to, or if its evaluation is the best so far.

        Args:
            scores: of that evaluation, if there is one.
        """
        step, every = self.state.step, self.train.checkpoint_every
        best = self._better(scores)
        if best or (every and (step % every == 0 or step == self.train.steps)):
            self._save(best)

    def save_if_best(self, scores: Metrics) -> None:
        """Begin a checkpoint of the last step, or mark the one that there is, if its evaluation is the best so far."""
        if best := self._better(scores):
            self._save(best)

    def save_now(self) -> str | None:
        """Begin a checkpoint of the last step, unless this run has begun it; returns its name.

        There is none before the first step, nor in a run without checkpoints: then it returns None.
        """
        if not self.state.step or not self.train.checkpoint_every:
            return None
        # The checkpoint that the run was resumed from is written again, and stays the best if it was.
        self._save(self.best if self.best and self.best.step == self.state.step else None)
        return folder_name(self.state.step)

    def _better(self, scores: Metrics | None) -> Best | None:
        """Return the evaluation after the last step if train.keep_best has a value and it is the best so far."""
        metric, step = self.train.keep_best, self.state.step
        if scores is None or metric is None:
            return None
        found = Best(metric, scores[metric.removeprefix("-")], step, folder_name(step))
        return found if found.beats(self.best) else None

    def _save(self, best: Best | None = None) -> None:
        self.note_time()
        state = replace(self.state, best=best or self.best, faults=self.monitor.faults())
        with self.monitor.phase("checkpoint"):
            if self._saved != state.step:
                self.checkpoints.begin(state, self.learner.save, self.learner.written, best)
                self._saved = state.step
            elif best:
                self.checkpoints.keep_best(best)
        self.best = best or self.best
        self._finish()

    def _finish(self) -> None:
        """Finish the checkpoint that is being written, if the learner has written its files."""
        if self.checkpoints.unfinished:
            with self.monitor.phase("checkpoint"):
                self.checkpoints.finish(wait=False)

    def _save_before_end(self) -> None:
        """Begin to save the steps since the last checkpoint, because the run is to end within train.grace seconds."""
        step = self.state.step
        if self._learning:
            print(f"step {step + 1} is not finished, and nothing is saved", file=sys.stderr, flush=True)
        elif self.train.checkpoint_every and step not in (self._start, self._saved):
            try:
                with time_left(self.train.grace):
                    self._save()
            except Exception as error:
                print(f"step {step} is not saved: {short(error, 500)}", file=sys.stderr, flush=True)


def has_metric(keep_best: str | None, scores: Metrics) -> bool:
    """Return whether an evaluation has the metric that train.keep_best names, if it names one."""
    return keep_best is None or keep_best.removeprefix("-") in scores


def check_metric(keep_best: str | None, scores: Metrics) -> None:
    """Raise ConfigError if train.keep_best names a metric that an evaluation does not have."""
    if keep_best is not None and not has_metric(keep_best, scores):
        known = without_bounds(scores)
        hint = nearest(keep_best.removeprefix("-"), known)
        raise ConfigError(f"train.keep_best={keep_best}: the evaluations of this task have {', '.join(known)}.{hint}")
