"""What no run can have: numbers outside the bounds that `schema` declares, and settings that contradict each other."""

import math
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from typing import Any

from visurf_ray.config.choices import IMITATION, SUPERVISED, Clip, ImportanceLevel, Route, Schedule
from visurf_ray.config.schema import MIXTURE, Bounds, Config, TaskConfig, nullable
from visurf_ray.config.stages import plan_stages
from visurf_ray.errors import ConfigError


def check(config: Config) -> None:
    """Raise ConfigError, naming the key, for the first setting that no run can have."""
    for key, value, declared in _leaves(config):
        _check_bounds(key, value, declared)
        _check_text(key, value, declared)
    for rule in RULES:
        if reason := rule(config):
            raise ConfigError(reason)


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """Every setting: its dotted key, its value and its field in the schema."""
    for declared in fields(section):
        key, value = f"{prefix}{declared.name}", getattr(section, declared.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        elif isinstance(value, dict) and all(map(is_dataclass, value.values())):  # parts
            for name, part in value.items():
                yield from _leaves(part, f"{key}.{name}.")
        else:
            yield key, value, declared


def _check_bounds(key: str, value: Any, declared: Field[Any]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be a finite number")
    bounds: Bounds | None = declared.metadata.get("bounds")
    if bounds is None or value is None:
        return
    limits = [
        (bounds.at_least, "at least", lambda limit: value >= limit),
        (bounds.above, "above", lambda limit: value > limit),
        (bounds.at_most, "at most", lambda limit: value <= limit),
        (bounds.below, "below", lambda limit: value < limit),
    ]
    given = [(limit, word, holds) for limit, word, holds in limits if limit is not None]
    if not all(holds(limit) for limit, _, holds in given):
        wanted = " and ".join(f"{word} {limit:.15g}" for limit, word, _ in given)
        null = ", or null" if nullable(declared) else ""
        raise ConfigError(f"{key}={value:.15g} must be {wanted}{null}")


def _check_text(key: str, value: Any, declared: Field[Any]) -> None:
    """Refuse an empty text and the text `None`, which elsewhere mean that there is no value."""
    if isinstance(value, str) and not isinstance(value, Enum) and value.strip().casefold() in ("", "none", "null"):
        cure = "write null for no value" if nullable(declared) else "it must have a value"
        raise ConfigError(f"{key}={value!r} is a text like any other here: {cure}")


# Rules over several settings. Each is named after what it forbids, and returns the reason where it applies.


def module_of_a_task_that_has_one(config: Config) -> str | None:
    for key, task in _tasks(config).items():
        if task.module is not None and task.name != "custom":
            name = key if key == "task" else f"{key}.task"
            return f"{key}.module={task.module} is a task of your own: choose {name}=custom, not {name}={task.name}"
    return None


def _tasks(config: Config) -> dict[str, TaskConfig]:
    """Return the tasks of all parts and held-out sets, by their dotted keys."""
    parts = {f"task.parts.{name}" if name else "task": part for name, part in config.parts.items()}
    return parts | {f"eval.sets.{name}": task for name, task in config.eval.sets.items()}


def nothing_to_learn_from(config: Config) -> str | None:
    if not config.method.rollouts and not config.method.label:
        return "method.rollouts and method.label are both false: there is nothing to learn from"
    return None


def group_of_one(config: Config) -> str | None:
    method = config.method
    stays = method.label_decay is None and method.mu.peak is None
    compared = method.label and method.label_coef > 0 and method.label_term not in IMITATION and stays
    if method.rollouts and config.rollout.n + compared < 2:
        return f"rollout.n={config.rollout.n}: a group needs at least two responses to compare"
    return None


def comparison_without_rollouts(config: Config) -> str | None:
    method = config.method
    if not method.rollouts and method.label_term not in IMITATION:
        return (
            f"method.label_term={method.label_term} compares the label with rollouts: with method.rollouts=false set "
            "method.label_term to ce, dft or chord"
        )
    return None


def divergence_without_rollouts(config: Config) -> str | None:
    if config.method.kl_coef and not config.method.rollouts:
        return (
            f"method.kl_coef={config.method.kl_coef:g} is of rollout tokens: with method.rollouts=false set "
            "method.kl_coef=0"
        )
    return None


def selection_of_groups_that_all_teach(config: Config) -> str | None:
    method = config.method
    if method.dynamic_sampling and method.label and method.label_term in SUPERVISED:
        return (
            "method.dynamic_sampling leaves out groups without an advantage, but with "
            f"method.label_term={method.label_term} every label teaches: choose one of them"
        )
    return None


def labels_that_end_without_rollouts(config: Config) -> str | None:
    method = config.method
    if not method.rollouts and (method.label_decay is not None or not method.label_coef):
        return (
            f"method.label_decay={method.label_decay}, method.label_coef={method.label_coef:g}: with "
            "method.rollouts=false nothing is left to learn from when the label's factor is 0"
        )
    return None


def mu_without_two_losses(config: Config) -> str | None:
    method = config.method
    if method.mu.peak is not None and not (method.rollouts and method.label and method.label_term in SUPERVISED):
        return (
            f"method.mu.peak={method.mu.peak:g} weighs the rollouts' loss against the label's: it needs "
            "method.rollouts=true, method.label=true and a method.label_term of ce, dft, chord or srft"
        )
    return None


def two_factors_of_the_label(config: Config) -> str | None:
    method = config.method
    if method.mu.peak is not None and (method.label_decay is not None or method.label_coef != 1):
        return (
            f"method.mu.peak={method.mu.peak:g} is the factor of the label's loss: with it set method.label_decay=null "
            "and method.label_coef=1"
        )
    return None


def route_without_two_ways(config: Config) -> str | None:
    method = config.method
    if method.route == Route.hpt and not (method.rollouts and method.label and method.label_term in IMITATION):
        return (
            "method.route=hpt chooses between rollouts and a cross-entropy on the label: it needs "
            "method.rollouts=true, method.label=true and a method.label_term of ce, dft or chord"
        )
    return None


def two_choices_of_the_label(config: Config) -> str | None:
    if config.method.route == Route.hpt and config.method.label_gate:
        return "method.route=hpt decides which groups keep their label: set method.label_gate=false"
    return None


def second_clip_without_the_first(config: Config) -> str | None:
    method = config.method
    if method.dual_clip is not None and method.clip != Clip.ppo:
        return f"method.dual_clip={method.dual_clip:g} belongs to method.clip=ppo: with {method.clip} set it to null"
    return None


def sft_to_the_end(config: Config) -> str | None:
    sft_steps, steps = config.method.sft_steps, config.train.steps
    if sft_steps and sft_steps >= steps:
        return (
            f"method.sft_steps={sft_steps} leaves no step to the second stage: train.steps={steps} must be larger than "
            "method.sft_steps"
        )
    return None


def sft_settings_without_steps(config: Config) -> str | None:
    method = config.method
    for name in ("sft_batch_size", "sft_learning_rate"):
        if not method.sft_steps and getattr(method, name) is not None:
            return (
                f"method.{name} is for a stage of SFT before the method's own, but method.sft_steps=0: set sft_steps, "
                f"or method.{name}=null"
            )
    return None


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


def floor_of_a_constant(config: Config) -> str | None:
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


def colocation_without_pairs(config: Config) -> str | None:
    rollout, learner = config.rollout, config.learner
    if config.colocated and (rollout.gpus != 1 or learner.gpus != 1 or rollout.workers != learner.ranks):
        return (
            "cluster.layout=colocated puts one rollout worker beside each learner rank: set rollout.gpus=1, "
            f"learner.gpus=1 and rollout.workers=learner.ranks (rollout.workers={rollout.workers}, "
            f"learner.ranks={learner.ranks})"
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


def curriculum_without_rollouts(config: Config) -> str | None:
    if config.feed.curriculum is not None and not config.method.rollouts:
        return (
            f"feed.curriculum={config.feed.curriculum} leaves out what every rollout has solved: with "
            "method.rollouts=false set it to null"
        )
    return None


def mixture_without_parts(config: Config) -> str | None:
    if config.task.name == MIXTURE and not config.task.parts:
        return (
            "task=mixture has no parts: add each with +task.parts.NAME.task=…, and its files with "
            "+task.parts.NAME.train=… +task.parts.NAME.held_out=…"
        )
    if config.task.name != MIXTURE and (parts := config.task.parts):
        return f"task.parts has {', '.join(parts)}, but task={config.task.name} is one task: choose task=mixture"
    return None


def settings_of_one_task_in_a_mixture(config: Config) -> str | None:
    if config.task.name != MIXTURE:
        return None
    for item in fields(TaskConfig):
        value = getattr(config.task, item.name)
        if value is not None and item.name != "name":
            return f"task.{item.name}={value}: in a mixture each part has its own: set task.parts.NAME.{item.name}"
    reward = config.reward
    if (reward.name, reward.function, reward.weight, reward.function_weight) != (None, None, 1, 1):
        return "reward.name, reward.function and their weights: in a mixture set task.parts.NAME.reward, of each part"
    return None


def sets_named_like_parts(config: Config) -> str | None:
    both = [name for name in config.eval.sets if name in config.task.parts]
    if both:
        return f"eval.sets.{both[0]}: a part of the mixture has this name, and is evaluated: choose another name"
    return None


def segmenters_that_differ(config: Config) -> str | None:
    found = {f"{key}.segmenter": each.segmenter for key, each in _tasks(config).items() if each.segmenter}
    if len(set(found.values())) > 1:
        named = ", ".join(f"{key}={value}" for key, value in found.items())
        return f"{named}: one model makes the masks of all parts and sets: name the same one"
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


def upload_without_an_export(config: Config) -> str | None:
    if config.train.push_to_hub is not None and not config.train.export:
        return (
            f"train.push_to_hub={config.train.push_to_hub} uploads the export, and train.export=false writes none: set "
            "train.export=true, or train.push_to_hub=null"
        )
    return None


RULES: tuple[Callable[[Config], str | None], ...] = (
    module_of_a_task_that_has_one,
    nothing_to_learn_from,
    group_of_one,
    comparison_without_rollouts,
    divergence_without_rollouts,
    selection_of_groups_that_all_teach,
    labels_that_end_without_rollouts,
    mu_without_two_losses,
    two_factors_of_the_label,
    route_without_two_ways,
    two_choices_of_the_label,
    second_clip_without_the_first,
    sft_to_the_end,
    sft_settings_without_steps,
    minibatches_without_groups,
    warmup_to_the_end,
    floor_of_a_constant,
    betas_that_adam_cannot_have,
    adapters_without_layers,
    stale_samples_without_weights,
    importance_without_room,
    devices_of_two_kinds,
    colocation_without_pairs,
    colocation_without_room,
    sampling_ahead_on_shared_gpus,
    frozen_weights_that_no_sync_restores,
    curriculum_without_rollouts,
    mixture_without_parts,
    sets_named_like_parts,
    settings_of_one_task_in_a_mixture,
    segmenters_that_differ,
    many_greedy_answers,
    best_without_evaluations,
    upload_without_an_export,
)
