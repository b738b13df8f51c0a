"""Evaluates a model: `python -m visurf_ray.evaluate checkpoint=outputs/…/export task=miniature …`.

A checkpoint is a Hugging Face folder (a run's export/, or any model), a hub id, `miniature`, or one of a run's
checkpoints/step_…. With task.segmenter=facebook/sam2-hiera-large SAM2 makes masks of the boxes and points of answers.
Writes metrics.json and predictions.jsonl into output_dir: by default `…-evaluation` beside the checkpoint, or in the
current folder for a hub id and for `miniature`. With predictions=FILE instead of a checkpoint nothing is sampled: the
metrics of that predictions.jsonl are computed again, and metrics.json is by default written beside it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from visurf_ray.config.app import run_app
from visurf_ray.config.choices import Layout
from visurf_ray.config.schema import EvaluateConfig
from visurf_ray.errors import ConfigError
from visurf_ray.groups import bounds_of, without_bounds


def evaluate(config: EvaluateConfig, overrides: Sequence[str]) -> None:
    """Evaluate as the configuration says, and print the scores.

    Raises:
        ConfigError: not exactly one of checkpoint and predictions is given.
    """
    if (config.checkpoint is None) == (config.predictions is None):
        raise ConfigError(
            "give one checkpoint=FOLDER to evaluate, checkpoint=miniature for the base model, "
            "or one predictions=FILE to score again"
        )
    if config.train.dry_run:
        raise ConfigError("train.dry_run=true is for training: an evaluation has no dry run")
    set_defaults(config, overrides)
    from visurf_ray import evaluation  # heavy: torch, vllm and deepspeed come with it

    scores = evaluation.evaluate(config)
    shown = sorted(without_bounds(scores).items())
    width = max(len(name) for name in ("written to", *scores))
    for name, value in shown:
        bounds = bounds_of(name, scores)
        interval = f" ({bounds[0]:.4f} to {bounds[1]:.4f})" if bounds else ""
        print(f"{name:>{width}} {value:.4f}{interval}")
    print(f"{'written to':>{width}} {config.output_dir}")


def set_defaults(config: EvaluateConfig, overrides: Sequence[str]) -> None:
    """Set output_dir and eval.examples, unless the command line gives them, and the layout.

    Values in a file of conf/experiment/ do not count as given, because they are meant for the training run. There is no
    learner with which rollout workers could share GPUs, and which would wake them.
    """
    config.cluster.layout = Layout.disaggregated
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "output_dir" not in given and config.checkpoint is not None:
        config.output_dir = f"{config.checkpoint.rstrip('/')}-evaluation"
    elif "output_dir" not in given and config.predictions is not None:
        config.output_dir = str(Path(config.predictions).parent)
    if "eval.examples" not in given:
        config.eval.examples = None


def main() -> int:
    return run_app(evaluate, EvaluateConfig)


if __name__ == "__main__":
    sys.exit(main())
