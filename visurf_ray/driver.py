"""The central loop: ViSurf's Algorithm 1. No tensors and no pixels pass through it."""

import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import monotonic

from visurf_ray.aliases import Json
from visurf_ray.checkpoints import Best, Checkpoints, State
from visurf_ray.cluster.supervision import again_if_lost
from visurf_ray.config.schema import Config
from visurf_ray.errors import ConfigError, LostError, during, short
from visurf_ray.feed.feed import DataFeed
from visurf_ray.groups import Example, Group, Metrics, Phase, Prediction, without_bounds
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.monitor import Monitor
from visurf_ray.names import nearest
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rollout.pool import RolloutPool, without_rollouts
from visurf_ray.scoring.segmentation import Segmentation
from visurf_ray.stages import Stage
from visurf_ray.stopping import finishing_first, stopped, time_left


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    Attributes:
        step: the step's number, from 0.
        groups: scored groups.
        metrics: of data, alignment and rewards.
        position: how many training examples the run has drawn, those of this batch included.
        solved: which rows are left out of later batches.
        dropped: which rows are dropped from later batches.
        styles: of the labels, by part; see `Method.chosen_styles`.
        missing: how many groups the batch lacks after all refills of dynamic sampling.
    """

    step: int
    groups: list[Group]
    metrics: Metrics
    position: int
    solved: dict[str, list[list[int]]]
    dropped: dict[str, list[int]]
    styles: dict[str, str]
    missing: int


class Driver:
    """Trains a policy, stage by stage."""

    def __init__(
        self,
        config: Config,
        *,
        stages: Sequence[Stage],
        score: Callable[[Sequence[Prediction]], Metrics],
        data: DataFeed,
        rollouts: RolloutPool,
        rewards: RewardPool,
        learner: LearnerGroup,
        checkpoints: Checkpoints,
        monitor: Monitor,
        segmentation: Segmentation | None = None,
    ) -> None:
        """Take the parts of a run, started and connected.

        Args:
            stages: the stages in order; the last ends at `train.steps`.
            score: the task's metrics of answers to the held-out examples.
            segmentation: makes the masks of these answers, where the task has masks.
        """
        self.config = config
        self.stages = list(stages)
        self.score = score
        self.data = data
        self.rollouts = rollouts
        self.rewards = rewards
        self.learner = learner
        self.checkpoints = checkpoints
        self.monitor = monitor
        self.segmentation = segmentation
        self.lost: Counter[int] = Counter()  # how often the batch after so many steps was lost
        self.begin = monotonic()  # since when the time of training is not in the state yet
        self.state = State()  # after the last step
        self.learning = False  # whether the learner may be ahead of the state
        self.best: Best | None = None  # by train.keep_best
        self.saved: int | None = None  # the step of the newest checkpoint that this run has begun

    def run(self, state: State) -> dict[str, Json]:
        """Train from `state` to `train.steps`; returns what the run's summary says of scores and time.

        Returns:
            The scores `before` and `after`, the `train_seconds` between, and with train.keep_best the `best` one.
        """
        with self.checkpoints.finishing(self.config.train.grace):
            try:
                return self._run(state)
            except KeyboardInterrupt:
                self.save_before_end(state)
                raise

    def _run(self, state: State) -> dict[str, Json]:
        self.state, self.saved, self.learning = state, None, False
        self.go_to(state)
        if metric := self.config.train.keep_best:
            self.best = self.checkpoints.best(metric, state)
        before = state.before or self.evaluate(state.step)
        if not has_metric(metric, before):  # it is misspelt, or of a set that was added since: an evaluation tells
            self.evaluate(state.step)
        self.state = replace(state, run_id=self.monitor.run_id, before=before)
        self.begin = monotonic()
        for stage in self.stages:
            if 0 < self.state.step == stage.plan.first:
                self.learner.take_reference()  # the KL term of a stage compares with the policy at its start
            while self.state.step < stage.plan.last:
                try:
                    with closing(self.batches(self.state.step, stage.plan.last)) as batches:
                        for batch in batches:
                            self.advance(batch)
                except LostError as error:
                    self.collect_again(error)
        self.note_time()
        after = self.evaluate(self.config.train.steps)
        if best := self.better(self.config.train.steps, after):
            self.save(best)
        found = {"best": asdict(self.best)} if self.best else {}
        return {"before": before, "after": after, "train_seconds": round(self.state.train_seconds, 1)} | found

    def go_to(self, state: State) -> None:
        """Collect the batch after `state` next."""
        self.rewards.drop()  # of groups that are left
        self.data.seek(state.position, state.solved, state.dropped)
        if self.stage(state.step).plan.first < state.step:
            self.stage(state.step).method.restore(state.styles)

    def collect_again(self, error: LostError) -> None:
        """Collect the batch of the next step once more, as what it refers to is lost; give up at the third time."""
        self.lost[self.state.step] += 1
        if self.lost[self.state.step] == 3:
            raise error
        self.go_to(self.state)

    def advance(self, batch: Batch) -> None:
        """Learn from the batch of the next step; evaluate and save if it is time to.

        Raises:
            LostError: what the batch refers to is lost, and nothing is learnt from it.
        """
        train, every = self.config.train, self.config.eval.every
        with finishing_first(train.grace):
            self.learning = True
            self.monitor.log(batch.step + 1, batch.metrics | self.step(batch))
            self.state = replace(
                self.state,
                step=batch.step + 1,
                position=batch.position,
                solved=batch.solved,
                dropped=batch.dropped,
                styles=batch.styles,
            )
            self.learning = False
        self.finish_checkpoint()
        step = self.state.step
        last = step == train.steps
        scores = self.evaluate(step) if every and step % every == 0 and not last else None
        best = self.better(step, scores)
        due = train.checkpoint_every and (step % train.checkpoint_every == 0 or last)
        if due or best:
            self.save(best)

    def note_time(self) -> None:
        """Add the time spent since the last call to the state."""
        begin, self.begin = self.begin, monotonic()
        self.state = replace(self.state, train_seconds=self.state.train_seconds + self.begin - begin)

    def better(self, step: int, scores: Metrics | None) -> Best | None:
        """Return the evaluation after so many steps if train.keep_best has a value and it is the best so far."""
        metric = self.config.train.keep_best
        if scores is None or metric is None:
            return None
        found = Best(metric, scores[metric.removeprefix("-")], step, self.checkpoints.name(step))
        return found if found.beats(self.best) else None

    def save(self, best: Best | None = None) -> None:
        """Begin a checkpoint, unless this run has begun it before; mark it if its evaluation is the best."""
        self.note_time()
        state = replace(self.state, best=best or self.best)
        with self.monitor.phase("checkpoint"):
            if self.saved != self.state.step:
                self.checkpoints.begin(state, self.learner.save, self.learner.written, best)
                self.saved = self.state.step
            elif best:
                self.checkpoints.keep_best(best)
        self.best = best or self.best
        self.finish_checkpoint()

    def save_before_end(self, start: State) -> None:
        """Begin to save the steps since the last checkpoint, because the run is to end within train.grace seconds."""
        train = self.config.train
        if self.learning:
            print(f"step {self.state.step + 1} is not finished, and nothing is saved", file=sys.stderr, flush=True)
        elif train.checkpoint_every and self.state.step not in (start.step, self.saved):
            try:
                with time_left(train.grace):
                    self.save()
            except Exception as error:
                print(f"step {self.state.step} is not saved: {short(error, 500)}", file=sys.stderr, flush=True)

    def finish_checkpoint(self) -> None:
        """Finish the checkpoint that is being written, if the learner has written its files."""
        if self.checkpoints.unfinished:
            with self.monitor.phase("checkpoint"):
                self.checkpoints.finish(wait=False)

    def stage(self, step: int) -> Stage:
        """Return the stage of a step; after the last step, the last stage."""
        return next((stage for stage in self.stages if step < stage.plan.last), self.stages[-1])

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """Yield the batch of each step, collected up to `pipeline.max_staleness` steps ahead of the learning."""
        staleness = self.config.pipeline.max_staleness
        if not staleness:
            yield from (self.collect(number, self.monitor.phase) for number in range(first, last))
            return
        sampler = ThreadPoolExecutor(1, "sampler")
        ahead: deque[Future[Batch]] = deque()
        try:
            for number in range(first, last):
                while len(ahead) <= staleness and number + len(ahead) < last:
                    ahead.append(sampler.submit(self.collect, number + len(ahead)))
                with self.monitor.phase("wait"):
                    batch = ahead.popleft().result()
                yield batch
        finally:
            # Wait for the batch that is being sampled, as it needs its actors; but not if the run is to end at once.
            sampler.shutdown(wait=not stopped(), cancel_futures=True)

    def collect(self, number: int, phase: Phase = during) -> Batch:
        """Collect the groups of a step (Algorithm 1, from the batch to its rewards)."""
        stage = self.stage(number)
        method, size, step = stage.method, stage.plan.batch_size, number - stage.plan.first
        filling = method.filling(size, prompts=self.rollouts.prompts(size) if method.samples else size)
        groups: list[Group] = []
        metrics: Metrics = {"reward/skipped": 0.0}
        left_out, dropped = self.data.left_out, len(self.data.dropped)
        for prompts in filling:  # once, and again for each refill of dynamic sampling
            with phase("data"):
                examples = self.data.take(prompts)
            if not groups and method.aligns(step, first := examples[:size]):
                with phase("align"):
                    metrics |= method.align(first, self.learner.mean_logprobs(method.in_each_style(first)))
                self.rollouts.wake(phase)
            scored, skipped = self.sample(number, examples, filling.enough, phase)
            groups += scored
            self.data.note_solved(method.solved(scored))
            metrics["reward/skipped"] += skipped
            filling.add(drawn=prompts, kept=method.count_instructive(scored, step))
        if metrics["reward/skipped"] and len(groups) < self.learner.least_groups:
            raise RewardError(
                f"reward.on_error=skip left {len(groups)} of {size} groups, and learner.minibatches needs "
                f"{self.learner.least_groups}: correct the reward, or raise train.batch_size"
            )
        if self.config.feed.curriculum is not None:
            metrics["train/left_out"] = float(self.data.left_out - left_out)
        if self.config.feed.drops:
            metrics["train/dropped"] = float(len(self.data.dropped) - dropped)
        metrics |= filling.metrics
        return Batch(
            number,
            groups,
            metrics,
            position=self.data.position,
            solved=self.data.solved_state(),
            dropped=self.data.dropped_state(),
            styles=method.chosen_styles,
            missing=filling.missing,
        )

    def sample(self, number: int, examples: list[Example], enough: int, phase: Phase) -> tuple[list[Group], int]:
        """Sample, label and score groups of a step; returns them, and how many could not be scored.

        Args:
            enough: how many groups to wait for; the others are aborted.
        """
        stage = self.stage(number)
        method, step = stage.method, number - stage.plan.first
        sampled = self.rollouts.sample(examples, enough) if method.samples else without_rollouts(examples)
        found: dict[int, Group] = {}
        with phase("sample"), closing(sampled):
            for finished in sampled:
                for group in finished.values():
                    method.append_label(group, step)
                self.rewards.submit(finished.values())  # scored while others are sampled
                found |= finished
        with phase("reward"):
            skipped = self.rewards.wait()
        return [found[index] for index in sorted(found) if found[index] not in skipped], len(skipped)

    def step(self, batch: Batch) -> Metrics:
        """Learn from scored groups (Algorithm 1, from reward control to the update); returns what to log."""
        number, stage = batch.step, self.stage(batch.step)
        method, step = stage.method, number - stage.plan.first
        metrics = method.assign_advantages(batch.groups, step)  # eliminate, smooth, normalise over G + 1
        groups = method.instructive(batch.groups, at_least=self.learner.least_groups)[: stage.plan.batch_size]
        if batch.missing:
            self.monitor.warn_once(
                "missing groups",
                f"step {number + 1}: after method.max_refills={self.config.method.max_refills} refills the batch has "
                f"{stage.plan.batch_size - batch.missing} groups with an advantage, and train.batch_size is "
                f"{stage.plan.batch_size}. Training goes on with what there is: see train/kept_share. If that stays "
                "small, the rewards of most groups are all equal: choose other data or raise rollout.n",
            )
        with self.monitor.phase("learn"):
            metrics |= self.learner.update(groups, method.loss(step), stage.learning_rate(step), step=number)
        self.rollouts.sync(self.monitor.phase)
        self.monitor.show_samples(number + 1, batch.groups)
        return metrics

    def evaluate(self, step: int) -> Metrics:
        """Score answers to the held-out examples, after so many steps.

        Raises:
            ConfigError: there is no metric of the name that train.keep_best has.
        """
        stay, settings = self.stage(step).method.samples, self.config.eval
        held_out = self.data.held_out(settings.examples)
        with self.monitor.phase("evaluate"):
            predictions = again_if_lost(
                partial(
                    self.rollouts.answer,
                    held_out,
                    max_tokens=settings.max_tokens,
                    n=settings.n,
                    temperature=settings.temperature,
                    stay=stay,
                )
            )
            if self.segmentation:
                predictions = self.segmentation.segment(held_out.taken, predictions, self.data.stored_image)
            scores = self.score(predictions)
        self.monitor.log_eval(step, scores)
        self.monitor.show_answers(step, held_out.taken, predictions)
        check_metric(self.config.train.keep_best, scores)
        return scores


def has_metric(keep_best: str | None, scores: Metrics) -> bool:
    """Return whether an evaluation has the metric that train.keep_best names, if it names one."""
    return keep_best is None or keep_best.removeprefix("-") in scores


def check_metric(keep_best: str | None, scores: Metrics) -> None:
    """Raise ConfigError if train.keep_best names a metric that an evaluation does not have."""
    if keep_best is not None and not has_metric(keep_best, scores):
        known = without_bounds(scores)
        hint = nearest(keep_best.removeprefix("-"), known)
        raise ConfigError(f"train.keep_best={keep_best}: the evaluations of this task have {', '.join(known)}.{hint}")
