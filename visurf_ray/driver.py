"""The central loop: the paper's Algorithm 1, almost line for line. No tensors pass through here, and of all
pixels only those of a few samples to look at.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Lock
from typing import Any

from visurf_ray.checkpoints import Checkpoints, State
from visurf_ray.config.schema import Config
from visurf_ray.feed.feed import DataFeed
from visurf_ray.groups import Example, Group, Metrics
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.method import Method
from visurf_ray.monitor import Monitor
from visurf_ray.monitor.samples import Sample, SampleResponse
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rollout.pool import RolloutPool
from visurf_ray.scoring.segmentation import Segmentation
from visurf_ray.tasks.task import Task


class Driver:
    """Trains a policy with the method of each step on one task."""

    def __init__(
        self,
        config: Config,
        *,
        task: Task,
        methods: Callable[[int], Method],
        data: DataFeed,
        rollouts: RolloutPool,
        rewards: RewardPool,
        learner: LearnerGroup,
        checkpoints: Checkpoints,
        monitor: Monitor,
        segmentation: Segmentation | None = None,
    ) -> None:
        self.config = config
        self.task = task
        self.methods = methods
        self.data = data
        self.rollouts = rollouts
        self.rewards = rewards
        self.learner = learner
        self.checkpoints = checkpoints
        self.monitor = monitor
        self.segmentation = segmentation
        self.least_groups = config.learner.ranks * config.learner.minibatches  # that an update needs
        self.engines = Lock()  # held while they sample, or take weights
        self.held_out: list[Example] = data.held_out(config.eval.examples)
        gc.collect()
        gc.freeze()  # the million objects of the libraries are never garbage, and each step would look through them

    def run(self, state: State) -> dict[str, Any]:
        """Train from `state` to `train.steps`; returns the scores before and after, and the seconds between."""
        train, every = self.config.train, self.config.eval.every
        self.sync()
        before = state.before or self.evaluate(state.step)
        begin = time.monotonic()
        for step, groups, metrics in self.batches(state.step, train.steps):
            self.monitor.log(step + 1, metrics | self.step(step, groups))
            state = replace(state, step=step + 1, run_id=self.monitor.run_id, before=before)
            last = state.step == train.steps
            if every and state.step % every == 0 and not last:
                self.evaluate(state.step)
            if train.checkpoint_every and (state.step % train.checkpoint_every == 0 or last):
                state = replace(state, train_seconds=state.train_seconds + time.monotonic() - begin)
                begin = time.monotonic()
                with self.monitor.phase("checkpoint"):
                    self.checkpoints.save(state, self.learner.save)
        seconds = state.train_seconds + time.monotonic() - begin
        return {"before": before, "after": self.evaluate(train.steps), "train_seconds": round(seconds, 1)}

    def batches(self, first: int, last: int) -> Iterator[tuple[int, list[Group], Metrics]]:
        """Each step's number and what `collect` returns, up to `pipeline.max_staleness` steps ahead of the learning."""
        staleness = self.config.pipeline.max_staleness
        if not staleness:
            yield from ((number, *self.collect(number, self.monitor.phase)) for number in range(first, last))
            return
        sampler = ThreadPoolExecutor(1, "sampler")
        ahead: deque[Future[tuple[list[Group], Metrics]]] = deque()
        try:
            for number in range(first, last):
                while len(ahead) <= staleness and number + len(ahead) < last:
                    ahead.append(sampler.submit(self.collect, number + len(ahead)))
                with self.monitor.phase("wait"):
                    groups, metrics = ahead.popleft().result()
                yield number, groups, metrics
        finally:
            sampler.shutdown(cancel_futures=True)  # a batch that is being sampled needs its actors to the end

    def collect(
        self, number: int, phase: Callable[[str], AbstractContextManager] = nullcontext
    ) -> tuple[list[Group], Metrics]:
        """A step's examples, each with its rollouts and its label, all of them scored; and how labels were aligned."""
        method, size = self.methods(number), self.config.train.batch_size
        with phase("data"):
            examples = self.data.train_batch(number, size + (self.config.rollout.oversample if method.samples else 0))
        metrics: Metrics = {}
        if method.aligns(number):
            with phase("align"):
                self.rollouts.sleep()
                metrics = method.align(self.learner.mean_logprobs(method.in_each_style(examples[:size])))
            if self.rollouts.asleep:
                self.sync()
        finished: dict[int, Group] = {}
        with phase("sample"), self.engines:  # rewards are computed as rollouts finish
            wanted = len(examples) if method.chooses else size
            empty = {index: Group(example, []) for index, example in enumerate(examples)}
            for batch in self.rollouts.sample(examples, wanted) if method.samples else [empty]:
                for group in batch.values():
                    method.append_label(group)
                self.rewards.submit(batch.values())
                finished |= batch
        with phase("reward"):
            skipped = self.rewards.wait()
        groups = [finished[index] for index in sorted(finished) if finished[index] not in skipped]
        if skipped and len(groups) < self.least_groups:
            raise RewardError(
                f"reward.on_error=skip left {len(groups)} of {size} groups, and learner.ranks × learner.minibatches "
                f"needs {self.least_groups}: mend the reward, or raise train.batch_size"
            )
        return groups, metrics | {"reward/skipped": len(skipped)}

    def step(self, number: int, groups: Sequence[Group]) -> Metrics:
        """One optimisation step (ViSurf, Algorithm 1)."""
        method = self.methods(number)
        metrics = method.assign_advantages(groups, number)
        instructive = method.instructive(groups, at_least=self.least_groups)[: self.config.train.batch_size]
        begin = time.monotonic()
        with self.monitor.phase("learn"):
            self.rollouts.sleep()
            metrics |= self.learner.update(instructive, method.loss(number))
        learning = time.monotonic() - begin
        self.sync()
        every = self.config.monitor.samples_every
        if every and number % every == 0:
            self.monitor.show_samples(number + 1, self.samples(groups))
        metrics |= {"train/groups": len(instructive), "train/learning_rate": self.config.learner.learning_rate}
        return metrics | _size_metrics(instructive, learning)

    def sync(self) -> None:
        """Give the rollout workers the learner's weights, between batches."""
        with self.monitor.phase("wait"):
            self.engines.acquire()
        try:
            with self.monitor.phase("sync"), self.rollouts.taking_weights():
                self.learner.send_weights()
        finally:
            self.engines.release()

    def evaluate(self, step: int) -> Metrics:
        """Greedy answers on the held-out split, scored by the task."""
        with self.monitor.phase("evaluate"):
            with self.engines:
                predictions = self.rollouts.answer(self.held_out, max_tokens=self.config.eval.max_tokens)
            if self.segmentation:
                predictions = self.segmentation.segment(self.held_out, predictions)
            scores = self.task.metrics(predictions)
        self.monitor.log_eval(step, scores)
        return scores

    def samples(self, groups: Sequence[Group]) -> list[Sample]:
        """A few groups to look at: the best and the worst rollout, and the label."""
        shown = []
        for group in groups[: self.config.monitor.samples]:
            by_reward = sorted(group.rollouts, key=lambda response: response.reward)
            chosen = ([by_reward[-1], by_reward[0]] if by_reward else []) + ([group.label] if group.label else [])
            responses = [
                SampleResponse(
                    source=response.source,
                    text=response.text,
                    reward=response.reward,
                    parts=response.reward_parts,
                    advantage=response.advantage,
                    boxes=self.task.boxes(response.text, group.example.size),  # type: ignore[arg-type]
                )
                for response in chosen
            ]
            truth = self.task.true_boxes(group.example)
            shown.append(Sample(self.data.image(group.example), group.example.question, truth, responses))  # type: ignore[arg-type]
        return shown


def _size_metrics(groups: Sequence[Group], seconds: float) -> Metrics:
    """Lengths in tokens, and the tokens (prompts once, responses each) that the learner takes in a second."""
    responses = [response for group in groups for response in group.responses]
    tokens = sum(len(group.example.prompt.expanded_ids) for group in groups) + sum(r.length for r in responses)
    metrics = {"train/tokens_per_second": tokens / seconds}
    if rollouts := [response.length for group in groups for response in group.rollouts]:
        metrics["train/response_length"] = sum(rollouts) / len(rollouts)
    return metrics
