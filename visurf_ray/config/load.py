"""Composes `conf/` and a command line's overrides into a typed `Config`, and explains what cannot be composed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visurf_ray.config import parts, places, rules
from visurf_ray.config.explain import COMPOSING_ERRORS, CommandLine, explain, misread, unknown_addition
from visurf_ray.config.schema import CheckDataConfig, Config, EvaluateConfig, ReplayConfig
from visurf_ray.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
# The checkout has `conf/` beside the package, an installed wheel inside of it.
CONFIG_DIR = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())

C = TypeVar("C", bound=Config)
# The primary configuration of each schema, a file in `conf/`.
PRIMARY: dict[type[Config], str] = {
    Config: "config",
    EvaluateConfig: "evaluate",
    ReplayConfig: "replay",
    CheckDataConfig: "check_data",
}


def register_schema() -> None:
    """Make the schemas known to Hydra, for the defaults lists in `conf/`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="replay_schema", node=ReplayConfig)
    store.store(name="check_data_schema", node=CheckDataConfig)


def load_config(overrides: list[str]) -> Config:
    """Compose a training run's configuration from `conf/config.yaml` and overrides, and check it.

    Raises:
        ConfigError: for a key or an option that does not exist, with the nearest one that does, and for values that no
            run can have.
    """
    line = CommandLine("config", overrides, [CONFIG_DIR])
    with searching(line):
        with explaining(line):
            composed = compose(line.config_name, overrides=overrides)
        return typed(composed, Config, line)


def compose_again(overrides: list[str], schema: type[C]) -> C:
    """Compose the configuration of the entry point that runs with other overrides.

    Its --config-name and --config-dir hold. Raises ConfigError like load_config.
    """
    hydra = HydraConfig.get()
    own = [Path(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line"]
    line = CommandLine(hydra.job.config_name or PRIMARY[schema], overrides, [CONFIG_DIR, *own])
    with explaining(line):
        composed = compose(line.config_name, overrides=overrides)
    return typed(composed, schema, line)


@contextmanager
def searching(line: CommandLine) -> Iterator[None]:
    """Initialise Hydra inside the context, with the schemas and `conf/`."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(line.folders[0])):
        yield


@contextmanager
def explaining(line: CommandLine) -> Iterator[None]:
    """Turn an error of Hydra or OmegaConf inside the context into a ConfigError that explains it."""
    try:
        yield
    except COMPOSING_ERRORS as error:
        raise ConfigError(explain(error, line)) from error


def typed(composed: DictConfig, schema: type[C], line: CommandLine) -> C:
    """Return the checked configuration as plain dataclasses, its paths absolute. Call it while Hydra is initialised.

    Raises:
        ConfigError: for a key that `+` added and the schema does not have, a value that would be taken for another, a
            mandatory value that is not set, and values that no run can have.
    """
    if reason := unknown_addition(line) or misread(line):
        raise ConfigError(reason)
    with explaining(line):
        missing = OmegaConf.missing_keys(composed)
    for key in missing:
        try:
            OmegaConf.update(composed, key, None)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key} has no value, and must have one: write {key}=…") from error
    with explaining(line):
        config = OmegaConf.to_object(composed)
    if type(config) is not schema:
        raise ConfigError(
            f"--config-name={line.config_name} is no configuration of this program: a file of your own must have "
            f"{PRIMARY[schema]} first in its defaults"
        )
    parts.resolve(config, line)
    rules.check(config)
    places.make_absolute(config)
    return config
