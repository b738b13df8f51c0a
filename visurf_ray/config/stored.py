"""The configuration of an earlier run, as `schema.to_dict` has stored it."""

from collections.abc import Sequence
from functools import reduce
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visurf_ray.aliases import Json
from visurf_ray.config.schema import Config
from visurf_ray.errors import ConfigError


def learner_config(stored: dict[str, Json], given: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration of a run, for its learner alone: without the parts of a mixture and held-out sets.

    Args:
        stored: as `to_dict` has returned it.
        given: the configuration that the command line asks for. It has the values of `overrides`, which replace those
            of the run.
        overrides: of the command line. Those of settings that only the command has, such as `dump`, are ignored.

    The command decides whether code of the model is trusted, and which Ray is used: a run's files may come from others.

    Raises:
        ConfigError: the configuration is of another version, or an override is not that of a setting.
    """
    try:
        bare = stored | {"task": stored["task"] | {"parts": {}}, "eval": stored["eval"] | {"sets": {}}}
        config = cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), bare)))
    except (OmegaConfBaseException, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the run's configuration is of another version of visurf_ray: {reason}") from error
    config.model.trust_remote_code = given.model.trust_remote_code
    config.cluster.address = given.cluster.address
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        *path, name = key.split(".")
        if not path and name not in vars(config) and name in vars(given):
            continue
        try:
            section = reduce(getattr, path, config)
            setattr(section, name, getattr(reduce(getattr, path, given), name))
        except AttributeError as error:
            raise ConfigError(
                f"{override}: settings are those of the run. Change single ones, such as learner.ranks=1"
            ) from error
    return config
