"""What a run scores responses by: a reward by name, a user's own function, or both, each with its weight."""

from dataclasses import dataclass, field, replace
from typing import Any

from visurf_ray.config.schema import RewardConfig
from visurf_ray.errors import ConfigError, UserError
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.function import absolute, load_function
from visurf_ray.rewards.reward import Reward, RewardFunction, needs_image


@dataclass(frozen=True)
class RewardSpec:
    """Plain data, which the reward actors make the reward of. `name` or `function` may be None, not both."""

    name: str | None
    options: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    function: str | None = None
    function_weight: float = 1.0
    needs_image: bool = False  # whether the reward is to be called with `image=`

    @staticmethod
    def of(config: RewardConfig) -> "RewardSpec":
        """What is not there is told now, and not by an actor. Raises UserError like `load`, and ConfigError where there
        is neither reward nor function: a task may come without a reward, and be evaluated alone.
        """
        if config.name is None and config.function is None:
            raise ConfigError(
                "reward.name and reward.function are both null: there is nothing to score responses by. "
                "Choose `reward=…`, or set reward.function=module:function"
            )
        function = None if config.function is None else absolute(config.function)
        spec = RewardSpec(config.name, config.options, config.weight, function, config.function_weight)
        return replace(spec, needs_image=any(needs_image(reward) for reward, _ in spec._terms()))

    def load(self) -> RewardFunction:
        """The reward; its parts are those of both, each times its weight.

        Raises UserError for a name, an option or a function that is not there; the reward raises it where both have a
        part of one name.
        """
        terms = self._terms()

        def score(response: str, ground_truth: str, image: Any = None) -> Reward:
            parts: dict[str, float] = {}
            for reward, weight in terms:
                seen = {"image": image} if needs_image(reward) else {}
                for part, value in reward(response, ground_truth, **seen).parts.items():
                    if part in parts:
                        raise UserError(
                            f"reward.function={self.function} has a part {part!r}, as reward.name={self.name} has: "
                            "give it another name"
                        )
                    parts[part] = weight * value
            return Reward(parts)

        return score

    def _terms(self) -> list[tuple[RewardFunction, float]]:
        terms = []
        if self.name is not None:
            terms.append((load_reward(self.name, **self.options), self.weight))
        if self.function is not None:
            terms.append((load_function(self.function), self.function_weight))
        return terms
