"""Repeats a step: `python -m visurf_ray.replay dump=outputs/…/dumps/step_000057`.

The dump is one that a run has written because of train.dump_steps or train.on_nan. The learner alone starts, with the
policy before the step, and learns from the step's groups. Prints the metrics of the update, then the loss and the
gradient norm of each group alone, and names what is not finite. Nothing is written.
"""

import sys
from collections.abc import Sequence

from visurf_ray.config.app import run_app
from visurf_ray.config.schema import ReplayConfig
from visurf_ray.errors import ConfigError


def replay(config: ReplayConfig, overrides: Sequence[str]) -> None:
    """Repeat the step of the dump that the configuration names, and print what it shows.

    Raises:
        ConfigError: no dump is named.
    """
    if config.dump is None:
        raise ConfigError("name the step to repeat: dump=outputs/…/dumps/step_…")
    from visurf_ray import repetition  # heavy: torch and transformers come with it

    found = repetition.repeat(config, overrides)
    policy = found.policy or "the initial policy"
    steps = "a step" if found.steps_before == 1 else f"{found.steps_before} steps"
    older = f", which is {steps} older: its numbers are not those of the run"
    print(f"step {found.step}, from {policy}{older if found.steps_before else ''}")
    width = max(map(len, found.metrics))
    for name, value in sorted(found.metrics.items()):
        logged = f"  (logged: {found.logged[name]!r})" if name in found.logged else ""
        print(f"{name:>{width}} {value!r}{logged}")
    print("each group alone:")
    width = max(len(group.id) for group in found.groups)
    for group in found.groups:
        print(f"{group.id:>{width}} loss {group.loss:.6g} grad_norm {group.grad_norm:.6g}")
    for group in found.groups:
        if group.not_finite:
            print(f"not finite: example {group.id!r}: {', '.join(group.not_finite)}")
    if not any(group.not_finite for group in found.groups):
        print("all groups are finite")


def main() -> int:
    return run_app(replay, ReplayConfig)


if __name__ == "__main__":
    sys.exit(main())
