"""The typed schema of `conf/`: types and bounds. Values, and what they mean, are in the YAML files alone.

OmegaConf checks types and choices when it composes; `rules.check` checks bounds. Imports neither hydra nor torch.
"""

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from visurf_ray.config.choices import (
    Aggregation,
    Clip,
    ComparedWith,
    Dtype,
    HeadDtype,
    ImportanceLevel,
    LabelStyle,
    LabelTerm,
    LabelThinking,
    Layout,
    OnBadBox,
    OnError,
    OnExcess,
    OnLong,
    Overlong,
    RatioLevel,
    Route,
    Schedule,
    WandbMode,
)


@dataclass(frozen=True)
class Bounds:
    """What a number must be: at least, at most, above, below; None sets no bound."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None


def within(
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field that `conf/` must set to a number within these bounds, or to null where its type allows it."""
    return field(default=MISSING, metadata={"bounds": Bounds(at_least, at_most, above, below)})


# Sections


@dataclass
class TrainConfig:
    steps: int = within(at_least=0)
    batch_size: int = within(at_least=1)
    resume: str | None = MISSING
    checkpoint_every: int = within(at_least=0)
    keep_checkpoints: int = within(at_least=1)
    export: bool = MISSING
    dry_run: bool = MISSING


@dataclass
class EvalConfig:
    every: int = within(at_least=0)
    examples: int | None = within(at_least=1)
    max_tokens: int = within(at_least=1)
    segmenter_gpus: float = within(at_least=0)


@dataclass
class FeedConfig:
    on_bad_box: OnBadBox = MISSING
    on_long: OnLong = MISSING


@dataclass
class RolloutConfig:
    workers: int = within(at_least=1)
    n: int = within(at_least=0)
    temperature: float = within(above=0, at_most=2)  # vLLM's limit
    max_tokens: int = within(at_least=1)
    max_model_len: int = within(at_least=2)
    max_in_flight: int = within(at_least=1)
    logprobs_every: int = within(at_least=1)
    oversample: int = within(at_least=0)
    gpus: int = within(at_least=0)
    cpus: float = within(at_least=0)
    dtype: Dtype = MISSING
    memory: float = within(above=0)
    enforce_eager: bool = MISSING
    sleep_level: int = within(at_least=1, at_most=2)


@dataclass
class LoraConfig:
    rank: int = within(at_least=0, at_most=512)  # vLLM's limit
    alpha: float = within(above=0)
    dropout: float = within(at_least=0, below=1)
    targets: list[str] | None = MISSING


@dataclass
class LearnerConfig:
    ranks: int = within(at_least=1)
    zero_stage: int = within(at_least=1, at_most=3)
    offload: bool = MISSING
    freeze_vision: bool = MISSING
    freeze_projector: bool = MISSING
    lora: LoraConfig = MISSING
    learning_rate: float = within(at_least=0)
    schedule: Schedule = MISSING
    warmup_steps: int = within(at_least=0)
    learning_rate_floor: float = within(at_least=0, below=1)
    weight_decay: float = within(at_least=0)
    adam_betas: list[float] = MISSING
    max_grad_norm: float = within(at_least=0)
    max_tokens_per_micro_batch: int = within(at_least=1)
    logprob_chunk: int = within(at_least=1)
    minibatches: int = within(at_least=1)
    epochs: int = within(at_least=1)
    gradient_checkpointing: bool = MISSING
    gpus: int = within(at_least=0, at_most=1)  # more GPUs are more ranks
    cpus: float = within(at_least=0)
    dtype: Dtype = MISSING
    head_dtype: HeadDtype = MISSING


@dataclass
class ClusterConfig:
    address: str = MISSING
    layout: Layout = MISSING
    start_timeout: float = within(above=0)


@dataclass
class MonitorConfig:
    project: str = MISSING
    wandb: WandbMode = MISSING
    samples: int = within(at_least=0)
    samples_every: int = within(at_least=0)
    warn_logprob_diff: float | None = within(above=0)
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
    sft_learning_rate: float | None = within(at_least=0)


@dataclass
class ModelConfig:
    path: str = MISSING
    max_pixels: int | None = within(at_least=1)


@dataclass
class TaskConfig:
    """`train` and `held_out` are None where they are not set; a number is how many examples a drawn task makes.

    Otherwise they are the name of a source, or a list of names.
    """

    name: str = MISSING
    train: Any = MISSING  # int | str | list[str] | None, a union that OmegaConf 2.3 cannot merge while it is missing
    held_out: Any = MISSING
    absent_share: float | None = within(at_least=0, at_most=1)
    image_root: str | None = MISSING
    prompt: str = MISSING
    segmenter: str | None = MISSING
    box_distance: float | None = within(above=0)
    point_distance: float | None = within(above=0)


@dataclass
class RewardConfig:
    name: str | None = MISSING
    options: dict[str, Any] = MISSING  # of the reward that is named: conf/reward/NAME.yaml has them all
    weight: float = MISSING
    function: str | None = MISSING
    function_weight: float = MISSING
    workers: int = within(at_least=1)
    gpus: float = within(at_least=0)
    timeout: float = within(above=0)
    on_error: OnError = MISSING


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

    seed: int = within(at_least=0)
    output_dir: str = MISSING
    train: TrainConfig = MISSING
    eval: EvalConfig = MISSING
    feed: FeedConfig = MISSING
    rollout: RolloutConfig = MISSING
    learner: LearnerConfig = MISSING
    cluster: ClusterConfig = MISSING
    monitor: MonitorConfig = MISSING
    method: MethodConfig = MISSING
    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    reward: RewardConfig = MISSING
    pipeline: PipelineConfig = MISSING

    @property
    def colocated(self) -> bool:
        return self.cluster.layout == Layout.colocated


@dataclass
class EvaluateConfig(Config):
    """`conf/evaluate.yaml`: a run's configuration, and what to evaluate."""

    checkpoint: str | None = MISSING
    predictions: str | None = MISSING


def to_dict(config: Config) -> dict[str, object]:
    """Return the configuration as nested dicts, with choices by their names."""

    def plain(items: list[tuple[str, object]]) -> dict[str, object]:
        return {key: value.name if isinstance(value, Enum) else value for key, value in items}

    return asdict(config, dict_factory=plain)
