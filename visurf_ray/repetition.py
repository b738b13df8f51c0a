"""Repetition of a step from its dump, with a learner alone: no engines, no data, no rewards."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from visurf_ray.actors import start_learner_alone
from visurf_ray.cluster.resources import connected
from visurf_ray.config.schema import ReplayConfig
from visurf_ray.config.stages import StagePlan, plan_stages
from visurf_ray.config.stored import learner_config
from visurf_ray.dumps import DumpError, find_start, read_dump
from visurf_ray.groups import Group, Metrics, Source
from visurf_ray.learner.group import LearnerGroup, read_groups
from visurf_ray.learner.metrics import StepReport, summarise
from visurf_ray.models import check_model, load_processor, model_config
from visurf_ray.resume_checks import read_learnt


@dataclass(frozen=True)
class Alone:
    """What an update on one group alone shows, by the policy before the step.

    Attributes:
        id: of its example.
        not_finite: names what is not finite.
    """

    id: str
    loss: float
    grad_norm: float
    not_finite: list[str]


@dataclass(frozen=True)
class Repeated:
    """What repeating a step has shown.

    Attributes:
        step: its number, from 1.
        policy: the folder of the checkpoint that it was repeated from; None: the initial policy.
        steps_before: how many steps of the run lie between this policy and the step.
        metrics: of the update. They are means over the optimiser steps, also over those that were not taken.
        logged: what the run has logged of the step in metrics.jsonl; empty if it has not.
        groups: each alone.
    """

    step: int
    policy: Path | None
    steps_before: int
    metrics: Metrics
    logged: Metrics
    groups: list[Alone]


def repeat(given: ReplayConfig, overrides: Sequence[str]) -> Repeated:
    """Repeat the step of a dump as the run has made it, then learn from each group alone.

    Args:
        overrides: of the command line, for settings of the run that are changed.

    Raises:
        DumpError: the dump, or the checkpoint to start from, is missing, damaged or of another version.
    """
    folder = Path(str(given.dump)).resolve()
    dump = read_dump(folder)
    config = learner_config(dump.config, given, overrides)
    start, done = find_start(dump, folder, given.checkpoint)
    if start:
        read_learnt(start, config)
    check_model(config.model.path)
    # Before the processor: this tells a family that transformers does not have.
    model_config(config.model)
    processor = load_processor(config.model)
    with ExitStack() as stack:
        stack.enter_context(connected(config.cluster.address))
        groups = _groups(folder)
        learner = start_learner_alone(config, processor, stack)
        learner.set_packing(dump.packing)
        takes_reference = 0 < done == _stage_begin(dump.step, plan_stages(config))
        if start:
            _go_to(learner, start, takes_reference)
        number = dump.step - 1
        means = learner.mean_logprobs(groups)
        reports = learner.reports(groups, dump.loss, dump.learning_rate, step=number)
        if not all(report.skipped for report in reports[0]):  # the policy has changed
            _go_to(learner, start, takes_reference)
        alone = [learner.reports([group], dump.loss, 0.0, step=number, minibatches=1) for group in groups]
    return Repeated(
        dump.step,
        start,
        number - done,
        _metrics(reports),
        _logged(folder.parent.parent / "metrics.jsonl", dump.step),
        [_alone(*found) for found in zip(groups, means, map(_metrics, alone), strict=True)],
    )


def _groups(folder: Path) -> list[Group]:
    try:
        return read_groups(folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DumpError(f"dump={folder}: its groups are of another version of visurf_ray: {error!r}") from error


def _stage_begin(step: int, stages: Sequence[StagePlan]) -> int:
    """Return how many steps come before the stage of a step."""
    return next(stage.first for stage in stages if step <= stage.last)


def _go_to(learner: LearnerGroup, start: Path | None, takes_reference: bool) -> None:
    """Give the learner the state of a checkpoint, or that of the run's start."""
    if start:
        learner.load(start)
    else:
        learner.restart(None)
    if takes_reference:  # the checkpoint was written before the driver has done it
        learner.take_reference()


def _metrics(reports: Sequence[Sequence[StepReport]]) -> Metrics:
    return summarise([[replace(report, skipped=False) for report in rank] for rank in reports])


def _logged(file: Path, step: int) -> Metrics:
    if not file.is_file():
        return {}
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return next((row for row in rows if row["step"] == step and "train/loss" in row), {})


def _alone(group: Group, means: Sequence[float], metrics: Metrics) -> Alone:
    return Alone(
        group.example.id, metrics["train/loss"], metrics["train/grad_norm"], list(_not_finite(group, means, metrics))
    )


def _not_finite(group: Group, means: Sequence[float], metrics: Metrics) -> Iterator[str]:
    """Yield what is not finite of a group: values of its responses, then its loss and its gradient."""
    rollouts = 0
    for response, mean in zip(group.responses, means, strict=True):
        rollouts += response.source is Source.ROLLOUT
        name = f"rollout {rollouts}" if response.source is Source.ROLLOUT else "label"
        values = {"reward": response.reward, "advantage": response.advantage, "mean log-prob": mean}
        yield from (f"{what} of {name}: {value}" for what, value in values.items() if not math.isfinite(value))
    for name in ("loss", "grad_norm"):
        if not math.isfinite(value := metrics[f"train/{name}"]):
            yield f"{name}: {value}"
