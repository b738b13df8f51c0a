"""The actors of a whole job, for benchmarks that time its steps."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from visurf_ray.assembly import (
    build_methods,
    start_data,
    start_learner,
    start_rollouts,
    wait_for,
)
from visurf_ray.checkpoints import Checkpoints
from visurf_ray.cluster.resources import connected
from visurf_ray.config import Config, load_config
from visurf_ray.driver import Driver
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.models import load_processor
from visurf_ray.monitor import Monitor
from visurf_ray.rewards.pool import RewardPool
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.rollout.pool import RolloutPool
from visurf_ray.tasks import load_task
from visurf_ray.tasks.feed import DataFeed


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
        task = load_task(config.task, config.seed)
        with redirect_stdout(io.StringIO()):  # no progress lines between the results
            monitor = Monitor(
                Path(tempfile.mkdtemp(dir=self.folder)),
                config=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
                project="benchmark",
                wandb="disabled",
                total_steps=0,
            )
        return Driver(
            config,
            task=task,
            methods=build_methods(config, task, self.processor.tokenizer),
            data=self.data,
            rollouts=self.rollouts,
            rewards=RewardPool(config.reward, RewardSpec.of(config.reward)),
            learner=self.learner,
            checkpoints=Checkpoints(self.folder / "checkpoints", 1),
            monitor=monitor,
        )


@contextmanager
def started(*overrides: str) -> Iterator[Job]:
    """The default job's actors with `overrides`, in a Ray cluster of their own."""
    config = load_config(["eval.examples=1", "monitor.wandb=disabled", "monitor.samples_every=0", *overrides])
    processor = load_processor(config.model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(connected("local"))
        data = start_data(config)
        rollouts = start_rollouts(config)
        stack.callback(rollouts.shut_down)
        learner = start_learner(config, processor.tokenizer)
        wait_for(rollouts, config)
        learner.connect(rollouts.actors, config.rollout.gpus * config.rollout.workers)
        yield Job(data, rollouts, learner, processor, list(overrides), folder)
