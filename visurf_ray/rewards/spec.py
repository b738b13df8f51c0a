"""What a run scores responses by: a reward by name, a user's own function, or both, each with its weight."""

import math
from dataclasses import dataclass, field, replace

from PIL import Image

from visurf_ray.answers.lenient import as_strict
from visurf_ray.config.task_schema import ScoringConfig
from visurf_ray.errors import ConfigError, UserError, short
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.function import UserReward, load_function
from visurf_ray.rewards.reward import Reward, RewardFunction, needs_image, solved_at, thinking_parts


@dataclass(frozen=True)
class RewardSpec:
    """Describes a reward as plain data, from which each reward actor loads it.

    Attributes:
        name: The named reward, or None.
        options: Its settings.
        weight: The factor of its parts.
        function: The user's function as `module:function` or `/path/to/file.py:function`, or None.
        function_weight: The factor of its parts.
        strict: Whether the named reward reads valid JSON only (see `answers.lenient`). The user's function always gets
            the response as it is.
        needs_image: Whether the loaded reward must be called with the image. Set by `of`.
        thinking_parts: The parts that reward thinking, as the rewards themselves declare. Set by `of`.
        solved: The least weighted value of parts with which a response is right, likewise. Set by `of`.
    """

    name: str | None = None
    options: dict[str, object] = field(default_factory=dict)
    weight: float = 1.0
    function: str | None = None
    function_weight: float = 1.0
    strict: bool = True
    needs_image: bool = False
    thinking_parts: tuple[str, ...] = ()
    solved: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(config: ScoringConfig, *, strict: bool = True) -> "RewardSpec":
        """Return the specification of a run's reward. Its errors are reported here, before any actor starts.

        Args:
            config: The reward's settings.
            strict: The value of answers.strict.

        Raises:
            ConfigError: There is neither a reward nor a function.
            UserError: The reward cannot be loaded (see `load`).
        """
        if config.name is None and config.function is None:
            raise ConfigError(
                "reward.name and reward.function are both null: there is nothing to score responses by. "
                "Choose `reward=…`, set reward.function=module:function, or train with method=sft, which needs none"
            )
        spec = RewardSpec(config.name, config.options, config.weight, config.function, config.function_weight, strict)
        terms = spec._terms()
        rewards = [reward for reward, _ in terms]
        return replace(
            spec,
            needs_image=any(map(needs_image, rewards)),
            thinking_parts=tuple(part for reward in rewards for part in thinking_parts(reward)),
            solved={
                part: weight * least
                for reward, weight in terms
                for part, least in solved_at(reward).items()
                if weight > 0
            },
        )

    def load(self) -> RewardFunction:
        """Return the reward function. Its parts are those of the named reward and of the user's function, weighted.

        The function raises UserError if both have a part of the same name, or if their sum is not finite.

        Raises:
            UserError: The name, an option or the function does not exist or cannot be used.
        """
        terms = self._terms()

        def score(response: str, ground_truth: str, image: Image.Image | None = None) -> Reward:
            parts: dict[str, float] = {}
            mended = response if self.strict else as_strict(response)
            for reward, weight in terms:
                text = response if isinstance(reward, UserReward) else mended
                seen = {"image": image} if needs_image(reward) else {}
                for part, value in reward(text, ground_truth, **seen).parts.items():
                    if part in parts:
                        raise UserError(
                            f"reward.function={self.function} has a part {part!r}, as reward.name={self.name} has: "
                            "give it another name"
                        )
                    parts[part] = weight * value
            if not math.isfinite(Reward(parts).total):  # weighted, or added up, they exceed the numbers
                raise UserError(f"the reward is not finite: {short(parts, 200)}")
            return Reward(parts)

        return score

    def _terms(self) -> list[tuple[RewardFunction, float]]:
        """Load the named reward and the user's function, each with its weight."""
        terms = []
        if self.name is not None:
            terms.append((load_reward(self.name, **self.options), self.weight))
        if self.function is not None:
            terms.append((load_function(self.function), self.function_weight))
        return terms
