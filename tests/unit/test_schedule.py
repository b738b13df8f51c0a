"""The learning rate of each step: transformers' schedules, stage by stage, and independent of where a run resumes."""

import math

import pytest
import torch
from transformers import get_scheduler

from tests.unit.conftest import composed
from visurf_ray.config.choices import Schedule
from visurf_ray.config.stages import StagePlan, plan_stages
from visurf_ray.learner.schedule import learning_rates

PEAK, STEPS, WARMUP, FLOOR = 3e-4, 20, 4, 0.1


def by_formula(schedule: str, step: int) -> float:
    """Independent of transformers."""
    if step < WARMUP:
        return PEAK * step / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]
    return PEAK * falling if schedule == "constant" else PEAK * (FLOOR + (1 - FLOOR) * falling)


@pytest.mark.parametrize("schedule", list(Schedule))
def test_the_rates_are_those_of_the_formula(schedule):
    rate = learning_rates(schedule, peak=PEAK, steps=STEPS, warmup_steps=WARMUP, floor=FLOOR)
    assert [rate(step) for step in range(STEPS + 1)] == pytest.approx(
        [by_formula(schedule, step) for step in range(STEPS + 1)], rel=1e-12
    )
    assert rate(0) == 0.0 and rate(WARMUP) == pytest.approx(PEAK)


@pytest.mark.parametrize(
    ("schedule", "name", "arguments"),
    [
        (Schedule.constant, "constant_with_warmup", {}),
        (Schedule.linear, "linear", {}),
        (Schedule.cosine, "cosine", {}),
        (Schedule.cosine, "cosine_with_min_lr", {"min_lr_rate": FLOOR}),
    ],
)
def test_the_rates_are_those_that_a_trainer_of_transformers_has(schedule, name, arguments):
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, WARMUP, STEPS, scheduler_specific_kwargs=arguments)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    floor = arguments.get("min_lr_rate", 0.0)
    rate = learning_rates(schedule, peak=PEAK, steps=STEPS, warmup_steps=WARMUP, floor=floor)
    assert [rate(step) for step in range(STEPS)] == pytest.approx(expected, rel=1e-12)


def test_the_default_rate_is_constant_and_exact():
    config = composed().learner
    rate = learning_rates(config.schedule, peak=6e-5, steps=80, warmup_steps=config.warmup_steps, floor=0.0)
    assert {rate(step) for step in range(80)} == {6e-5}


# Stages


def test_a_run_has_one_stage_unless_sft_comes_first():
    assert plan_stages(composed()) == [StagePlan(0, 80, 16, 6e-5)]
    assert plan_stages(composed("method=sft")) == [StagePlan(0, 80, 16, 6e-5)]


def test_stages_share_batch_size_and_rate_unless_sft_has_its_own():
    shared = plan_stages(composed("method=sft_then_rlvr", "method.sft_steps=30"))
    assert shared == [StagePlan(0, 30, 16, 6e-5, is_sft=True), StagePlan(30, 80, 16, 6e-5)]
    own = plan_stages(composed("method=sft_then_rlvr", "method.sft_batch_size=32", "method.sft_learning_rate=1e-5"))
    assert own == [StagePlan(0, 40, 32, 1e-5, is_sft=True), StagePlan(40, 80, 16, 6e-5)]
    assert [stage.steps for stage in own] == [40, 40]
