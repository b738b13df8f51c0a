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


@dataclass
class TrainConfig:
    steps: int = MISSING
    batch_size: int = MISSING
    resume: str | None = MISSING
    checkpoint_every: int = MISSING
    keep_checkpoints: int = MISSING
    export: bool = MISSING


@dataclass
class EvalConfig:
    every: int = MISSING
    examples: int | None = MISSING
    max_tokens: int = MISSING


@dataclass
class RolloutConfig:
    workers: int = MISSING
    n: int = MISSING
    temperature: float = MISSING
    max_tokens: int = MISSING
    max_model_len: int = MISSING
    max_in_flight: int = MISSING
    gpus: int = MISSING
    cpus: float = MISSING
    dtype: str = MISSING
    memory: float = MISSING
    enforce_eager: bool = MISSING


@dataclass
class LearnerConfig:
    ranks: int = MISSING
    zero_stage: int = MISSING
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
    advantage_std: bool = MISSING
    advantage_ddof: int = MISSING
    advantage_eps: float = MISSING
    clip_low: float = MISSING
    clip_high: float = MISSING
    label_term: str = MISSING


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
    box_distance: float = MISSING
    point_distance: float = MISSING


@dataclass
class RewardConfig:
    name: str = MISSING
    credit_empty: bool = MISSING
    box_distance: float = MISSING
    point_distance: float = MISSING
    workers: int = MISSING
    timeout: float = MISSING


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


class ConfigError(UserError):
    """A configuration that cannot be run; the message names the key and what to do."""


def load_config(overrides: list[str]) -> Config:
    """Compose and type-check the configuration.

    Raises ConfigError for a key or an option that does not exist, with the nearest one that does.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        try:
            config = compose("config", overrides=overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(_explain(error, overrides)) from error
        if added := sorted(set(_leaves(config)) - set(_leaves(compose("config")))):
            raise ConfigError(_unknown_key(added[0], _leaves(compose("config"))))
        return config  # type: ignore[return-value]  # a DictConfig of that schema


def _explain(error: Exception, overrides: list[str]) -> str:
    """The first override that is at fault, and the nearest key or option."""
    message = " ".join(line.strip() for line in str(error).splitlines() if "hydra.cc" not in line)
    valid = compose("config")
    keys = _leaves(valid)
    groups = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in CONFIG_DIR.iterdir()
        if folder.is_dir()
    }
    for override in overrides:
        try:
            OverridesParser.create().parse_override(override)
        except HydraException:
            return f"cannot read the override {override!r}: it must be key=value, values with =, [ or , in quotes"
        key, _, value = override.lstrip("+~").partition("=")
        if key in groups:
            if value not in groups[key]:
                return f"unknown {key} {value!r}.{nearest(value, groups[key])} Known: {', '.join(groups[key])}"
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
