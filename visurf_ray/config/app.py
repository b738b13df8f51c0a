"""Runs an entry point as a Hydra application: sweeps, --config-dir, --help and the like, with our own messages."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra._internal.utils import get_args_parser  # Hydra's own parser of its flags, which no public name offers
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from visurf_ray.config.explain import COMPOSING_ERRORS, CommandLine, explain
from visurf_ray.config.load import CONFIG_DIR, PRIMARY, C, register_schema, searching, typed
from visurf_ray.config.places import users_folder
from visurf_ray.errors import ConfigError, UserError, printing
from visurf_ray.stopping import Stopped, stop_on_signals


@stop_on_signals()
def run_app(task: Callable[[C, Sequence[str]], None], schema: type[C]) -> int:
    """Compose the configuration that the command line asks for and call `task`, once for each run of a sweep.

    A sweep (`-m`) runs one run after the other, each with an output_dir of its own: a folder that is named after the
    values that are swept, below the given output_dir or Hydra's sweep folder. A run that fails does not end the sweep.

    Args:
        task: takes the configuration and the overrides of the command line.
        schema: the class of the configuration; `PRIMARY` names its file, unless --config-name names another.

    Returns:
        The exit status: 130 after Ctrl-C, 143 after SIGTERM. A UserError is printed in one line; any other error of a
        task is raised.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    register_schema()
    arguments, unknown = get_args_parser().parse_known_intermixed_args()
    if unknown:
        return fail(ConfigError(f"there is no flag {unknown[0]}: a setting is written without dashes, KEY=VALUE"))
    own = [(users_folder() / os.path.expanduser(arguments.config_dir)).resolve()] if arguments.config_dir else []
    # Hydra itself wants all overrides in one place, and takes the last of several --config-dir.
    flags = [argument for argument in sys.argv[1:] if argument not in arguments.overrides]
    flags += [f"--config-dir={folder}" for folder in own]
    sys.argv[1:] = [*flags, *arguments.overrides, *_sweep_folder(arguments.overrides)]
    line = CommandLine(arguments.config_name or PRIMARY[schema], arguments.overrides, [CONFIG_DIR, *own])
    if reason := line.missing_files():
        return fail(ConfigError(reason))
    if arguments.multirun and any(key.lstrip("+") == "output_dir" for key in line.swept()):
        return fail(ConfigError("output_dir cannot be swept: give one folder, in which each run gets one of its own"))

    ran: list[str] = []  # the runs of a sweep
    refused: list[UserError] = []
    crashed: list[Exception] = []  # neither is raised through Hydra, which would print it, or take it for its own

    def run(composed: DictConfig) -> None:
        job = HydraConfig.get()
        texts = OmegaConf.to_container(job.overrides.task, resolve=False)  # interpolations are relative
        assert isinstance(texts, list)
        of_job = CommandLine(line.config_name, [str(text) for text in texts], line.folders)
        name = _run_name(line, of_job) if job.mode is RunMode.MULTIRUN else None
        if name is not None:
            ran.append(name)
            print(f"run {name}", flush=True)
        try:
            config = typed(composed, schema, of_job)
            if name is None:
                task(config, of_job.overrides)
            else:
                config.output_dir = str(users_folder() / job.sweep.dir / name)
                task(config, [*of_job.overrides, f"output_dir={config.output_dir}"])
        except Exception as error:
            if interruption := _interruption(error):
                raise interruption from error
            if isinstance(error, UserError):
                fail(error)
                refused.append(error)
                return
            if name is not None:
                print(f"run {name} failed: {error!r}", file=sys.stderr, flush=True)
            crashed.append(error)

    try:
        with printing():
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=PRIMARY[schema])(run)()
    except COMPOSING_ERRORS as error:
        with searching(line):
            return fail(ConfigError(explain(error, line)))
    except (UserError, KeyboardInterrupt) as error:
        return fail(error)
    if crashed:
        raise crashed[0]
    if arguments.multirun and not ran:
        return fail(ConfigError("the sweep has no runs: a glob(…) in it matches no option"))
    return _REFUSED if refused else 0


def _sweep_folder(overrides: Sequence[str]) -> list[str]:
    """Return the override that makes Hydra use the given output_dir for a sweep; none if no output_dir is given."""
    given = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("output_dir=")]
    return [f"hydra.sweep.dir={folder}" for folder in given[-1:]]


def _run_name(sweep: CommandLine, run: CommandLine) -> str:
    """Return a name for a run of a sweep: `method-rlvr_seed-1`, or its number if a sweeper chose values.

    The run's number comes first where the values cannot stand in a folder's name as they are: where they have other
    characters than ASCII letters, digits, `_`, `.`, `+` and `-`, or are long.
    """
    values = [override for override in run.overrides if override.partition("=")[0] in sweep.swept()]
    # No character that Hydra or a shell treats specially: the folder's path is an override of later commands.
    number = str(HydraConfig.get().job.num)
    name = "_".join(re.sub(r"[^\w.+-]", "-", value, flags=re.ASCII) for value in values)
    if len(name) <= 200 and all(re.fullmatch(r"[\w.+-]*=[\w.+-]*", value, re.ASCII) for value in values):
        return name or number
    return f"{number}_{name}"[:200]


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return what to raise if an error arose while a run ended after Ctrl-C or SIGTERM; None if it did not.

    So it is when W&B's process was interrupted as well.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return Stopped(error.signum) if isinstance(error, Stopped) else KeyboardInterrupt() if error else None


_REFUSED = 2  # the exit status for what the user must change


def fail(error: BaseException) -> int:
    """Print what went wrong and what to do; returns the exit status."""
    if isinstance(error, KeyboardInterrupt):
        signum = error.signum if isinstance(error, Stopped) else signal.SIGINT
        print("terminated" if signum == signal.SIGTERM else "interrupted", file=sys.stderr)
        return 128 + signum
    cause = getattr(error, "cause", None) or error  # an actor's error carries the actor's traceback, its cause does not
    print(f"error: {cause}", file=sys.stderr, flush=True)
    return _REFUSED
