"""Trains: `python -m visurf_ray.train method=visurf task=miniature …`, inside an environment or a Ray job.

Every argument is a Hydra override, and Hydra's flags work: `-m` sweeps, `--cfg job` prints the configuration.
"""

import sys
from collections.abc import Sequence

from visurf_ray.config.app import run_app
from visurf_ray.config.schema import Config


def train(config: Config, overrides: Sequence[str]) -> None:
    if config.train.dry_run:
        from visurf_ray.dry_run import dry_run

        dry_run(config)
        return
    from visurf_ray import assembly  # heavy: torch, vllm and deepspeed come with it

    assembly.train(config, overrides)


def main() -> int:
    return run_app(train, Config)


if __name__ == "__main__":
    sys.exit(main())
