"""Starts the actors of a run: data, rewards, segmenter, rollout workers and learner ranks."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from visurf_ray.aliases import ActorHandle, ActorOptions, Processor
from visurf_ray.checks import plan_run, reward_demand, segmenter_demand
from visurf_ray.cluster.cpu import SAME_SUMS, on_cpu
from visurf_ray.cluster.reservation import Places, reserved
from visurf_ray.cluster.resources import cluster_nodes, wait_ready
from visurf_ray.cluster.supervision import Supervisor
from visurf_ray.config.choices import ImportanceLevel, OnError, Packing
from visurf_ray.config.schema import Config
from visurf_ray.errors import during
from visurf_ray.feed.feed import DataFeed
from visurf_ray.learner import memory
from visurf_ray.learner.actor import LearnerActor
from visurf_ray.learner.config import RankConfig
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.trained import Trained, trained_weights
from visurf_ray.models import attends_causally, banned_token_ids, resolved
from visurf_ray.rewards.pool import RewardPool
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.rollout.actor import RolloutActor, Sampling
from visurf_ray.rollout.engines import Replacing
from visurf_ray.rollout.pool import RolloutPool, WeightLink
from visurf_ray.rollout.vllm_engine import EngineConfig
from visurf_ray.scoring.segmentation import Segmentation


@during("data")
def start_data(config: Config, *, train: bool = True, supervisor: Supervisor | None = None) -> DataFeed:
    """Start the data actors, which read and check the rows; without `train` those of the held-out split only.

    Args:
        supervisor: see `DataFeed`.

    Raises:
        DataError: a row cannot be used.
    """
    data = DataFeed(config, train=train, supervisor=supervisor)
    if data.findings.warning:
        print(data.findings.warning, flush=True)
    if dropped := data.findings.dropped:
        print(f"{len(dropped)} rows of the data are dropped: see dropped.jsonl in {config.output_dir}", flush=True)
    return data


@during("start")
def reserve(config: Config, stack: ExitStack, *, learns: bool = True, samples: bool = True) -> Places:
    """Reserve what the actors of a run need, until `stack` ends; returns where to start each. Arguments of `plan_run`.

    Raises:
        ClusterError: the cluster does not have what they need, or no longer.
    """
    plan = plan_run(config, cluster_nodes(), learns=learns, samples=samples)
    return stack.enter_context(reserved(plan, config.cluster.start_timeout))


@during("start")
def start_rewards(
    config: Config, rewards: Mapping[str, RewardSpec], places: Places, supervisor: Supervisor
) -> RewardPool:
    """Start the reward workers; `rewards` has the reward of each part. Raises RewardError like `RewardPool`."""
    return RewardPool(
        config.reward,
        rewards,
        cluster_timeout=config.cluster.timeout,
        places=places.others.get(reward_demand(config).name),
        supervisor=supervisor,
    )


@during("start")
def start_segmentation(config: Config, places: Places) -> Segmentation | None:
    """Start the segmenter of evaluations, if a task.segmenter names one.

    Raises:
        UserError: task.segmenter is no SAM2 model.
    """
    if not config.segmenter:
        return None
    tasks = {**config.parts, **config.eval.sets}
    (place,) = places.others.get(segmenter_demand(config).name, [None])
    return Segmentation(
        config.segmenter,
        place,
        timeout=config.cluster.timeout,
        parts=[name for name, task in tasks.items() if task.segmenter],
        strict=config.answers.strict,
    )


@during("start")
def start_policy(
    config: Config,
    processor: Processor,
    stack: ExitStack,
    places: Places,
    *,
    images: int = 1,
    checkpoint: Path | None = None,
    engines: bool = True,
    supervisor: Supervisor | None = None,
) -> tuple[RolloutPool, LearnerGroup]:
    """Start learner ranks, and connect them with a pool of rollout workers.

    Args:
        stack: ends the processes.
        places: where to start them, see `reserve`.
        images: the most images of a prompt.
        checkpoint: the learner's state to continue from.
        engines: whether to start the rollout workers as well, at the same time; otherwise they start when they are
            needed. They hold the learner's weights.
        supervisor: has lost actors replaced; None: the loss of one is an error.

    Raises:
        ClusterError: they do not start.
    """
    rollouts = make_rollouts(
        config, processor, places.workers, trained_weights(config), images=images, supervisor=supervisor
    )
    stack.callback(rollouts.shut_down)
    if engines:
        rollouts.launch()
    if engines and config.colocated:  # as long as the learner rank has not started, the engine has the GPU for itself
        rollouts.wait()
        rollouts.sleep()
    learner = start_learner(config, processor, places.ranks, claim_gpus=rollouts.sleep)
    stack.callback(learner.shut_down)
    if checkpoint:
        learner.load(checkpoint.resolve(), scratch=Path(config.output_dir).resolve())
    connect = partial(
        learner.connect,
        engine_gpus=config.rollout.gpus,
        colocated=config.colocated,
        start_timeout=config.cluster.start_timeout,
    )
    rollouts.connect(WeightLink(connect, learner.send_weights, learner.disconnect))
    if engines:
        rollouts.start()
    return rollouts, learner


@during("start")
def start_learner_alone(config: Config, processor: Processor, stack: ExitStack) -> LearnerGroup:
    """Start learner ranks without rollout workers.

    Args:
        stack: ends the processes, and frees reserved GPUs.

    Raises:
        ClusterError: the cluster does not have what they need, or no longer.
    """
    places = reserve(config, stack, samples=False)
    learner = start_learner(config, processor, places.ranks)
    stack.callback(learner.shut_down)
    return learner


def make_rollouts(
    config: Config,
    processor: Processor,
    places: Sequence[ActorOptions],
    trained: Trained | None = None,
    *,
    images: int = 1,
    supervisor: Supervisor | None = None,
) -> RolloutPool:
    """Return a pool that starts vLLM engines when they are needed.

    Args:
        processor: the model's.
        places: Ray's options of each engine's actor, see `reserved`.
        trained: tells which adapters the engines will load; None: none.
        images: the most images of a prompt.
        supervisor: has lost engines replaced; None: the loss of one is an error.
    """
    rollout = config.rollout
    every = rollout.logprobs_every if config.pipeline.importance == ImportanceLevel.off else 1
    sampling = Sampling(rollout.n, rollout.temperature, rollout.max_tokens, logprobs_every=every, seed=config.seed)
    launch = _engine_launcher(config, processor, places, trained, images)
    return RolloutPool(
        lambda: [launch(number) for number in range(rollout.workers)],
        wait=partial(_wait_for_engines, config),
        sampling=sampling,
        max_in_flight=rollout.max_in_flight,
        timeout=config.cluster.timeout,
        oversample=rollout.oversample,
        sleep_level=rollout.sleep_level if config.colocated else None,
        deterministic=rollout.deterministic,
        replacing=Replacing(launch, supervisor, at_once=not config.colocated) if supervisor else None,
    )


def _engine_launcher(
    config: Config, processor: Processor, places: Sequence[ActorOptions], trained: Trained | None, images: int
) -> Callable[[int], ActorHandle]:
    """Return what begins to start the vLLM engine with a number, from 0."""
    rollout = config.rollout
    engine = EngineConfig(
        model=resolved(config.model),
        dtype=rollout.dtype,
        max_model_len=rollout.max_model_len,
        memory=rollout.memory,
        gpus=rollout.gpus,
        enforce_eager=rollout.enforce_eager,
        sleeps=config.colocated,
        seed=config.seed,
        head_dtype=config.learner.head_dtype,
        banned=tuple(banned_token_ids(processor)),
        images=images,
        adapter_rank=trained.lora_rank if trained else 0,
        adapts_vision=trained.adapts_vision if trained else False,
        deterministic=rollout.deterministic,
    )
    cores = _shares(_cores(config)[0], rollout.workers)

    def launch(number: int) -> ActorHandle:
        return RolloutActor.options(**places[number]).remote(engine, cores[number])  # type: ignore[attr-defined]

    return launch


def _wait_for_engines(config: Config, engines: Sequence[ActorHandle]) -> None:
    """Wait until every engine has started.

    Raises:
        ClusterError: an engine has not started after cluster.start_timeout seconds.
    """
    references = [engine.ready.remote() for engine in engines]
    wait_ready(references, "the rollout workers", config.cluster.start_timeout)


def start_learner(
    config: Config,
    processor: Processor,
    places: Sequence[ActorOptions],
    claim_gpus: Callable[[], None] | None = None,
) -> LearnerGroup:
    """Start DeepSpeed ranks and load the policy.

    Args:
        places: as for `make_rollouts`.
        claim_gpus: as for `LearnerGroup`.
    """
    learner, rank = config.learner, rank_config(config, processor)
    environment = {} if learner.gpus else {"DS_ACCELERATOR": "cpu", **on_cpu()}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= SAME_SUMS if config.rollout.deterministic else {}

    def launch() -> list[ActorHandle]:
        actors = [
            LearnerActor.options(runtime_env={"env_vars": environment}, **place).remote()  # type: ignore[attr-defined]
            for place in places
        ]
        wait_ready([actor.address.remote() for actor in actors], "the learner ranks", config.cluster.start_timeout)
        return actors

    cores = _shares([] if learner.gpus else _cores(config)[1], learner.ranks)
    return LearnerGroup(
        launch(),
        rank,
        seed=config.seed,
        minibatches=learner.minibatches,
        cores=cores,
        claim_gpus=claim_gpus,
        launch=launch,
    )


def rank_config(config: Config, processor: Processor) -> RankConfig:
    """Return the settings of every learner rank."""
    learner = config.learner
    packing = learner.packing
    if packing is Packing.auto:
        packing = Packing.prefix if attends_causally(config.model) else Packing.rows
    cost = memory.forward_cost(memory.measure(config.model, trained_weights(config)))
    return RankConfig(
        model=resolved(config.model),
        temperature=config.rollout.temperature,
        banned=tuple(banned_token_ids(processor)),
        zero_stage=learner.zero_stage,
        offload=learner.offload,
        trained=trained_weights(config),
        learning_rate=learner.learning_rate,
        weight_decay=learner.weight_decay,
        adam_betas=(learner.adam_betas[0], learner.adam_betas[1]),
        max_grad_norm=learner.max_grad_norm,
        max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
        cost=replace(cost, packing=packing),
        logprob_chunk=learner.logprob_chunk,
        gradient_checkpointing=learner.gradient_checkpointing,
        dtype=learner.dtype,
        head_dtype=learner.head_dtype,
        timeout=config.cluster.timeout,
        async_checkpoint=config.train.async_checkpoint,
        epochs=learner.epochs,
        shares_gpu=config.colocated,
        reference=bool(config.method.kl_coef),
        skip_nan=config.train.on_nan is OnError.skip,
        deterministic=config.rollout.deterministic,
    )


def _cores(config: Config) -> tuple[list[int], list[int]]:
    """Return the CPU cores of the rollout workers and those of the learner ranks.

    Both have all cores if they compute in turns, and half of them if they compute at the same time. On several machines
    none are chosen: this one's numbers mean nothing on the others.
    """
    if sum(node.total.get("CPU", 0) > 0 for node in cluster_nodes()) > 1:
        return [], []
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return (cores[:half] or cores, cores[half:]) if config.pipeline.max_staleness else (cores, cores)


def _shares(cores: list[int], parts: int) -> list[list[int]]:
    """Divide cores among `parts`; with more parts than cores each has one core, which others share."""
    return [cores[part::parts] or cores[part % len(cores) :][:1] if cores else [] for part in range(parts)]
