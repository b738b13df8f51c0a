"""The actors of a whole job, for benchmarks that time its steps."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visurf_ray.actors import reserve, start_data, start_policy
from visurf_ray.assembly import exempt_from_collection
from visurf_ray.checkpoints.writing import Checkpoints
from visurf_ray.cluster.resources import connected
from visurf_ray.config.choices import WandbMode
from visurf_ray.config.load import load_config
from visurf_ray.config.schema import Config, to_dict
from visurf_ray.driver import Driver
from visurf_ray.feed.feed import DataFeed
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.models import load_processor
from visurf_ray.monitor import Monitor
from visurf_ray.rewards.pool import RewardPool
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.rollout.pool import RolloutPool
from visurf_ray.stages import build_stages
from visurf_ray.tasks.tasks import Tasks


@dataclass(frozen=True)
class Job:
    """Started actors, and drivers that share them."""

    data: DataFeed
    rollouts: RolloutPool
    learner: LearnerGroup
    processor: Any
    overrides: list[str]
    folder: Path

    def driver(self, *overrides: str) -> Driver:
        """A driver with other settings of the method or the pipeline; those of the actors stay."""
        config: Config = load_config([*self.overrides, *overrides])
        tasks = Tasks.of(config)
        with redirect_stdout(io.StringIO()):  # no progress lines between the results
            monitor = Monitor(
                Path(tempfile.mkdtemp(dir=self.folder)),
                config=to_dict(config),
                project="benchmark",
                wandb=WandbMode.disabled,
                total_steps=0,
            )
        rewards = {part: RewardSpec.of(each.reward) for part, each in config.parts.items()}
        return Driver(
            config,
            stages=build_stages(config, tasks, self.processor.tokenizer, rewards),
            score=tasks.score,
            data=self.data,
            rollouts=self.rollouts,
            rewards=RewardPool(config.reward, rewards, cluster_timeout=config.cluster.timeout),
            learner=self.learner,
            checkpoints=Checkpoints(self.folder / "checkpoints", 1),
            monitor=monitor,
        )


_ON_ONE_GPU = (
    "cluster.layout=colocated",
    "rollout.gpus=1",
    "rollout.dtype=bfloat16",
    "rollout.memory=0.3",
    "learner.gpus=1",
    "learner.dtype=bfloat16",
)


@contextmanager
def started(*overrides: str, device: str = "cpu") -> Iterator[Job]:
    """The default job's actors with `overrides`, in a Ray cluster of their own; on "cuda" they share one GPU."""
    overrides = (*_ON_ONE_GPU, *overrides) if device == "cuda" else overrides
    config = load_config(["eval.examples=1", "monitor.wandb=disabled", "monitor.samples_every=0", *overrides])
    processor = load_processor(config.model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(connected("local"))
        data = start_data(config)
        rollouts, learner = start_policy(config, processor, stack, reserve(config, stack))
        stack.enter_context(exempt_from_collection())
        yield Job(data, rollouts, learner, processor, list(overrides), folder)
