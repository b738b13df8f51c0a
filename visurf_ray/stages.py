"""The stages of a run: the method, batch size and learning rate of each step."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from visurf_ray.aliases import Tokenizer
from visurf_ray.config.schema import Config
from visurf_ray.config.stages import StagePlan, plan_stages
from visurf_ray.learner.schedule import learning_rates
from visurf_ray.method import Importance, Method, sft_stage
from visurf_ray.tasks.task import Task


@dataclass(frozen=True)
class Stage:
    """Consecutive steps with one method.

    Attributes:
        plan: its steps and its batch size.
        learning_rate: of a step; steps count from 0 in the stage.
    """

    plan: StagePlan
    method: Method
    learning_rate: Callable[[int], float]


def build_stages(config: Config, task: Task, tokenizer: Tokenizer, thinking_parts: Collection[str]) -> list[Stage]:
    """Return the stages of a run.

    Args:
        task: writes the labels; the tokenizer encodes them.
        thinking_parts: as for `Method`.
    """

    def encode(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]

    def build(plan: StagePlan) -> Stage:
        method = Method(
            sft_stage(config.method) if plan.is_sft else config.method,
            render=task.label,
            encode=encode,
            styles=task.styles,
            longest=config.rollout.max_tokens,
            thinking_parts=thinking_parts,
            importance=Importance.of(config.pipeline),
        )
        learning_rate = learning_rates(
            config.learner.schedule,
            peak=plan.learning_rate,
            steps=plan.steps,
            warmup_steps=config.learner.warmup_steps,
            floor=config.learner.learning_rate_floor,
        )
        return Stage(plan, method, learning_rate)

    return [build(plan) for plan in plan_stages(config)]
