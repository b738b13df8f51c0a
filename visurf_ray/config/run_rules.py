"""Settings of learner, sampler, cluster and evaluations that contradict each other. Each rule is named after what it
forbids."""

from visurf_ray.config.choices import Dtype, ImportanceLevel, OnError, Schedule
from visurf_ray.config.schema import Config, Rule
from visurf_ray.config.stages import plan_stages


def minibatches_without_groups(config: Config) -> str | None:
    least = config.learner.minibatches
    for stage in reversed(plan_stages(config)):  # SFT may have the batch size of the stage after it
        if stage.batch_size < least:
            key = "method.sft_batch_size" if stage.is_sft else "train.batch_size"
            return f"{key}={stage.batch_size} must be at least learner.minibatches={least}"
    return None


def warmup_to_the_end(config: Config) -> str | None:
    warmup = config.learner.warmup_steps
    for stage in plan_stages(config):
        if warmup and warmup >= stage.steps:
            name = "method.sft_steps" if stage.is_sft else "train.steps"
            return (
                f"learner.warmup_steps={warmup} must be smaller than the {stage.steps} steps of each stage: "
                f"lower it, or raise {name}"
            )
    return None


def floor_of_a_constant_rate(config: Config) -> str | None:
    learner = config.learner
    if learner.learning_rate_floor and learner.schedule == Schedule.constant:
        return (
            f"learner.learning_rate_floor={learner.learning_rate_floor:g} is where a falling learning rate ends: set "
            "learner.schedule to linear or cosine"
        )
    return None


def betas_that_adam_cannot_have(config: Config) -> str | None:
    betas = config.learner.adam_betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        return f"learner.adam_betas={betas} must be two numbers, each at least 0 and below 1, such as [0.9, 0.999]"
    return None


def adapters_without_layers(config: Config) -> str | None:
    if config.learner.lora.targets == []:
        return "learner.lora.targets is empty: name layers, or set it to null for all linear layers"
    return None


def stale_samples_without_weights(config: Config) -> str | None:
    if config.pipeline.max_staleness and config.pipeline.importance == ImportanceLevel.off:
        return "pipeline.max_staleness > 0 needs pipeline.importance=token or sequence: stale samples must be weighted"
    return None


def importance_without_room(config: Config) -> str | None:
    low, high = config.pipeline.importance_low, config.pipeline.importance_high
    if low >= high:
        return f"pipeline.importance_low={low:g} must be below pipeline.importance_high={high:g}"
    return None


def devices_of_two_kinds(config: Config) -> str | None:
    if bool(config.learner.gpus) != bool(config.rollout.gpus):
        return f"learner.gpus={config.learner.gpus} and rollout.gpus={config.rollout.gpus}: set both to 0, or neither"
    return None


def colocation_without_a_rank_for_each_gpu(config: Config) -> str | None:
    rollout, learner = config.rollout, config.learner
    if config.colocated and (not learner.gpus or learner.ranks != rollout.workers * rollout.gpus):
        return (
            "cluster.layout=colocated puts a learner rank on each GPU of the rollout workers: set learner.gpus=1, and "
            f"learner.ranks to rollout.workers × rollout.gpus (learner.gpus={learner.gpus}, "
            f"learner.ranks={learner.ranks}, rollout.workers={rollout.workers}, rollout.gpus={rollout.gpus})"
        )
    return None


def gpus_of_others_that_none_can_have(config: Config) -> str | None:
    for key, gpus in (("reward.gpus", config.reward.gpus), ("eval.segmenter_gpus", config.eval.segmenter_gpus)):
        if gpus > 1 and gpus != int(gpus):
            return f"{key}={gpus:g} must be a share of one GPU, such as 0.5, or a whole number"
        if gpus > 1 and config.colocated and config.rollout.gpus > 1:  # all are in one placement group
            return (
                f"{key}={gpus:g}: with cluster.layout=colocated and rollout.gpus={config.rollout.gpus} vLLM allows no "
                "actor of the run more than one GPU: set it to at most 1, or choose cluster.layout=disaggregated"
            )
    return None


def colocation_without_room(config: Config) -> str | None:
    if config.colocated and config.rollout.memory >= 1:
        return (
            f"rollout.memory={config.rollout.memory:g}: with cluster.layout=colocated it is the engine's share of the "
            "GPU, and must be below 1"
        )
    return None


def sampling_ahead_on_shared_gpus(config: Config) -> str | None:
    if config.colocated and config.pipeline.max_staleness:
        return (
            f"pipeline.max_staleness={config.pipeline.max_staleness}: with cluster.layout=colocated engines sleep "
            "while the learner works, so set it to 0 (pipeline=sync), or choose cluster.layout=disaggregated"
        )
    return None


def frozen_weights_that_no_sync_restores(config: Config) -> str | None:
    learner = config.learner
    frozen = learner.freeze_vision or learner.freeze_projector or learner.lora.rank
    if config.colocated and config.rollout.sleep_level == 2 and frozen:
        return "rollout.sleep_level=2 drops frozen weights too, and no weight sync restores them: set it to 1"
    return None


def many_greedy_answers(config: Config) -> str | None:
    if config.eval.n > 1 and not config.eval.temperature:
        return (
            f"eval.n={config.eval.n} with eval.temperature=0: greedy answers to a question are all the same, so set "
            "eval.temperature, such as to 1.0, or eval.n=1"
        )
    return None


def best_without_evaluations(config: Config) -> str | None:
    if config.train.keep_best is not None and not config.eval.every:
        return (
            f"train.keep_best={config.train.keep_best} compares evaluations during the training, and eval.every=0 asks "
            "for none: set eval.every, or train.keep_best=null"
        )
    return None


def dumps_of_no_step(config: Config) -> str | None:
    for step in config.train.dump_steps:
        if not 1 <= step <= config.train.steps:
            return f"train.dump_steps has {step}: steps count from 1 to train.steps={config.train.steps}"
    return None


def check_of_no_number(config: Config) -> str | None:
    check = config.feed.check
    if check in ("all", "off") or (check.isdecimal() and int(check) > 0):
        return None
    return f"feed.check={check} must be all, off, or the number of rows to check, at least 1"


def upload_without_an_export(config: Config) -> str | None:
    if config.train.push_to_hub is not None and not config.train.export:
        return (
            f"train.push_to_hub={config.train.push_to_hub} uploads the export, and train.export=false writes none: set "
            "train.export=true, or train.push_to_hub=null"
        )
    return None


def equality_that_cannot_be_promised(config: Config) -> str | None:
    rollout, pipeline = config.rollout, config.pipeline
    if not rollout.deterministic:
        return None
    reasons = (
        (
            rollout.gpus or config.learner.gpus,
            f"rollout.gpus={rollout.gpus}: kernels on GPUs add in an order that changes",
        ),
        (
            rollout.dtype != Dtype.float32 or config.learner.dtype != Dtype.float32,
            f"rollout.dtype={rollout.dtype.name}, learner.dtype={config.learner.dtype.name}: it is shown for float32",
        ),
        (
            pipeline.max_staleness,
            f"pipeline.max_staleness={pipeline.max_staleness}: how fast steps are decides which weights sample a batch",
        ),
        (
            rollout.oversample and not config.method.dynamic_sampling,
            f"rollout.oversample={rollout.oversample}: which prompts are the slowest, and aborted, depends on the load",
        ),
        (
            config.reward.on_error == OnError.skip,
            "reward.on_error=skip: which rewards take longer than reward.timeout depends on the load",
        ),
    )
    found = [reason for applies, reason in reasons if applies]
    return f"rollout.deterministic=true cannot promise equal runs with {'; '.join(found)}" if found else None


RUN_RULES: tuple[Rule, ...] = (
    minibatches_without_groups,
    warmup_to_the_end,
    floor_of_a_constant_rate,
    betas_that_adam_cannot_have,
    adapters_without_layers,
    stale_samples_without_weights,
    importance_without_room,
    devices_of_two_kinds,
    colocation_without_a_rank_for_each_gpu,
    gpus_of_others_that_none_can_have,
    colocation_without_room,
    sampling_ahead_on_shared_gpus,
    frozen_weights_that_no_sync_restores,
    many_greedy_answers,
    best_without_evaluations,
    dumps_of_no_step,
    check_of_no_number,
    upload_without_an_export,
    equality_that_cannot_be_promised,
)
