"""The stages of a run: steps that share a method, a batch size and a schedule of the learning rate."""

from dataclasses import dataclass

from visurf_ray.config.schema import Config


@dataclass(frozen=True)
class StagePlan:
    """The settings of one stage.

    Attributes:
        first: its first step; steps count from 0.
        last: the step after its last one.
        batch_size: prompts in a step.
        learning_rate: before its schedule is applied.
        is_sft: whether it is SFT on the labels, before the stage of the method itself.
    """

    first: int
    last: int
    batch_size: int
    learning_rate: float
    is_sft: bool = False

    @property
    def steps(self) -> int:
        return self.last - self.first


def plan_stages(config: Config) -> list[StagePlan]:
    """Return the stages of a run in order: the method's own, and before it one of SFT if method.sft_steps is set."""
    method, train, rate = config.method, config.train, config.learner.learning_rate
    main = StagePlan(method.sft_steps, train.steps, train.batch_size, rate)
    if not method.sft_steps:
        return [main]
    sft_batch_size = train.batch_size if method.sft_batch_size is None else method.sft_batch_size
    sft_rate = rate if method.sft_learning_rate is None else method.sft_learning_rate
    return [StagePlan(0, method.sft_steps, sft_batch_size, sft_rate, is_sft=True), main]
