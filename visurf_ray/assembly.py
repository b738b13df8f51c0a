"""Puts a run together: checks everything that can be checked (see `checks`), then starts the actors."""

import gc
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from visurf_ray.checkpoints import Checkpoints, State, read_state
from visurf_ray.checks import (
    check,
    check_cluster,
    check_vllm,
    max_prompt_tokens,
    rollout_demand,
    segmenter_demand,
    trained_weights,
    versions,
)
from visurf_ray.cluster.resources import check_demand, cluster_nodes, connected, shared_gpus, wait_ready
from visurf_ray.config.schema import Config, EvaluateConfig, LabelTerm, MethodConfig, ModelConfig
from visurf_ray.driver import Driver
from visurf_ray.errors import ConfigError
from visurf_ray.feed.feed import DataFeed
from visurf_ray.groups import Metrics
from visurf_ray.learner.actor import LearnerActor
from visurf_ray.learner.config import RankConfig
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.trained import Trained
from visurf_ray.method import Method
from visurf_ray.models import banned_token_ids, load_processor, resolve_model
from visurf_ray.monitor import Monitor
from visurf_ray.rewards.pool import RewardPool
from visurf_ray.rollout.actor import EngineConfig, RolloutActor, Sampling
from visurf_ray.rollout.pool import RolloutPool
from visurf_ray.scoring.predictions import read_predictions, write_predictions
from visurf_ray.scoring.segmentation import Segmentation
from visurf_ray.scoring.segmenter import check_segmenter
from visurf_ray.tasks import load_task
from visurf_ray.tasks.task import Task


def _start_monitor(config: Config, output: Path, state: State) -> Monitor:
    return Monitor(
        output,
        config=asdict(config),
        project=config.monitor.project,
        wandb=config.monitor.wandb,
        total_steps=config.train.steps,
        run_id=state.run_id,
        start_step=state.step,
    )


def start_data(config: Config, *, train: bool = True) -> DataFeed:
    """The data, every row checked; without `train` the held-out split alone. Raises DataError."""
    return DataFeed(
        config.task, config.model, seed=config.seed, max_prompt_tokens=max_prompt_tokens(config), train=train
    )


def start_segmentation(config: Config) -> Segmentation | None:
    """The segmenter of evaluations, where the task has one. Raises UserError for what is no SAM2 model."""
    return Segmentation(config.task.segmenter, config.eval.segmenter_gpus) if config.task.segmenter else None


def start_rollouts(config: Config, places: Sequence[Any] = ()) -> RolloutPool:
    """vLLM engines; they start while the caller goes on, until `wait_for` says that they are ready.

    places: see `shared_gpus`; without any, they have GPUs of their own.
    """
    rollout = config.rollout
    engine = EngineConfig(
        model_path=resolve_model(config.model.path),
        dtype=rollout.dtype,
        max_model_len=rollout.max_model_len,
        memory=rollout.memory,
        gpus=rollout.gpus,
        enforce_eager=rollout.enforce_eager,
        sleeps=config.colocated,
        seed=config.seed,
    )
    actors = [
        RolloutActor.options(num_cpus=rollout.cpus, **place).remote(  # type: ignore[attr-defined]
            engine, worker, _shares(_cores(config)[0], rollout.workers)[worker]
        )
        for worker, place in enumerate(places or [{"num_gpus": rollout.gpus}] * rollout.workers)
    ]
    every = rollout.logprobs_every if config.pipeline.importance_cap is None else 1
    sampling = Sampling(rollout.n, rollout.temperature, rollout.max_tokens, logprobs_every=every)
    return RolloutPool(
        actors,
        sampling=sampling,
        max_in_flight=rollout.max_in_flight,
        sleep_level=rollout.sleep_level if config.colocated else None,
    )


def _shared_gpus(config: Config) -> list[dict[str, Any]]:
    cpus = config.rollout.cpus + config.learner.cpus
    return shared_gpus(config.learner.ranks, cpus, timeout=config.cluster.start_timeout)


def wait_for(rollouts: RolloutPool, config: Config) -> None:
    """Returns when every engine is up. Raises ClusterError after cluster.start_timeout seconds."""
    references = [actor.ready.remote() for actor in rollouts.actors]
    wait_ready(references, "the rollout workers", config.cluster.start_timeout)


def start_learner(config: Config, tokenizer: Any, places: Sequence[Any] = ()) -> LearnerGroup:
    """DeepSpeed ranks with the policy loaded. places: as in `start_rollouts`."""
    learner = config.learner
    rank = RankConfig(
        model_path=resolve_model(config.model.path),
        temperature=config.rollout.temperature,
        banned=tuple(banned_token_ids(tokenizer)),
        zero_stage=learner.zero_stage,
        offload=learner.offload,
        trained=trained_weights(config),
        learning_rate=learner.learning_rate,
        weight_decay=learner.weight_decay,
        adam_betas=(learner.adam_betas[0], learner.adam_betas[1]),
        max_grad_norm=learner.max_grad_norm,
        max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
        packing=learner.packing,
        logprob_chunk=learner.logprob_chunk,
        gradient_checkpointing=learner.gradient_checkpointing,
        dtype=learner.dtype,
        shares_gpu=config.colocated,
        reference=bool(config.method.kl_coef),
    )
    environment = {} if learner.gpus else {"DS_ACCELERATOR": "cpu", **_KEEP_MEMORY}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    actors = [
        LearnerActor.options(  # type: ignore[attr-defined]
            num_cpus=learner.cpus, runtime_env={"env_vars": environment}, **place
        ).remote()
        for place in places or [{"num_gpus": learner.gpus}] * learner.ranks
    ]
    wait_ready([actor.address.remote() for actor in actors], "the learner ranks", config.cluster.start_timeout)
    cores = _shares([] if learner.gpus else _cores(config)[1], learner.ranks)
    return LearnerGroup(actors, rank, seed=config.seed, minibatches=learner.minibatches, cores=cores)


def _cores(config: Config) -> tuple[list[int], list[int]]:
    """The CPU cores of the rollout workers and of the learner ranks: all for both when they take turns, half each when
    they work at the same time.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return (cores[:half] or cores, cores[half:]) if config.pipeline.max_staleness else (cores, cores)


def _shares(cores: list[int], parts: int) -> list[list[int]]:
    """Cores for each of `parts`: every core is in one of them, or shared where there are more parts."""
    return [cores[part::parts] or cores[part % len(cores) :][:1] if cores else [] for part in range(parts)]


# glibc hands large freed blocks back to the kernel and faults them in anew at every step: a tenth of its time.
_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**26)}


def start_policy(config: Config, tokenizer: Any, stack: ExitStack) -> tuple[RolloutPool, LearnerGroup]:
    """Rollout workers and learner ranks, ready and connected; `stack` ends the workers' processes."""
    places = _shared_gpus(config) if config.colocated else []
    rollouts = start_rollouts(config, places)
    stack.callback(rollouts.shut_down)
    if config.colocated:  # an engine measures what is free of its GPU, and must be alone with it
        wait_for(rollouts, config)
        rollouts.sleep()
    learner = start_learner(config, tokenizer, places)
    wait_for(rollouts, config)
    gpu_workers = config.rollout.gpus * config.rollout.workers
    learner.connect(rollouts.actors, gpu_workers=gpu_workers, colocated=config.colocated)
    return rollouts, learner


def train(config: Config) -> Path:
    """Run a training job; returns the output folder. Nothing is written before all is checked and started."""
    checked = check(config)
    output, processor = checked.output, checked.processor
    with ExitStack() as stack:
        stack.enter_context(connected(config.cluster.address))
        check_cluster(config, cluster_nodes())
        data = start_data(config)
        print(
            f"starting {config.rollout.workers} rollout worker(s), {config.learner.ranks} learner rank(s)", flush=True
        )
        rollouts, learner = start_policy(config, processor.tokenizer, stack)
        segmentation = start_segmentation(config)
        if checked.resume:
            learner.load(checked.resume.resolve())
        output.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), output / "config.yaml")
        monitor = _start_monitor(config, output, checked.state)
        stack.push(lambda kind, *_: monitor.close() if kind else None)
        # The driver freezes what is alive. Python never frees what is still frozen at its end, and Triton's binding
        # reports all of that as leaked.
        stack.callback(gc.unfreeze)
        driver = Driver(
            config,
            task=checked.task,
            methods=build_methods(config, checked.task, processor.tokenizer),
            data=data,
            rollouts=rollouts,
            rewards=RewardPool(config.reward, checked.reward),
            learner=learner,
            checkpoints=Checkpoints(output / "checkpoints", config.train.keep_checkpoints),
            monitor=monitor,
            segmentation=segmentation,
        )
        result = driver.run(checked.state)
        if config.train.export:
            learner.export(output / "export")
            processor.save_pretrained(output / "export")
        run = {"steps": config.train.steps, "method": config.method.name, "seed": config.seed}
        monitor.finish(result | run | {"versions": versions()})
    return output


def build_methods(config: Config, task: Task, tokenizer: Any) -> Callable[[int], Method]:
    """The method of each step, with labels as the task writes them, as token ids that end as a rollout ends."""

    def encode(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]

    def build(method: MethodConfig) -> Method:
        return Method(
            method,
            render=task.render,
            encode=encode,
            styles=task.styles,
            longest=config.rollout.max_tokens,
            importance_cap=config.pipeline.importance_cap,
        )

    last = build(config.method)
    sft = replace(config.method, rollouts=False, label=True, label_term=LabelTerm.ce, label_coef=1.0, label_decay=None)
    first = build(sft)
    return lambda step: first if step < config.method.sft_steps else last


def evaluate(config: EvaluateConfig) -> Metrics:
    """Score greedy answers of `checkpoint` to the held-out split, or the stored `predictions`.

    Answers and scores are written to `output_dir`.
    """
    if config.checkpoint is None:
        return _score_again(config)
    check_vllm(config)
    check_segmenter(config.task.segmenter, "task.segmenter")
    output = Path(config.output_dir).expanduser().resolve()
    task = load_task(config.task, config.seed)
    with ExitStack() as stack:
        config.model.path = _as_model(config.checkpoint, output, stack)
        stack.enter_context(connected(config.cluster.address))
        check_demand([rollout_demand(config), segmenter_demand(config)], cluster_nodes())
        data = start_data(config, train=False)
        rollouts = start_rollouts(config)
        stack.callback(rollouts.shut_down)
        segmentation = start_segmentation(config)
        wait_for(rollouts, config)
        examples = data.held_out(config.eval.examples)
        predictions = rollouts.answer(examples, max_tokens=config.eval.max_tokens)
        if segmentation:
            predictions = segmentation.segment(examples, predictions)
    output.mkdir(parents=True, exist_ok=True)
    write_predictions(predictions, output / "predictions.jsonl")
    return _write_scores(task.metrics(predictions), output)


def _score_again(config: EvaluateConfig) -> Metrics:
    """Score a predictions.jsonl by the task's metrics as they are now, and write the scores to `output_dir`."""
    found = read_predictions(Path(config.predictions or "").expanduser())
    try:
        scores = load_task(config.task, config.seed).metrics(found)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"predictions={config.predictions} are not of task={config.task.name}: {error}") from error
    output = Path(config.output_dir).expanduser().resolve()
    output.mkdir(parents=True, exist_ok=True)
    return _write_scores(scores, output)


def _write_scores(scores: Metrics, output: Path) -> Metrics:
    (output / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def _as_model(checkpoint: str, output: Path, stack: ExitStack) -> str:
    """A folder or hub id that `from_pretrained` loads.

    A training checkpoint is converted into a folder below `output`, where every node sees it, until `stack` ends.
    """
    path = Path(checkpoint).expanduser()
    if not (path / "state.json").is_file():
        return resolve_model(checkpoint, "checkpoint")
    from visurf_ray.learner.export import export_checkpoint

    run = path.resolve().parent.parent / "config.yaml"
    if not run.is_file():
        raise ConfigError(f"checkpoint={checkpoint}: {run}, the configuration of its run, is missing")
    saved = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(run).model)
    model = cast(ModelConfig, OmegaConf.to_object(saved))
    output.mkdir(parents=True, exist_ok=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=output, prefix="model-"))
    export_checkpoint(path, resolve_model(model.path), Trained(**read_state(path).trained), Path(folder))
    load_processor(model).save_pretrained(folder)
    return folder
