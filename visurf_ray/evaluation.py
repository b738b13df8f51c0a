"""Evaluation of a checkpoint, or of stored predictions."""

import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from visurf_ray.actors import make_rollouts, reserve, start_data, start_segmentation
from visurf_ray.assembly import write_dropped
from visurf_ray.checkpoints.stored import read_state
from visurf_ray.checks import check_sampled, check_segmenters, check_vllm, writable
from visurf_ray.cluster.resources import connected
from visurf_ray.cluster.supervision import Supervisor
from visurf_ray.config.schema import EvaluateConfig, ModelConfig
from visurf_ray.errors import ConfigError, during, writing
from visurf_ray.groups import Metrics
from visurf_ray.learner.trained import Trained
from visurf_ray.models import load_processor, model_config, resolve_model, resolved
from visurf_ray.scoring.predictions import read_predictions, write_predictions
from visurf_ray.tasks.tasks import Tasks


def evaluate(config: EvaluateConfig) -> Metrics:
    """Score answers of `checkpoint` to the held-out split, or stored `predictions`; returns the scores.

    Writes answers and scores to `output_dir`.
    """
    output = writable(config.output_dir)
    if config.checkpoint is None:
        return _score_again(config, output)
    check_vllm(config)
    check_segmenters(config)
    tasks = Tasks.of(config)
    with ExitStack() as stack:
        config.model, adapters = as_model(config.checkpoint, config.model, output, stack)
        # Before the processor: this tells a family that transformers does not have.
        model_config(config.model)
        processor = load_processor(config.model)
        check_sampled(config)
        stack.enter_context(connected(config.cluster.address))
        places = reserve(config, stack, learns=False)
        data = start_data(config, train=False)
        supervisor = Supervisor(config.cluster.max_restarts, config.cluster.health_timeout)
        stack.callback(supervisor.close)
        images = data.findings.most_images
        trained = adapters.trained if adapters else None
        rollouts = make_rollouts(config, processor, places.workers, trained, images=images, supervisor=supervisor)
        stack.callback(rollouts.shut_down)
        if adapters:
            rollouts.serve(adapters.files)
        with during("start"):
            rollouts.launch()
            segmentation = start_segmentation(config, places)
            rollouts.wait()
        with during("evaluate"):
            examples = data.held_out(config.eval.examples)
            predictions = rollouts.answer(
                examples, max_tokens=config.eval.max_tokens, n=config.eval.n, temperature=config.eval.temperature
            )
            if segmentation:
                predictions = segmentation.segment(examples.taken, predictions, data.stored_image)
    output.mkdir(parents=True, exist_ok=True)
    write_dropped([*data.findings.dropped, *data.dropped], output)
    with writing("predictions.jsonl", output):
        write_predictions(predictions, output / "predictions.jsonl")
    return _write_scores(tasks.score(predictions), output)


def _score_again(config: EvaluateConfig, output: Path) -> Metrics:
    """Score a predictions.jsonl by the task's metrics, and write the scores to the folder `output`."""
    found = read_predictions(Path(config.predictions or "").expanduser())
    try:
        scores = Tasks.of(config).score(found)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"predictions={config.predictions}: task={config.task.name} cannot score them ({error}): choose the task "
            "whose questions they answer"
        ) from error
    output.mkdir(parents=True, exist_ok=True)
    return _write_scores(scores, output)


def _write_scores(scores: Metrics, output: Path) -> Metrics:
    with writing("metrics.json", output):
        (output / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores


@dataclass(frozen=True)
class Adapters:
    """Adapters of a training checkpoint: which they are, and PEFT's files with them; see `checkpoint_adapters`."""

    trained: Trained
    files: dict[str, NDArray[np.uint8]]


def as_model(
    checkpoint: str, settings: ModelConfig, output: Path, stack: ExitStack
) -> tuple[ModelConfig, Adapters | None]:
    """Return the settings with a folder or hub id that `from_pretrained` loads, and the adapters to load beside it.

    A training checkpoint with adapters is the model that its run started from, and these. Another one is converted into
    a temporary folder in `output`, which all nodes share, until `stack` ends.
    """
    path = Path(checkpoint).expanduser()
    if (path / "metrics.jsonl").is_file() and not (path / "config.json").is_file():
        raise ConfigError(
            f"checkpoint={checkpoint} is the folder of a run: name a model in it, its export/ or one of its "
            "checkpoints/step_…"
        )
    if not (path / "state.json").is_file():
        return replace(settings, path=resolve_model(checkpoint, "checkpoint")), None
    from visurf_ray.learner.export import checkpoint_adapters, export_checkpoint

    run = path.resolve().parent.parent / "config.yaml"
    if not run.is_file():
        raise ConfigError(f"checkpoint={checkpoint}: {run}, the configuration of its run, is missing")
    saved = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(run).model)
    # Of the command, not of the run: the files of a run may come from others.
    model = replace(cast(ModelConfig, OmegaConf.to_object(saved)), trust_remote_code=settings.trust_remote_code)
    base, trained = resolved(model), Trained(**read_state(path).trained)
    if trained.lora_rank:
        adapters = Adapters(trained, checkpoint_adapters(path, base, trained))
        return replace(settings, path=base.path, max_pixels=settings.max_pixels or model.max_pixels), adapters
    output.mkdir(parents=True, exist_ok=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=output, prefix="model-"))
    export_checkpoint(path, base, trained, Path(folder))
    load_processor(model).save_pretrained(folder)
    return replace(settings, path=folder), None
