"""The central loop: ViSurf's Algorithm 1. No tensors and no pixels pass through it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from time import monotonic

from visurf_ray.checkpoints import Checkpoints, State
from visurf_ray.config.schema import Config
from visurf_ray.feed.feed import DataFeed
from visurf_ray.groups import Example, Group, Metrics, Phase, Prediction
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.method import Method
from visurf_ray.monitor import Monitor
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rollout.pool import RolloutPool, without_rollouts
from visurf_ray.scoring.segmentation import Segmentation

Batch = tuple[list[Group], Metrics]  # scored groups, and metrics of alignment and rewards


class Driver:
    """Trains a policy with the method of each step."""

    def __init__(
        self,
        config: Config,
        *,
        methods: Callable[[int], Method],
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
            methods: the method of a step; steps count from 0.
            score: the task's metrics of greedy answers to the held-out examples.
            segmentation: makes the masks of these answers, where the task has masks.
        """
        self.config = config
        self.methods = methods
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
        self.rollouts.sync(self.monitor.phase)
        before = state.before or self.evaluate(state.step)
        begin = monotonic()
        for step, groups, metrics in self.batches(state.step, train.steps):
            self.monitor.log(step + 1, metrics | self.step(step, groups))
            state = replace(state, step=step + 1, run_id=self.monitor.run_id, before=before)
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

    def batches(self, first: int, last: int) -> Iterator[tuple[int, list[Group], Metrics]]:
        """Yield each step's number and batch, collected up to `pipeline.max_staleness` steps ahead of the learning."""
        staleness = self.config.pipeline.max_staleness
        if not staleness:
            yield from ((number, *self.collect(number, self.monitor.phase)) for number in range(first, last))
            return
        sampler = ThreadPoolExecutor(1, "sampler")
        ahead: deque[Future[Batch]] = deque()
        try:
            for number in range(first, last):
                while len(ahead) <= staleness and number + len(ahead) < last:
                    ahead.append(sampler.submit(self.collect, number + len(ahead)))
                with self.monitor.phase("wait"):
                    groups, metrics = ahead.popleft().result()
                yield number, groups, metrics
        finally:
            sampler.shutdown(cancel_futures=True)  # waits for the batch that is being sampled: it needs its actors

    def collect(self, number: int, phase: Phase = nullcontext) -> Batch:
        """Sample, label and score the groups of a step (Algorithm 1, from the batch to its rewards)."""
        method, size = self.methods(number), self.config.train.batch_size
        with phase("data"):
            examples = self.data.train_batch(number, self.rollouts.prompts(size) if method.samples else size)
        metrics: Metrics = {}
        if method.aligns(number):
            with phase("align"):
                metrics = method.align(self.learner.mean_logprobs(method.in_each_style(examples[:size])))
            self.rollouts.wake(phase)
        enough = len(examples) if method.chooses else size
        sampled = self.rollouts.sample(examples, enough) if method.samples else without_rollouts(examples)
        found: dict[int, Group] = {}
        with phase("sample"), closing(sampled):
            for finished in sampled:
                for group in finished.values():
                    method.append_label(group, number)
                self.rewards.submit(finished.values())  # scored while others are sampled
                found |= finished
        with phase("reward"):
            skipped = self.rewards.wait()
        groups = [found[index] for index in sorted(found) if found[index] not in skipped]
        if skipped and len(groups) < self.learner.least_groups:
            raise RewardError(
                f"reward.on_error=skip left {len(groups)} of {size} groups, and learner.ranks × learner.minibatches "
                f"needs {self.learner.least_groups}: correct the reward, or raise train.batch_size"
            )
        return groups, metrics | {"reward/skipped": len(skipped)}

    def step(self, number: int, groups: Sequence[Group]) -> Metrics:
        """Learn from scored groups (Algorithm 1, from reward control to the update); returns what to log."""
        method = self.methods(number)
        metrics = method.assign_advantages(groups, number)  # eliminate, smooth, normalise over G + 1
        batch = method.instructive(groups, at_least=self.learner.least_groups)[: self.config.train.batch_size]
        with self.monitor.phase("learn"):
            metrics |= self.learner.update(batch, method.loss(number))
        self.rollouts.sync(self.monitor.phase)
        self.monitor.show_samples(number + 1, groups)
        return metrics

    def evaluate(self, step: int) -> Metrics:
        """Score greedy answers to the held-out examples."""
        with self.monitor.phase("evaluate"):
            predictions = self.rollouts.answer(self.held_out, max_tokens=self.config.eval.max_tokens)
            if self.segmentation:
                predictions = self.segmentation.segment(self.held_out, predictions)
            scores = self.score(predictions)
        self.monitor.log_eval(step, scores)
        return scores
