"""The central loop: ViSurf's Algorithm 1. No tensors and no pixels pass through it."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial

from visurf_ray.aliases import Json
from visurf_ray.checkpoints.stored import State
from visurf_ray.checkpoints.writing import Checkpoints
from visurf_ray.cluster.supervision import again_if_lost
from visurf_ray.config.schema import Config
from visurf_ray.dumps import Dumps, Update
from visurf_ray.errors import LostError, during
from visurf_ray.feed.feed import DataFeed
from visurf_ray.groups import Example, Group, Metrics, Phase, Prediction
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.monitor import Monitor
from visurf_ray.progress import Progress, Reached, check_metric, has_metric
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rollout.pool import RolloutPool, without_rollouts
from visurf_ray.scoring.segmentation import Segmentation
from visurf_ray.stages import Stage
from visurf_ray.stopping import stopped


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    Attributes:
        step: the step's number, from 0.
        groups: scored groups.
        metrics: of data, alignment and rewards.
        reached: how far the run is after the step.
        shortfall: a sentence about the groups that the batch lacks, if it lacks any; see `Filling`.
    """

    step: int
    groups: list[Group]
    metrics: Metrics
    reached: Reached
    shortfall: str | None


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
        self.monitor = monitor
        self.segmentation = segmentation
        self.progress = Progress(config.train, checkpoints, learner, monitor)
        self.dumps = Dumps(config, self.progress, learner, monitor)
        self.lost: Counter[int] = Counter()  # how often the batch after so many steps was lost

    def run(self, state: State) -> dict[str, Json]:
        """Train from `state` to `train.steps`; returns what the run's summary says of scores and time.

        Returns:
            The scores `before` and `after`, the `train_seconds` between, and with train.keep_best the `best` one.
        """
        progress, metric = self.progress, self.config.train.keep_best
        with progress.saving(state):
            self.go_to(state)
            before = state.before or self.evaluate(state.step)
            if not has_metric(metric, before):  # it is misspelt, or of a set that was added since: an evaluation tells
                self.evaluate(state.step)
            progress.begin(self.monitor.run_id, before)
            for stage in self.stages:
                if 0 < progress.state.step == stage.plan.first:
                    self.learner.take_reference()  # the KL term of a stage compares with the policy at its start
                while progress.state.step < stage.plan.last:
                    try:
                        with closing(self.batches(progress.state.step, stage.plan.last)) as batches:
                            for batch in batches:
                                self.advance(batch)
                    except LostError as error:
                        self.collect_again(error)
            progress.note_time()
            after = self.evaluate(self.config.train.steps)
            progress.save_if_best(after)
        found = {"best": asdict(progress.best)} if progress.best else {}
        return {"before": before, "after": after, "train_seconds": round(progress.state.train_seconds, 1)} | found

    def go_to(self, state: State) -> None:
        """Collect the batch after `state` next."""
        self.rewards.drop()  # of groups that are left
        self.data.seek(state.position, state.solved, state.dropped)
        if self.stage(state.step).plan.first < state.step:
            self.stage(state.step).method.restore(state.styles)

    def collect_again(self, error: LostError) -> None:
        """Collect the batch of the next step once more, as what it refers to is lost; give up at the third time."""
        state = self.progress.state
        self.lost[state.step] += 1
        if self.lost[state.step] == 3:
            raise error
        self.go_to(state)

    def advance(self, batch: Batch) -> None:
        """Learn from the batch of the next step; evaluate and save if it is time to.

        Raises:
            LostError: what the batch refers to is lost, and nothing is learnt from it.
        """
        step, every = batch.step + 1, self.config.eval.every
        with self.progress.step(batch.reached):
            self.monitor.log(step, batch.metrics | self.step(batch))
        due = every and step % every == 0 and step < self.config.train.steps
        self.progress.save_if_due(self.evaluate(step) if due else None)

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
        filling = method.filling(size, prompts=self.rollouts.prompts(size) if method.has_rollouts else size)
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
        reached = Reached(
            number + 1, self.data.position, self.data.solved_state(), self.data.dropped_state(), method.chosen_styles
        )
        return Batch(number, groups, metrics, reached, filling.shortfall)

    def sample(self, number: int, examples: list[Example], enough: int, phase: Phase) -> tuple[list[Group], int]:
        """Sample, label and score groups of a step; returns them, and how many could not be scored.

        Args:
            enough: how many groups to wait for; the others are aborted.
        """
        stage = self.stage(number)
        method, step = stage.method, number - stage.plan.first
        sampled = self.rollouts.sample(examples, enough) if method.has_rollouts else without_rollouts(examples)
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
        if batch.shortfall:
            self.monitor.warn_once("missing groups", f"step {number + 1}: {batch.shortfall}")
        update = Update(number, groups, method.loss(step), stage.learning_rate(step))
        self.dumps.before(update)
        with self.monitor.phase("learn"):
            metrics |= self.learner.update(groups, update.loss, update.learning_rate, step=number)
        self.dumps.after(update, metrics)
        self.rollouts.sync(self.monitor.phase)
        self.monitor.show_samples(number + 1, batch.groups)
        return metrics

    def evaluate(self, step: int) -> Metrics:
        """Score answers to the held-out examples, after so many steps.

        Raises:
            ConfigError: there is no metric of the name that train.keep_best has.
        """
        stay, settings = self.stage(step).method.has_rollouts, self.config.eval
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
