"""What a run scores responses by: a reward by name, a user's own function, or both, each with its weight."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from visurf_ray.config import ConfigError, RewardConfig
from visurf_ray.errors import UserError
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.function import absolute, load_function
from visurf_ray.rewards.reward import Reward, RewardFunction


@dataclass(frozen=True)
class RewardSpec:
    """Plain data, which the reward actors make the reward of. `name` or `function` may be None, not both."""

    name: str | None
    options: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    function: str | None = None
    function_weight: float = 1.0

    @staticmethod
    def of(config: RewardConfig) -> "RewardSpec":
        """Raises ConfigError where there is neither: a task may come without a reward, and be evaluated alone."""
        if config.name is None and config.function is None:
            raise ConfigError(
                "reward.name and reward.function are both null: there is nothing to score responses by. "
                "Choose `reward=…`, or set reward.function=module:function"
            )
        options: dict[str, Any] = OmegaConf.to_container(config.options, resolve=True)  # type: ignore[assignment]
        function = None if config.function is None else absolute(config.function)
        return RewardSpec(config.name, options, config.weight, function, config.function_weight)

    def load(self) -> RewardFunction:
        """The reward; its parts are those of both, each times its weight.

        Raises UserError for a name, an option or a function that is not there; the reward raises it where both have a
        part of one name.
        """
        terms = []
        if self.name is not None:
            terms.append((load_reward(self.name, **self.options), self.weight))
        if self.function is not None:
            terms.append((load_function(self.function), self.function_weight))

        def score(response: str, ground_truth: str) -> Reward:
            parts: dict[str, float] = {}
            for reward, weight in terms:
                for part, value in reward(response, ground_truth).parts.items():
                    if part in parts:
                        raise UserError(
                            f"reward.function={self.function} has a part {part!r}, as reward.name={self.name} has: "
                            "give it another name"
                        )
                    parts[part] = weight * value
            return Reward(parts)

        return score
