"""The typed schema of `conf/`. Types live here; values, and what they mean, live in the YAML files alone.

Importable without torch, ray or vllm.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visurf_ray.errors import UserError
from visurf_ray.names import nearest

CONFIG_DIR = Path(__file__).resolve().parent.parent / "conf"
EXPERIMENT = "experiment"  # the one group that no default names: +experiment=NAME


@dataclass
class TrainConfig:
    steps: int = MISSING
    batch_size: int = MISSING
    resume: str | None = MISSING
    checkpoint_every: int = MISSING
    keep_checkpoints: int = MISSING
    export: bool = MISSING
    dry_run: bool = MISSING


@dataclass
class EvalConfig:
    every: int = MISSING
    examples: int | None = MISSING
    max_tokens: int = MISSING
    segmenter_gpus: float = MISSING


@dataclass
class RolloutConfig:
    workers: int = MISSING
    n: int = MISSING
    temperature: float = MISSING
    max_tokens: int = MISSING
    max_model_len: int = MISSING
    max_in_flight: int = MISSING
    logprobs_every: int = MISSING
    oversample: int = MISSING
    gpus: int = MISSING
    cpus: float = MISSING
    dtype: str = MISSING
    memory: float = MISSING
    enforce_eager: bool = MISSING


@dataclass
class LoraConfig:
    rank: int = MISSING
    alpha: float = MISSING
    dropout: float = MISSING
    targets: list[str] | None = MISSING


@dataclass
class LearnerConfig:
    ranks: int = MISSING
    zero_stage: int = MISSING
    offload: bool = MISSING
    freeze_vision: bool = MISSING
    freeze_projector: bool = MISSING
    lora: LoraConfig = MISSING
    learning_rate: float = MISSING
    weight_decay: float = MISSING
    adam_betas: list[float] = MISSING
    max_grad_norm: float = MISSING
    max_tokens_per_micro_batch: int = MISSING
    packing: str = MISSING
    logprob_chunk: int = MISSING
    minibatches: int = MISSING
    gradient_checkpointing: bool = MISSING
    gpus: int = MISSING
    cpus: float = MISSING
    dtype: str = MISSING


@dataclass
class ClusterConfig:
    address: str = MISSING
    start_timeout: float = MISSING


@dataclass
class MonitorConfig:
    project: str = MISSING
    wandb: str = MISSING
    samples: int = MISSING
    samples_every: int = MISSING


@dataclass
class MethodConfig:
    name: str = MISSING
    rollouts: bool = MISSING
    label: bool = MISSING
    eliminate: bool = MISSING
    smooth: bool = MISSING
    style: str = MISSING
    style_every: int = MISSING
    label_thinking: str = MISSING
    label_gate: bool = MISSING
    advantage_from: str = MISSING
    advantage_std: bool = MISSING
    advantage_ddof: int = MISSING
    advantage_eps: float = MISSING
    clip_low: float = MISSING
    clip_high: float = MISSING
    dual_clip: float | None = MISSING
    aggregation: str = MISSING
    label_term: str = MISSING
    label_coef: float = MISSING
    label_decay: int | None = MISSING
    shaping: float = MISSING
    entropy_coef: float = MISSING
    kl_coef: float = MISSING
    dynamic_sampling: bool = MISSING
    sft_steps: int = MISSING


@dataclass
class ModelConfig:
    path: str = MISSING
    max_pixels: int | None = MISSING


@dataclass
class TaskConfig:
    name: str = MISSING
    train: Any = MISSING
    held_out: Any = MISSING
    absent_share: float | None = MISSING
    image_root: str | None = MISSING
    prompt: str = MISSING
    segmenter: str | None = MISSING
    box_distance: float | None = MISSING
    point_distance: float | None = MISSING


@dataclass
class RewardConfig:
    name: str | None = MISSING
    options: dict[str, Any] = MISSING  # of the reward that is named: conf/reward/NAME.yaml has them all
    weight: float = MISSING
    function: str | None = MISSING
    function_weight: float = MISSING
    workers: int = MISSING
    gpus: float = MISSING
    timeout: float = MISSING
    on_error: str = MISSING


@dataclass
class PipelineConfig:
    max_staleness: int = MISSING
    importance_cap: float | None = MISSING
    sleep_level: int = MISSING


@dataclass
class Config:
    seed: int = MISSING
    output_dir: str = MISSING
    train: TrainConfig = MISSING
    eval: EvalConfig = MISSING
    rollout: RolloutConfig = MISSING
    learner: LearnerConfig = MISSING
    cluster: ClusterConfig = MISSING
    monitor: MonitorConfig = MISSING
    method: MethodConfig = MISSING
    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    reward: RewardConfig = MISSING
    pipeline: PipelineConfig = MISSING


class ConfigError(UserError):
    """A configuration that cannot be run; the message names the key and what to do."""


def load_config(overrides: list[str]) -> Config:
    """Compose and type-check the configuration.

    Raises ConfigError for a key or an option that does not exist, with the nearest one that does, and for values that
    no run can have.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        try:
            config = compose("config", overrides=overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(_explain(error, overrides)) from error
        known = _leaves(_chosen(overrides))
        if added := sorted(set(_leaves(config)) - set(known)):
            raise ConfigError(_unknown_key(added[0], known))
    check_values(config)
    return config  # type: ignore[return-value]  # a DictConfig of that schema


_AT_LEAST_ONE = (
    "train.batch_size",
    "train.keep_checkpoints",
    "rollout.workers",
    "rollout.max_tokens",
    "rollout.max_model_len",
    "eval.max_tokens",
    "rollout.max_in_flight",
    "rollout.logprobs_every",
    "learner.ranks",
    "learner.minibatches",
    "learner.max_tokens_per_micro_batch",
    "learner.logprob_chunk",
    "reward.workers",
    "method.style_every",
)
_AT_LEAST_NOTHING = (
    "train.steps",
    "train.checkpoint_every",
    "eval.every",
    "rollout.gpus",
    "learner.learning_rate",
    "learner.weight_decay",
    "learner.max_grad_norm",
    "rollout.oversample",
    "pipeline.max_staleness",
    "method.sft_steps",
    "method.kl_coef",
    "method.label_coef",
    "method.clip_high",
    "method.advantage_eps",
    "learner.lora.rank",
    "reward.gpus",
    "eval.segmenter_gpus",
)
_ONE_OF: dict[str, tuple[Any, ...]] = {
    "rollout.dtype": ("float32", "bfloat16"),
    "learner.dtype": ("float32", "bfloat16"),
    "learner.packing": ("split", "dense"),
    "learner.zero_stage": (1, 2, 3),
    "learner.gpus": (0, 1),  # more GPUs are more learner.ranks
    "method.style": ("spaced", "compact", "quoted", "auto"),
    "method.label_term": ("ppo", "shaped", "ce"),
    "method.label_thinking": ("none", "empty"),
    "method.advantage_ddof": (0, 1),
    "method.advantage_from": ("group", "rollouts"),
    "method.aggregation": ("sequence", "token", "constant"),
    "reward.on_error": ("stop", "skip"),
    "pipeline.sleep_level": (0, 1, 2),
    "monitor.wandb": ("auto", "online", "offline", "disabled"),
}


def check_values(config: DictConfig) -> None:
    """Raise ConfigError, naming the key, for values that no run can have."""
    rollout, learner, train = config.rollout, config.learner, config.train
    for key in _AT_LEAST_ONE:
        if (value := OmegaConf.select(config, key)) < 1:
            raise ConfigError(f"{key}={value} must be 1 at least")
    for key, values in _ONE_OF.items():
        if (value := OmegaConf.select(config, key)) not in values:
            names = [str(known) for known in values]
            raise ConfigError(f"{key}={value}: it must be one of {', '.join(names)}.{nearest(str(value), names)}")
    for key in _AT_LEAST_NOTHING:
        if (value := OmegaConf.select(config, key)) < 0:
            raise ConfigError(f"{key}={value:g} must be 0 at least")
    if config.pipeline.max_staleness and config.pipeline.importance_cap is None:
        raise ConfigError("pipeline.max_staleness > 0 needs pipeline.importance_cap: stale samples must be weighted")
    if config.pipeline.sleep_level:
        _check_colocation(config)
    lora = learner.lora
    if not lora.alpha > 0:
        raise ConfigError(f"learner.lora.alpha={lora.alpha:g} must be above 0")
    if not 0 <= lora.dropout < 1:
        raise ConfigError(f"learner.lora.dropout={lora.dropout:g} must be 0 at least and below 1")
    if lora.targets is not None and not lora.targets:
        raise ConfigError("learner.lora.targets is empty: name layers, or set it to null for all")
    method = config.method
    if method.dual_clip is not None and not method.dual_clip > 1:
        raise ConfigError(f"method.dual_clip={method.dual_clip:g} must be above 1, or null")
    if not 0 <= method.clip_low <= 1:
        raise ConfigError(f"method.clip_low={method.clip_low:g} must lie between 0 and 1")
    if method.sft_steps and not method.sft_steps < train.steps:
        raise ConfigError(
            f"method.sft_steps={method.sft_steps} leaves none to {method.name}: train.steps={train.steps} must be more"
        )
    if method.dynamic_sampling and method.label_term == "ce":
        raise ConfigError(
            "method.dynamic_sampling leaves out groups without an advantage, but with method.label_term=ce every label "
            "teaches: choose one of them"
        )
    if not method.shaping > 0:
        raise ConfigError(f"method.shaping={method.shaping:g} must be above 0")
    if method.label_decay is not None and method.label_decay < 1:
        raise ConfigError(f"method.label_decay={method.label_decay} must be 1 at least, or null")
    if not rollout.memory > 0:
        raise ConfigError(f"rollout.memory={rollout.memory:g} must be above 0")
    if not 0 < rollout.temperature <= 2:
        raise ConfigError(f"rollout.temperature={rollout.temperature:g} must be above 0 and not above 2, vLLM's limit")
    if config.method.rollouts and rollout.n < 2 - config.method.label:
        raise ConfigError(f"rollout.n={rollout.n}: a group needs two responses at least to compare")
    if not config.method.rollouts and not config.method.label:
        raise ConfigError("method.rollouts and method.label are both off: there is nothing to learn from")
    if not config.reward.timeout > 0:
        raise ConfigError(f"reward.timeout={config.reward.timeout:g} must be above 0")
    if not config.method.rollouts and config.method.label_term != "ce":
        raise ConfigError(f"method.label_term={method.label_term} compares: without method.rollouts it must be ce")
    cap = config.pipeline.importance_cap
    if cap is not None and not cap > 0:
        raise ConfigError(f"pipeline.importance_cap={cap:g} must be above 0, or null")
    if train.batch_size < learner.ranks * learner.minibatches:
        raise ConfigError(
            f"train.batch_size={train.batch_size} must be learner.ranks × learner.minibatches = "
            f"{learner.ranks * learner.minibatches} at least"
        )


def _check_colocation(config: DictConfig) -> None:
    """Raise ConfigError where rollout workers and learner ranks cannot share GPUs."""
    rollout, learner, pipeline = config.rollout, config.learner, config.pipeline
    if rollout.gpus != 1 or learner.gpus != 1 or rollout.workers != learner.ranks:
        raise ConfigError(
            f"pipeline.sleep_level={pipeline.sleep_level} puts one rollout worker beside each learner rank: it needs "
            "rollout.gpus=1, learner.gpus=1 and as many rollout.workers as learner.ranks"
        )
    if rollout.memory >= 1:
        raise ConfigError(f"rollout.memory={rollout.memory:g}: with pipeline.sleep_level it must be below 1, a share")
    if pipeline.max_staleness:
        raise ConfigError("pipeline.sleep_level needs pipeline.max_staleness=0: engines sleep while the learner works")
    if pipeline.sleep_level == 2 and (learner.freeze_vision or learner.freeze_projector or learner.lora.rank):
        raise ConfigError("pipeline.sleep_level=2 drops frozen weights too, and no sync brings them back: set it to 1")


def _groups() -> dict[str, list[str]]:
    """The options of each configuration group."""
    folders = [folder for folder in CONFIG_DIR.iterdir() if folder.is_dir()]
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def _chosen(overrides: list[str]) -> DictConfig:
    """The configuration with the options that are chosen, and no value changed: it has every key that there is."""
    groups = _groups()
    choices = [override.lstrip("+").partition("=")[::2] for override in overrides]
    plus = {EXPERIMENT: "+"}
    return compose(
        "config", [f"{plus.get(key, '')}{key}={value}" for key, value in choices if value in groups.get(key, [])]
    )


def _explain(error: Exception, overrides: list[str]) -> str:
    """The first override that is at fault, and the nearest key or option."""
    message = " ".join(line.strip() for line in str(error).splitlines() if "hydra.cc" not in line)
    valid = _chosen(overrides)
    keys = _leaves(valid)
    groups = _groups()
    for override in overrides:
        try:
            OverridesParser.create().parse_override(override)
        except HydraException:
            return f"cannot read the override {override!r}: it must be key=value, values with =, [ or , in quotes"
        key, _, value = override.lstrip("+~").partition("=")
        if key in groups:
            if value not in groups[key]:
                known = "see conf/experiment/" if key == EXPERIMENT else ", ".join(groups[key])
                return f"unknown {key} {value!r}.{nearest(value, groups[key])} Known: {known}"
            if key == EXPERIMENT and not override.startswith("+"):
                return f"an experiment is added to the configuration: write +{override}"
        elif key not in keys and OmegaConf.select(valid, key, default=None) is None:
            return _unknown_key(key, keys)
    return message


def _unknown_key(key: str, keys: list[str]) -> str:
    return f"there is no configuration key {key!r}.{nearest(key, keys)}"


def _leaves(config: DictConfig, prefix: str = "") -> list[str]:
    """All keys, dotted."""
    found: list[str] = []
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    for key, value in plain.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found += _leaves(OmegaConf.create(value), f"{prefix}{key}.")
    return found
