"""The typed schema of `conf/`: types and bounds. The YAML files have the values, and say what they mean.

OmegaConf checks types and choices when it composes; `rules.check` checks bounds. Imports neither hydra nor torch.
"""

import re
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from enum import Enum

from omegaconf import MISSING

from visurf_ray.aliases import Json
from visurf_ray.config.choices import (
    Aggregation,
    Clip,
    ComparedWith,
    CoordinateUnit,
    Dtype,
    HeadDtype,
    ImportanceLevel,
    LabelStyle,
    LabelTerm,
    LabelThinking,
    Layout,
    OnBad,
    OnBadBox,
    OnError,
    OnExcess,
    OnLong,
    Overlong,
    Packing,
    QuestionForm,
    RatioLevel,
    Resize,
    Route,
    Schedule,
    WandbMode,
)
from visurf_ray.config.fields import Bounds, free, path_field, within
from visurf_ray.config.task_schema import (
    MIXTURE,
    AnswersConfig,
    PartConfig,
    RewardConfig,
    RunTaskConfig,
    TaskConfig,
)

OPEN_SECTIONS = ("task.parts", "eval.sets")  # whose keys are names of the user's


# Sections


@dataclass
class TrainConfig:
    steps: int = within(at_least=0)
    batch_size: int = within(at_least=1)
    resume: str | None = path_field(words=("auto",), free=True)
    checkpoint_every: int = within(at_least=0, free=True)
    grace: float = within(at_least=0, free=True)
    on_nan: OnError = free()
    dump_steps: list[int] = field(default=MISSING, metadata={"free": True, "example": "[3, 57]"})
    async_checkpoint: bool = free()
    keep_checkpoints: int = within(at_least=1, free=True)
    keep_best: str | None = free()
    export: bool = free()
    push_to_hub: str | None = free()
    dry_run: bool = free()
    resume_override: bool = free()


@dataclass
class EvalConfig:
    every: int = within(at_least=0)
    examples: int | None = within(at_least=1)
    max_tokens: int = within(at_least=1)
    n: int = within(at_least=1)
    temperature: float = within(at_least=0, at_most=2)  # vLLM's limit
    samples: int = within(at_least=0)
    segmenter_gpus: float = within(at_least=0)
    sets: dict[str, Json] = MISSING  # as a user writes them; `config.parts.resolve` makes each a TaskConfig


@dataclass
class FeedConfig:
    workers: int = within(at_least=1, free=True)
    check: str = MISSING
    cache: str | None = path_field(free=True)
    on_bad_box: OnBadBox = MISSING
    on_long: OnLong = MISSING
    on_bad: OnBad = MISSING
    curriculum: int | None = within(at_least=1)

    @property
    def checked_rows(self) -> int | None:
        """How many rows of each split are checked before the run, the first ones; None: all."""
        return {"all": None, "off": 0}[self.check] if not self.check.isdecimal() else int(self.check)

    @property
    def drops(self) -> bool:
        """Whether rows of some kind are dropped."""
        return "drop" in (self.on_bad_box, self.on_long, self.on_bad)


@dataclass
class RolloutConfig:
    workers: int = within(at_least=1, free=True)
    n: int = within(at_least=0)
    temperature: float = within(above=0, at_most=2)  # vLLM's limit
    max_tokens: int = within(at_least=1)
    max_model_len: int = within(at_least=2)
    max_in_flight: int = within(at_least=1, free=True)
    logprobs_every: int = within(at_least=1, free=True)
    oversample: int = within(at_least=0)
    gpus: int = within(at_least=0, free=True)
    cpus: float = within(at_least=0, free=True)
    dtype: Dtype = MISSING
    memory: float = within(above=0, free=True)
    enforce_eager: bool = free()
    sleep_level: int = within(at_least=1, at_most=2, free=True)
    deterministic: bool = free()


@dataclass
class LoraConfig:
    rank: int = within(at_least=0, at_most=512)  # vLLM's limit
    alpha: float = within(above=0)
    dropout: float = within(at_least=0, below=1)
    targets: list[str] | None = field(default=MISSING, metadata={"example": "[q_proj, v_proj]"})


@dataclass
class LearnerConfig:
    ranks: int = within(at_least=1, free=True)
    zero_stage: int = within(at_least=1, at_most=3, free=True)
    offload: bool = free()
    freeze_vision: bool = MISSING
    freeze_projector: bool = MISSING
    lora: LoraConfig = MISSING
    learning_rate: float = within(at_least=0, at_most=1)
    schedule: Schedule = MISSING
    warmup_steps: int = within(at_least=0)
    learning_rate_floor: float = within(at_least=0, below=1)
    weight_decay: float = within(at_least=0)
    adam_betas: list[float] = field(default=MISSING, metadata={"example": "[0.9, 0.999]"})
    max_grad_norm: float = within(at_least=0)
    packing: Packing = free()
    max_tokens_per_micro_batch: int = within(at_least=1, free=True)
    logprob_chunk: int = within(at_least=1, free=True)
    minibatches: int = within(at_least=1)
    epochs: int = within(at_least=1)
    gradient_checkpointing: bool = free()
    gpus: int = within(at_least=0, at_most=1, free=True)  # more GPUs are more ranks
    cpus: float = within(at_least=0, free=True)
    dtype: Dtype = MISSING
    head_dtype: HeadDtype = MISSING


@dataclass
class ClusterConfig:
    address: str = MISSING
    layout: Layout = MISSING
    start_timeout: float = within(above=0)
    timeout: float = within(above=0, at_most=10 * 24 * 3600)
    health_timeout: float = within(above=0)
    max_restarts: int = within(at_least=0)
    gpu_memory: float | None = within(above=0)
    gpus_per_node: int = within(at_least=1)


@dataclass
class MonitorConfig:
    project: str = MISSING
    wandb: WandbMode = MISSING
    samples: int = within(at_least=0)
    samples_every: int = within(at_least=0)
    warn_logprob_diff: float | None = within(above=0)
    warn_equal_rewards: int | None = within(at_least=1)
    paper_row: str | None = MISSING


@dataclass
class MuConfig:
    peak: float | None = within(at_least=0, at_most=1)
    valley: float = within(at_least=0, at_most=1)
    warmup: int = within(at_least=0)
    decay: int = within(at_least=0)


@dataclass
class MethodConfig:
    name: str = MISSING
    rollouts: bool = MISSING
    label: bool = MISSING
    eliminate: bool = MISSING
    smooth: bool = MISSING
    style: LabelStyle = MISSING
    style_every: int = within(at_least=1)
    label_thinking: LabelThinking = MISSING
    label_gate: bool = MISSING
    route: Route = MISSING
    route_share: float = within(at_least=0, below=1)
    advantage_from: ComparedWith = MISSING
    advantage_std: bool = MISSING
    advantage_ddof: int = within(at_least=0, at_most=1)
    advantage_eps: float = within(at_least=0)
    ratio: RatioLevel = MISSING
    clip: Clip = MISSING
    clip_low: float = within(at_least=0, at_most=1)
    clip_high: float = within(at_least=0)
    dual_clip: float | None = within(above=1)
    tau_positive: float = within(above=0)
    tau_negative: float = within(above=0)
    aggregation: Aggregation = MISSING
    label_term: LabelTerm = MISSING
    label_coef: float = within(at_least=0)
    label_decay: int | None = within(at_least=1)
    mu: MuConfig = MISSING
    shaping: float = within(above=0)
    entropy_coef: float = MISSING
    kl_coef: float = within(at_least=0)
    dynamic_sampling: bool = MISSING
    max_refills: int = within(at_least=0)
    overlong: Overlong = MISSING
    overlong_buffer: float = within(above=0, at_most=1)
    overlong_penalty: float = within(at_least=0)
    sft_steps: int = within(at_least=0)
    sft_batch_size: int | None = within(at_least=1)
    sft_learning_rate: float | None = within(at_least=0, at_most=1)


@dataclass
class ModelSource:
    """Where a model is, and whether code that comes with it may run."""

    path: str = path_field(hub=True, words=("miniature",))
    trust_remote_code: bool = field(default=False, metadata={"free": True})


@dataclass
class ModelConfig(ModelSource):
    max_pixels: int | None = within(at_least=1)
    # With defaults, so that files of models that users have need not name them; conf/config.yaml says what they mean.
    coordinates: CoordinateUnit = CoordinateUnit.auto
    resize: Resize = Resize.smart
    square_side: int = field(default=840, metadata={"bounds": Bounds(at_least=28)})
    question: QuestionForm = QuestionForm.as_is


@dataclass
class PipelineConfig:
    max_staleness: int = within(at_least=0)
    importance: ImportanceLevel = MISSING
    importance_low: float = within(at_least=0)
    importance_high: float = within(above=0)
    on_excess: OnExcess = MISSING


@dataclass
class Config:
    """A whole run. See `conf/config.yaml`."""

    seed: int = within(at_least=0, at_most=2**31 - 1)  # what every library takes
    output_dir: str = path_field(free=True)
    train: TrainConfig = MISSING
    rollout: RolloutConfig = MISSING  # before eval, which takes max_tokens from it: messages name the first key
    eval: EvalConfig = free()
    feed: FeedConfig = MISSING
    learner: LearnerConfig = MISSING
    cluster: ClusterConfig = free()
    monitor: MonitorConfig = free()
    method: MethodConfig = MISSING
    model: ModelConfig = MISSING
    task: RunTaskConfig = MISSING
    answers: AnswersConfig = MISSING
    reward: RewardConfig = MISSING
    pipeline: PipelineConfig = MISSING

    @property
    def colocated(self) -> bool:
        return self.cluster.layout == Layout.colocated

    @property
    def parts(self) -> dict[str, PartConfig]:
        """The tasks that the run trains on, by name. One task that is no mixture has the name ''."""
        if self.task.name == MIXTURE:
            return self.task.parts
        settings = {item.name: getattr(self.task, item.name) for item in fields(TaskConfig)}
        return {"": PartConfig(**settings, weight=1.0, reward=self.reward)}

    @property
    def segmenter(self) -> str | None:
        """The SAM2 model of evaluations: all parts and sets that have masks share one."""
        return next(
            (each.segmenter for each in (*self.parts.values(), *self.eval.sets.values()) if each.segmenter), None
        )


Rule = Callable[[Config], str | None]  # returns why a configuration contradicts itself; None if it does not


@dataclass
class EvaluateConfig(Config):
    """`conf/evaluate.yaml`: a run's configuration, and what to evaluate."""

    checkpoint: str | None = path_field(hub=True, words=("miniature",))
    predictions: str | None = path_field()


@dataclass
class ReplayConfig(Config):
    """`conf/replay.yaml`: the dump of a step, and settings that replace those of its run."""

    dump: str | None = path_field()
    checkpoint: str | None = path_field()


@dataclass
class CheckDataConfig(Config):
    """`conf/check_data.yaml`: a run's configuration, and the data set to look at."""

    check: str | None = path_field(hub=True)


COMMANDS = (EvaluateConfig, ReplayConfig, CheckDataConfig)  # the schemas of the entry points beside train


def declared(key: str) -> Field[object] | None:
    """Return the field of a dotted key; None for a key that the schema does not have."""
    if within_part := re.match(rf"({'|'.join(map(re.escape, OPEN_SECTIONS))})\.[^.]+\.(.+)", key):
        rest = within_part[2]
        key = rest if rest.startswith("reward.") else f"task.{rest}"
    return next((item for each in COMMANDS if (item := _field(each, key))), None)


def is_free(key: str) -> bool:
    """Return whether a resumed run may change a dotted key: its field, or that of a section it is in, is `free`."""
    names = key.split(".")
    found = [declared(".".join(names[:count])) for count in range(1, len(names) + 1)]
    return any(field.metadata.get("free", False) for field in found if field)


def _field(section: object, key: str) -> Field[object] | None:
    name, _, rest = key.partition(".")
    found = next((item for item in fields(section) if item.name == name), None) if is_dataclass(section) else None
    return _field(found.type, rest) if found and rest else found


def to_dict(config: Config) -> dict[str, object]:
    """Return the configuration as nested dicts, with choices by their names."""

    def plain(items: list[tuple[str, object]]) -> dict[str, object]:
        return {key: value.name if isinstance(value, Enum) else value for key, value in items}

    return asdict(config, dict_factory=plain)
