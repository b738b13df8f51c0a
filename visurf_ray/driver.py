"""The central loop: ViSurf's Algorithm 1. No tensors and no pixels pass through it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from time import monotonic

from visurf_ray.checkpoints import Checkpoints, State
from visurf_ray.config.schema import Config
from visurf_ray.feed.feed import DataFeed
from visurf_ray.groups import Example, Group, Metrics, Phase, Prediction
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.monitor import Monitor
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rollout.pool import RolloutPool, without_rollouts
from visurf_ray.scoring.segmentation import Segmentation
from visurf_ray.stages import Stage


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    Attributes:
        step: the step's number, from 0.
        groups: scored groups.
        metrics: of data, alignment and rewards.
        position: how many training examples the run has drawn, those of this batch included.
        missing: how many groups the batch lacks after all refills of dynamic sampling.
    """

    step: int
    groups: list[Group]
    metrics: Metrics
    position: int
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
        self.held_out: list[Example] = data.held_out(config.eval.examples)

    def run(self, state: State) -> dict[str, Metrics | float]:
        """Train from `state` to `train.steps`; returns the scores before and after, and the seconds between."""
        train, every = self.config.train, self.config.eval.every
        self.data.seek(state.position)
        before = state.before or self.evaluate(state.step)
        state = replace(state, run_id=self.monitor.run_id, before=before)
        begin = monotonic()
        for stage in self.stages:
            if 0 < state.step == stage.plan.first:
                self.learner.take_reference()  # the KL term of a stage compares with the policy at its start
            for batch in self.batches(state.step, stage.plan.last):
                self.monitor.log(batch.step + 1, batch.metrics | self.step(batch))
                state = replace(state, step=batch.step + 1, position=batch.position)
                last = state.step == train.steps
                if every and state.step % every == 0 and not last:
                    self.evaluate(state.step)
                if train.checkpoint_every and (state.step % train.checkpoint_every == 0 or last):
                    state = replace(state, train_seconds=state.train_seconds + monotonic() - begin)
                    begin = monotonic()
                    with self.monitor.phase("checkpoint"):
                        self.checkpoints.save(state, self.learner.save)
        seconds = state.train_seconds + monotonic() - begin
        return {"before": before, "after": self.evaluate(train.steps), "train_seconds": round(seconds, 1)}

    def stage(self, step: int) -> Stage:
        """Return the stage of a step; after the last step, the last stage."""
        return next((stage for stage in self.stages if step < stage.plan.last), self.stages[-1])

    def batches(self, first: int, last: int) -> Iterator[Batch]:
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
            sampler.shutdown(cancel_futures=True)  # waits for the batch that is being sampled: it needs its actors

    def collect(self, number: int, phase: Phase = nullcontext) -> Batch:
        """Collect the groups of a step (Algorithm 1, from the batch to its rewards)."""
        stage = self.stage(number)
        method, size, step = stage.method, stage.plan.batch_size, number - stage.plan.first
        filling = method.filling(size, prompts=self.rollouts.prompts(size) if method.samples else size)
        groups: list[Group] = []
        metrics: Metrics = {"reward/skipped": 0.0}
        for prompts in filling:  # once, and again for each refill of dynamic sampling
            with phase("data"):
                examples = self.data.take(prompts)
            if method.aligns(step) and not groups:
                with phase("align"):
                    metrics |= method.align(self.learner.mean_logprobs(method.in_each_style(examples[:size])))
                self.rollouts.wake(phase)
            scored, skipped = self.sample(number, examples, filling.enough, phase)
            groups += scored
            metrics["reward/skipped"] += skipped
            filling.add(drawn=prompts, kept=method.count_instructive(scored, step))
        if metrics["reward/skipped"] and len(groups) < self.learner.least_groups:
            raise RewardError(
                f"reward.on_error=skip left {len(groups)} of {size} groups, and learner.minibatches needs "
                f"{self.learner.least_groups}: correct the reward, or raise train.batch_size"
            )
        return Batch(number, groups, metrics | filling.metrics, self.data.position, filling.missing)

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
            metrics |= self.learner.update(groups, method.loss(step), stage.learning_rate(step))
        self.rollouts.sync(self.monitor.phase)
        self.monitor.show_samples(number + 1, batch.groups)
        return metrics

    def evaluate(self, step: int) -> Metrics:
        """Score answers to the held-out examples, after so many steps."""
        stay, settings = self.stage(step).method.samples, self.config.eval
        with self.monitor.phase("evaluate"):
            predictions = self.rollouts.answer(
                self.held_out,
                max_tokens=settings.max_tokens,
                n=settings.n,
                temperature=settings.temperature,
                stay=stay,
            )
            if self.segmentation:
                predictions = self.segmentation.segment(self.held_out, predictions)
            scores = self.score(predictions)
        self.monitor.log_eval(step, scores)
        return scores
