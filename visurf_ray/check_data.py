"""Looks at a data set: `python -m visurf_ray.data check=PATH [task=…] [model.path=… rollout.max_model_len=…]`.

Tells its schema, its rows, pictures, answers and tokens, and what a run would refuse or drop, and writes a page with
samples, data_check.html, into output_dir. Without `task=` the task is guessed from the first rows.
"""

import sys
from collections.abc import Sequence
from functools import cache

from visurf_ray.config.app import run_app
from visurf_ray.config.load import compose_again
from visurf_ray.config.schema import MIXTURE, CheckDataConfig
from visurf_ray.errors import ConfigError

PAGE = "data_check.html"
SHOWN = 12  # rows on the page


def check_data(config: CheckDataConfig, overrides: Sequence[str]) -> None:
    """Look at the data set that the configuration names; print what was found, and write the page.

    Raises:
        UserError: the data, the task or the model cannot be used at all. Rows that cannot be used raise nothing.
    """
    if config.check is None:
        raise ConfigError("name the data to look at: python -m visurf_ray.data check=PATH")
    source = config.check
    from visurf_ray.checks import writable  # heavy, like what follows: torch and transformers come with them
    from visurf_ray.inspection import console, page
    from visurf_ray.inspection.survey import guess_task, survey

    folder = writable(config.output_dir)
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    accepted: dict[str, int] = {}
    if "task" not in given:

        @cache
        def with_task(name: str) -> CheckDataConfig:
            return compose_again([*overrides, f"task={name}"], CheckDataConfig)

        name, accepted = guess_task(source, with_task)
        config = with_task(name)
    elif config.task.name == MIXTURE:
        raise ConfigError("task=mixture has the data of several tasks: look at one part's data with its own task")
    elif config.task.name.startswith("miniature"):
        raise ConfigError(f"task={config.task.name} draws its pictures and reads no data: choose the task of your data")
    found = survey(config, source, SHOWN, console.track)
    console.show(found, config, accepted, default_model="model" not in given and "model.path" not in given)
    folder.mkdir(parents=True, exist_ok=True)
    page.write_page(folder / PAGE, found, config)
    print(f"written to {folder / PAGE}")


def main() -> int:
    return run_app(check_data, CheckDataConfig)


if __name__ == "__main__":
    sys.exit(main())
