"""Trains: `python -m visurf_ray.train method=visurf task=miniature …`, inside an environment or a Ray job."""

import sys

from omegaconf import OmegaConf

from visurf_ray.command_line import fail, parse
from visurf_ray.config import load_config
from visurf_ray.errors import UserError


def main() -> int:
    arguments = parse(__doc__)
    try:
        config = load_config(arguments.overrides)
        if arguments.cfg:
            print(OmegaConf.to_yaml(config, resolve=arguments.resolve), end="")
            return 0
        if config.train.dry_run:
            from visurf_ray.dry_run import dry_run

            dry_run(config)
            return 0
        from visurf_ray import assembly  # heavy: torch, vllm and deepspeed come with it

        assembly.train(config)
    except (UserError, KeyboardInterrupt) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
