"""Evaluates: `python -m visurf_ray.evaluate checkpoint=outputs/…/export task=miniature …`.

A checkpoint is a Hugging Face folder (a run's export/, or any model), or one of a run's checkpoints/step_….
With task.segmenter=facebook/sam2-hiera-large the boxes and points of answers are made into masks.
Writes metrics.json and predictions.jsonl into output_dir (default: beside the checkpoint). With predictions=FILE in the
checkpoint's place nothing is answered anew: the metrics are computed from that predictions.jsonl.
"""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from visurf_ray.command_line import fail, parse
from visurf_ray.config import ConfigError, load_config
from visurf_ray.errors import UserError


def main() -> int:
    arguments = parse(__doc__)
    given = [item.partition("=") for item in arguments.overrides]
    chosen = [(key, value) for key, _, value in given if key in ("checkpoint", "predictions")]
    overrides = [item for item in arguments.overrides if not item.startswith(("checkpoint=", "predictions="))]
    try:
        if len(chosen) != 1:
            raise ConfigError(
                "give one checkpoint=FOLDER to evaluate, checkpoint=miniature for the base model, "
                "or one predictions=FILE to score again"
            )
        ((what, path),) = chosen
        if not any(item.startswith("output_dir=") for item in overrides):
            beside = f"{path.rstrip('/')}-evaluation" if what == "checkpoint" else str(Path(path).parent)
            overrides.append(f"output_dir={beside}")
        config = load_config(["eval.examples=null", *overrides])  # all, unless told otherwise
        if config.train.dry_run:
            raise ConfigError("train.dry_run=true is for training: an evaluation has no dry run")
        if arguments.cfg:
            print(OmegaConf.to_yaml(config, resolve=arguments.resolve), end="")
            return 0
        from visurf_ray import assembly  # heavy: torch, vllm and deepspeed come with it

        scores = (assembly.evaluate if what == "checkpoint" else assembly.score_again)(config, path)
        for name, value in sorted(scores.items()):
            print(f"{name:>14} {value:.4f}")
        print(f"{'written to':>14} {config.output_dir}")
    except (UserError, KeyboardInterrupt) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
