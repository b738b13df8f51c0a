"""The sections of the schema that say what is learnt: a task, the reward of its responses, the parts of a mixture."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from visurf_ray.aliases import Json
from visurf_ray.config.choices import OnError
from visurf_ray.config.fields import PathRule, Sources, path_field, within

MIXTURE = "mixture"  # the task.name of a run with several tasks


@dataclass
class TaskConfig:
    """A task: what `conf/task/NAME.yaml` has.

    Attributes:
        train: None if it is not set; a number is how many examples a drawn task makes.
        held_out: likewise.
    """

    name: str = MISSING
    # Only conf/task/custom.yaml has it.
    module: str | None = field(default=None, metadata={"path": PathRule(function=True)})
    train: Sources = field(default=MISSING, metadata={"path": PathRule(hub=True)})
    held_out: Sources = field(default=MISSING, metadata={"path": PathRule(hub=True), "free": True})
    absent_share: float | None = within(at_least=0, at_most=1)
    image_root: str | None = field(default=MISSING, metadata={"path": PathRule(address=True)})
    prompt: str | None = field(default=MISSING, metadata={"path": PathRule(ending=".jinja")})  # or a prompt's name
    system: str | None = field(default=None, metadata={"path": PathRule()})  # see ModelConfig: files need not name it
    outside_paths: bool = False  # likewise
    segmenter: str | None = path_field(hub=True, free=True)
    box_distance: float | None = within(above=0)
    point_distance: float | None = within(above=0)


@dataclass
class RunTaskConfig(TaskConfig):
    """The task of a run.

    Attributes:
        parts: of task=mixture alone, as a user writes them; `config.parts.resolve` makes each a PartConfig.
    """

    parts: dict[str, Json] = field(default_factory=dict)


@dataclass
class AnswersConfig:
    strict: bool = MISSING


@dataclass
class ScoringConfig:
    """What responses are scored by."""

    name: str | None = MISSING
    # Those of the reward that is named: conf/reward/NAME.yaml has them all.
    options: dict[str, Json] = field(default=MISSING, metadata={"path": PathRule(hub=True, keys=frozenset({"model"}))})
    weight: float = MISSING
    function: str | None = path_field(function=True)
    function_weight: float = MISSING


@dataclass
class RewardConfig(ScoringConfig):
    workers: int = within(at_least=1, free=True)
    gpus: float = within(at_least=0, free=True)
    timeout: float = within(above=0, free=True)
    on_error: OnError = MISSING


@dataclass
class PartConfig(TaskConfig):
    """A task among those that a run trains on.

    Attributes:
        weight: its share of the training examples, relative to the weights of the other parts.
    """

    weight: float = within(above=0)
    reward: ScoringConfig = MISSING
