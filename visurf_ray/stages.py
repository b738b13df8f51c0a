"""The stages of a run: the method, batch size and learning rate of each step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from visurf_ray.aliases import Tokenizer
from visurf_ray.config.schema import Config
from visurf_ray.config.stages import StagePlan, plan_stages
from visurf_ray.learner.schedule import learning_rates
from visurf_ray.method import Importance, Method, Part, sft_stage
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.tasks.tasks import Tasks


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


def build_stages(config: Config, tasks: Tasks, tokenizer: Tokenizer, rewards: Mapping[str, RewardSpec]) -> list[Stage]:
    """Return the stages of a run.

    Args:
        tasks: write the labels; the tokenizer encodes them.
        rewards: the reward of each part; without any, groups have no rollouts.
    """
    parts = {}
    for name, task in tasks.parts.items():
        reward = rewards.get(name, RewardSpec())
        parts[name] = Part(task.styles, reward.thinking_parts, reward.solved)

    def encode(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]

    def build(plan: StagePlan) -> Stage:
        method = Method(
            sft_stage(config.method) if plan.is_sft else config.method,
            render=tasks.label,
            encode=encode,
            parts=parts,
            longest=config.rollout.max_tokens,
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
