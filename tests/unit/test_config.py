"""The configuration: what composes, what is refused and how, and that it costs no heavy import."""

import importlib
import inspect
import shlex
import subprocess
import sys
from copy import deepcopy
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from omegaconf import OmegaConf

from tests.unit.conftest import composed
from visurf_ray.config import rules
from visurf_ray.config.choices import Clip, ImportanceLevel, LabelStyle, LabelTerm, Layout, Route
from visurf_ray.config.explain import CommandLine, misread
from visurf_ray.config.fields import settings
from visurf_ray.config.load import CONFIG_DIR, load_config
from visurf_ray.config.schema import Config, EvaluateConfig
from visurf_ray.errors import ConfigError

GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONFIG_DIR.iterdir())
    if folder.is_dir() and folder.name != "experiment"  # see test_papers.py
}
DATA = ["task.train=a.jsonl", "task.held_out=b.jsonl"]


def schema_keys(schema=Config, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for field in fields(schema):
        kind = get_type_hints(schema)[field.name]
        found |= schema_keys(kind, f"{prefix}{field.name}.") if is_dataclass(kind) else {prefix + field.name}
    return found


# What these hold is up to the option that is chosen: each reward has settings of its own.
OPEN = {"reward.options", "task.parts", "eval.sets"}


def leaves(values: Any, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in values.items():
        inner = isinstance(value, dict) and prefix + key not in OPEN
        found |= leaves(value, f"{prefix}{key}.") if inner else {prefix + key}
    return found


def written_keys(path, prefix: str = "") -> set[str]:
    return leaves(OmegaConf.to_container(OmegaConf.load(path), resolve=False), prefix) - {f"{prefix}defaults"}


def test_the_groups_are_what_they_should_be():
    assert set(GROUPS) == {"method", "model", "task", "reward", "pipeline"}
    assert {"visurf", "rlvr", "sft"} <= set(GROUPS["method"])


COLOCATED = "cluster.layout=colocated rollout.gpus=1 learner.gpus=1 rollout.memory=0.4"


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in GROUPS for option in GROUPS[group] if option != "mixture"]
)
def test_every_option_composes_and_sets_every_key(group, option):
    config = composed(f"{group}={option}", *DATA)
    assert "???" not in {str(setting.value) for setting in settings(config)}
    assert group not in ("method", "task") or getattr(config, group).name == option


def test_only_the_data_of_a_task_are_left_to_set():
    config = composed("task=non_object")
    assert (config.task.train, config.task.held_out) == (None, None)


def test_the_walk_over_settings_yields_those_that_are_empty():
    keys = {setting.key for setting in settings(composed("reward=point_in_box"))}
    assert {"eval.sets", "task.parts", "reward.options"} <= keys


# What the schema itself gives a value, so that users' files of models and tasks need not name it.
WITH_DEFAULTS = {
    *("model.coordinates", "model.resize", "model.square_side", "model.question"),
    "model.trust_remote_code",
    *("task.system", "task.outside_paths"),
}


def test_yaml_and_schema_have_the_same_keys():
    written = {key for key in written_keys(CONFIG_DIR / "config.yaml") if not key.startswith("hydra.")}
    for group, options in GROUPS.items():
        for option in options:
            keys = written_keys(CONFIG_DIR / group / f"{option}.yaml", f"{group}.")
            assert keys <= schema_keys(), f"{group}/{option}.yaml has what the schema lacks"
            written |= keys
    comments = (CONFIG_DIR / "config.yaml").read_text()
    assert all(f"#   {key}: " in comments for key in WITH_DEFAULTS)
    written |= WITH_DEFAULTS
    assert written == schema_keys()
    evaluation = written_keys(CONFIG_DIR / "evaluate.yaml")
    assert evaluation <= schema_keys(EvaluateConfig) and written | evaluation == schema_keys(EvaluateConfig)


def test_overrides_arrive_with_their_types():
    config = load_config(
        ["rollout.n=4", "learner.learning_rate=1e-6", "train.resume=auto", "eval.examples=null", "seed=3"]
    )
    assert (config.rollout.n, config.learner.learning_rate, config.train.resume) == (4, 1e-6, "auto")
    assert config.eval.examples is None
    assert config.output_dir == str(Path.cwd() / "outputs/visurf-seed3")
    assert config.eval.max_tokens == config.rollout.max_tokens


def test_the_rewards_distances_follow_the_task():
    miniature, own = load_config([]), load_config(["task=non_object", *DATA])
    assert miniature.reward.options == {"credit_empty": True, "box_distance": 3.0, "point_distance": 5.0}
    assert own.reward.options == {"credit_empty": True, "box_distance": 10.0, "point_distance": 30.0}


@pytest.mark.parametrize("name", sorted({*GROUPS["reward"]} - {"none"}))
def test_a_rewards_options_are_its_own_and_its_own_defaults(name):
    from visurf_ray.rewards import REWARDS
    from visurf_ray.rewards.spec import RewardSpec

    module, attribute = REWARDS[name].split(":")
    reward = getattr(importlib.import_module(module), attribute)
    config = composed(f"reward={name}", "task=non_object", *DATA).reward
    defaults = {key: parameter.default for key, parameter in inspect.signature(reward).parameters.items()}
    assert config.name == name and config.options == defaults
    RewardSpec.of(config).load()


def test_every_reward_has_its_configuration():
    from visurf_ray.rewards import REWARDS

    assert GROUPS["reward"] == sorted([*REWARDS, "none"])


def test_every_task_has_its_configuration():
    from visurf_ray.tasks import TASKS

    assert GROUPS["task"] == sorted([*TASKS, "custom", "mixture"])
    assert {composed(f"task={name}").task.name for name in TASKS} == set(TASKS)


def test_a_rewards_options_are_set_by_name():
    config = load_config(["reward=math", "reward.options.boxed_credit=0", "reward.function=my_module:score"])
    assert config.reward.options == {"boxed_credit": 0} and config.reward.function == "my_module:score"


def test_methods_differ_in_what_defines_them():
    visurf, rlvr, sft = (composed(f"method={name}").method for name in ("visurf", "rlvr", "sft"))
    assert (visurf.rollouts, visurf.label, visurf.label_term) == (True, True, "ppo")
    assert visurf.eliminate and visurf.smooth and visurf.advantage_std and visurf.advantage_ddof == 1
    assert (rlvr.rollouts, rlvr.label) == (True, False)
    assert (sft.rollouts, sft.label, sft.label_term) == (False, True, "ce")


# What is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.nn=3", "there is no configuration key 'rollout.nn'. Did you mean 'rollout.n'?"),
        ("learner.learning_rat=1", "'learner.learning_rat'. Did you mean 'learner.learning_rate'?"),
        ("learner.lr=1e-5", "'learner.lr'. Did you mean 'learner.learning_rate'?"),
        ("method=GRPO", "unknown method 'GRPO'. Did you mean 'rlvr'?"),
        ("method=ViSuRF", "unknown method 'ViSuRF'. Did you mean 'visurf'?"),
        ("lr=1e-5", "'lr'. Did you mean 'learner.learning_rate'?"),
        ("n=4", "'n'. Did you mean 'rollout.n'?"),
        ("num_generations=8", "'num_generations'. Did you mean 'rollout.n'?"),
        ("+rollout.tensor_parallel_size=2", "Did you mean 'rollout.gpus'?"),
        ("learner.kl_coef=0.1", "Did you mean 'method.kl_coef'?"),
        ("trainer.total_epochs=3", "Did you mean 'train.steps'?"),
        ("learnr.ranks=2", "'learnr.ranks'. Did you mean 'learner.ranks'?"),
        ("train.batch=3", "Did you mean 'train.batch_size'?"),
        ("method.clip_hig=0.1", "Did you mean 'method.clip_high'?"),
        ("sed=1", "'sed'. Did you mean 'seed'?"),
        (
            "method=visruf",
            "unknown method 'visruf'. Did you mean 'visurf'? Known: chord, cispo, dapo, dft, gspo, hpt,",
        ),
        ("model=miniatur", "unknown model 'miniatur'. Did you mean 'miniature'?"),
        ("task=non_objec", "unknown task 'non_objec'. Did you mean 'non_object'?"),
        ("reward=vision", "unknown reward 'vision'. Did you mean 'vision_reasoner'?"),
        ("+rollout.nn=3", "'rollout.nn'"),
        ("++rollout.nn=3", "'rollout.nn'"),
        ("+colour=red", "'colour'"),
        ("reward.options.credit_emty=false", "Did you mean 'reward.options.credit_empty'?"),
        ("+reward.options.credit=false", "no configuration key 'reward.options.credit'. Did you mean 'reward."),
        ("reward.credit_empty=false", "Did you mean 'reward.options.credit_empty'?"),
        ("reward.functon=a:b", "Did you mean 'reward.function'?"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(override, message):
    with pytest.raises(ConfigError) as error:
        load_config([override])
    assert message in str(error.value)


def test_the_override_at_fault_is_told_among_good_ones():
    with pytest.raises(ConfigError, match=r"'rollout\.nn'"):
        load_config(["rollout.n=4", "method=rlvr", "rollout.nn=3", "+train.steps=2"])


@pytest.mark.parametrize(
    ("override", "reasons"),
    [
        ("rollout.n=many", ["could not be converted to Integer"]),
        ("rollout.n=2.5", ["could not be converted to Integer"]),
        ("train.steps=1e3", ["could not be converted to Integer", "Write train.steps=1000"]),
        ("train.steps=1e99", ["could not be converted to Integer", "Write a whole number"]),
        ("seed=None", ["Write a whole number"]),
        ("eval.examples=none", ["Write null for no value"]),
        ("eval.examples=all", ["Write a whole number, or null"]),
        ("rollout.memory=2GB", ["Write a number"]),
        ("learner.dtype=null", ["Write float32, bfloat16"]),
        ("learner.offload=2", ["Write true or false"]),
        ("output_dir=true", ["Write a text, in quotes: \"output_dir='true'\""]),
        ("output_dir=2026.10", ["\"output_dir='2026.10'\""]),
        ("train.resume=false", ["or null for no value"]),
        ("output_dir=/runs/${HOME}", ["Write ${oc.env:NAME}"]),
        ("train.steps=null", ["not Optional"]),
        ("train.export=perhaps", ["is not a valid bool"]),
        ("learner.offload=cpu", ["is not a valid bool", "Write true or false"]),
        ("eval.examples=None", ["Write null for no value"]),
        ("learner.adam_betas=0.9", ["learner.adam_betas=0.9", "Write a list, such as [0.9, 0.999]"]),
        ("learner.adam_betas=[a,b]", ["learner.adam_betas[0]", "could not be converted to Float"]),
        ("rollout=8", ["rollout is a section: set one of its keys, such as rollout.workers"]),
        ("rollout.n=1,2", ["To sweep over it, add --multirun"]),
        ("method=null", ["unknown method None. Known: chord"]),
        ("~rollout.n", ["does not support deletion"]),
        ("rollout.n", ["it must be key=value"]),
        ("rollout.n=[1", ["at '['", "needs quotes"]),
        ("task.train=a=b", ["at '='", "\"task.train='a=b'\""]),
        ("task.train=~/data/train.jsonl", ["at '~'", "\"task.train='~/data/train.jsonl'\""]),
        ("task.train=/data/训练/a.jsonl", ["at '训'", "quotes"]),
        ("task.train=/data/train(1).jsonl", ["at '('", "quotes"]),
        ("output_dir=/runs/a#1", ["at '#'", "quotes"]),
        ("output_dir='/runs/a'b'", ["\"output_dir='/runs/a\\'b'\""]),
        ('output_dir=/runs/a"b', [shlex.quote("output_dir='/runs/a\"b'")]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_one_line_that_says_why(override, reasons):
    with pytest.raises(ConfigError) as error:
        load_config(["seed=1", override])
    message = str(error.value)
    assert "\n" not in message and (override.lstrip("~") in message or override.partition("=")[0] in message)
    for reason in reasons:
        assert reason in message


def test_the_quotes_that_a_refusal_recommends_are_read():
    path = "~/data (1)/训练#a=b.jsonl"
    assert composed(f"task.train='{path}'", "task=non_object").task.train == str(Path(path).expanduser())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.style=spacd", "must be one of spaced, compact, quoted, auto. Did you mean 'spaced'?"),
        ("method.aggregation=tokens", "Did you mean 'token'?"),
        ("method.advantage_from=x", "method.advantage_from=x: it must be one of group, rollouts."),
        ("method.label_term=x", "method.label_term=x: it must be one of ppo, shaped, ce, dft, chord, srft."),
        ("method.ratio=sequenc", "Did you mean 'sequence'?"),
        ("method.clip=pp", "method.clip=pp: it must be one of ppo, cispo, sapo. Did you mean 'ppo'?"),
        ("method.overlong=false", "it must be one of off, punish, filter."),
        ("pipeline.importance=tokens", "Did you mean 'token'?"),
        ("pipeline.on_excess=cap", "it must be one of clip, mask."),
        ("learner.schedule=cosin", "must be one of constant, linear, cosine. Did you mean 'cosine'?"),
        ("learner.dtype=bfloat", "Did you mean 'bfloat16'?"),
        ("cluster.layout=colocate", "Did you mean 'colocated'?"),
        ("monitor.wandb=None", "Did you mean 'disabled'?"),
        ("pipeline.importance=false", "Did you mean 'off'?"),
        ("monitor.wandb=on", "monitor.wandb=on: it must be one of auto, online, offline, disabled."),
        ("reward.on_error=skp", "reward.on_error=skp: it must be one of stop, skip. Did you mean 'skip'?"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused_with_the_nearest(override, message):
    with pytest.raises(ConfigError) as error:
        load_config([override])
    assert message in str(error.value)


PART = SimpleNamespace(name="vqa", module=None, segmenter=None)
MIXTURE_VALUES = {"task__name": "mixture", "task__parts": {"a": PART}}


def with_values(**values: Any) -> Config:
    """The default configuration with other values, by dotted keys whose dots are written `__`."""
    config = deepcopy(composed())
    for key, value in values.items():
        *sections, name = key.split("__")
        section = config
        for part in sections:
            section = getattr(section, part)
        assert hasattr(section, name)
        setattr(section, name, value)
    return config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rollout__workers", 0, "rollout.workers=0 must be at least 1"),
        ("rollout__max_tokens", 0, "rollout.max_tokens=0 must be at least 1"),
        ("rollout__temperature", 0.0, "rollout.temperature=0 must be above 0 and at most 2"),
        ("rollout__temperature", 2.5, "rollout.temperature=2.5 must be above 0 and at most 2"),
        ("rollout__memory", 0.0, "rollout.memory=0 must be above 0"),
        ("rollout__sleep_level", 3, "rollout.sleep_level=3 must be at least 1 and at most 2"),
        ("eval__examples", -1, "eval.examples=-1 must be at least 1, or null"),
        ("model__max_pixels", 0, "model.max_pixels=0 must be at least 1, or null"),
        ("method__label_decay", 0, "method.label_decay=0 must be at least 1, or null"),
        ("method__dual_clip", 0.9, "method.dual_clip=0.9 must be above 1, or null"),
        ("method__clip_low", 1.5, "method.clip_low=1.5 must be at least 0 and at most 1"),
        ("method__advantage_ddof", 2, "method.advantage_ddof=2 must be at least 0 and at most 1"),
        ("method__sft_batch_size", 0, "method.sft_batch_size=0 must be at least 1, or null"),
        ("learner__learning_rate_floor", 1.0, "learner.learning_rate_floor=1 must be at least 0 and below 1"),
        ("learner__zero_stage", 4, "learner.zero_stage=4 must be at least 1 and at most 3"),
        ("learner__gpus", 2, "learner.gpus=2 must be at least 0 and at most 1"),
        ("learner__lora__dropout", 1.0, "learner.lora.dropout=1 must be at least 0 and below 1"),
        ("learner__lora__alpha", 0.0, "learner.lora.alpha=0 must be above 0"),
        ("learner__learning_rate", float("nan"), "learner.learning_rate=nan must be a finite number"),
        ("learner__weight_decay", float("inf"), "learner.weight_decay=inf must be a finite number"),
        ("pipeline__importance_high", 0.0, "pipeline.importance_high=0 must be above 0"),
        ("method__mu__peak", 1.5, "method.mu.peak=1.5 must be at least 0 and at most 1, or null"),
        ("method__route_share", 1.0, "method.route_share=1 must be at least 0 and below 1"),
        ("method__overlong_buffer", 0.0, "method.overlong_buffer=0 must be above 0 and at most 1"),
        ("seed", -1, "seed=-1 must be at least 0"),
        ("seed", 2**31, "seed=2147483648 must be at least 0 and at most 2147483647"),
        ("learner__learning_rate", 1e6, "learner.learning_rate=1000000 must be at least 0 and at most 1"),
        ("output_dir", "", "output_dir='': it must have a value"),
        ("model__path", "None", "model.path='None': it must have a value"),
        ("task__train", "none", "task.train='none': write task.train=null for no value"),
        ("reward__function", "None", "write reward.function=null for no value"),
    ],
)
def test_a_number_outside_its_bounds_is_refused(key, value, message):
    with pytest.raises(ConfigError) as error:
        rules.check(with_values(**{key: value}))
    assert message in str(error.value)


def test_bounds_are_checked_when_a_command_line_is_composed():
    with pytest.raises(ConfigError, match=r"train\.keep_checkpoints=0 must be at least 1"):
        load_config(["train.keep_checkpoints=0"])


COLOCATED_VALUES = {
    "cluster__layout": Layout.colocated,
    "rollout__gpus": 1,
    "learner__gpus": 1,
    "rollout__memory": 0.4,
}


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("nothing_to_learn_from", {"method__rollouts": False, "method__label": False}),
        ("group_of_one", {"rollout__n": 0}),
        ("comparison_without_rollouts", {"method__rollouts": False}),
        ("selection_of_groups_that_all_teach", {"method__dynamic_sampling": True, "method__label_term": LabelTerm.ce}),
        ("divergence_without_rollouts", {"method__rollouts": False, "method__kl_coef": 0.1}),
        ("group_of_one", {"rollout__n": 1, "method__label_term": LabelTerm.chord}),
        ("group_of_one", {"rollout__n": 1, "method__label_decay": 10}),
        ("group_of_one", {"rollout__n": 1, "method__label_coef": 0.0}),
        ("comparison_without_rollouts", {"method__rollouts": False, "method__label_term": LabelTerm.srft}),
        (
            "selection_of_groups_that_all_teach",
            {"method__dynamic_sampling": True, "method__label_term": LabelTerm.srft},
        ),
        (
            "labels_that_end_without_rollouts",
            {"method__rollouts": False, "method__label_term": LabelTerm.ce, "method__label_decay": 10},
        ),
        (
            "labels_that_end_without_rollouts",
            {"method__rollouts": False, "method__label_term": LabelTerm.dft, "method__label_coef": 0.0},
        ),
        ("mu_without_two_losses", {"method__mu__peak": 0.5}),
        ("mu_without_two_losses", {"method__mu__peak": 0.5, "method__label_term": "ce", "method__label": False}),
        (
            "two_factors_of_the_label",
            {"method__mu__peak": 0.5, "method__label_term": LabelTerm.ce, "method__label_decay": 10},
        ),
        (
            "two_factors_of_the_label",
            {"method__mu__peak": 0.5, "method__label_term": LabelTerm.ce, "method__label_coef": 0.5},
        ),
        ("route_without_two_ways", {"method__route": Route.hpt}),
        ("route_without_two_ways", {"method__route": Route.hpt, "method__label_term": "srft"}),
        (
            "label_gate_beside_a_route",
            {"method__route": Route.hpt, "method__label_term": LabelTerm.ce, "method__label_gate": True},
        ),
        ("dual_clip_without_ppo", {"method__dual_clip": 3.0, "method__clip": Clip.sapo}),
        ("importance_without_room", {"pipeline__importance_low": 2.0}),
        ("sft_to_the_end", {"method__sft_steps": 80}),
        ("sft_settings_without_steps", {"method__sft_batch_size": 32}),
        ("sft_settings_without_steps", {"method__sft_learning_rate": 0.0}),
        ("module_beside_another_task", {"task__module": "my_task.py:MyTask"}),
        ("minibatches_without_groups", {"train__batch_size": 1, "learner__minibatches": 2}),
        (
            "minibatches_without_groups",
            {"method__sft_steps": 9, "method__sft_batch_size": 1, "learner__minibatches": 2},
        ),
        ("warmup_to_the_end", {"learner__warmup_steps": 80}),
        ("warmup_to_the_end", {"learner__warmup_steps": 30, "method__sft_steps": 60}),
        ("floor_of_a_constant_rate", {"learner__learning_rate_floor": 0.1}),
        ("betas_that_adam_cannot_have", {"learner__adam_betas": [0.9]}),
        ("betas_that_adam_cannot_have", {"learner__adam_betas": [0.9, 1.0]}),
        ("adapters_without_layers", {"learner__lora__targets": []}),
        ("stale_samples_without_weights", {"pipeline__max_staleness": 1}),
        ("devices_of_two_kinds", {"rollout__gpus": 1}),
        ("colocation_without_a_rank_for_each_gpu", {"cluster__layout": Layout.colocated}),
        ("colocation_without_a_rank_for_each_gpu", COLOCATED_VALUES | {"rollout__workers": 2}),
        ("colocation_without_a_rank_for_each_gpu", COLOCATED_VALUES | {"rollout__gpus": 2, "learner__ranks": 3}),
        ("colocation_without_a_rank_for_each_gpu", COLOCATED_VALUES | {"learner__gpus": 0}),
        ("gpus_of_others_that_none_can_have", {"reward__gpus": 1.5}),
        ("gpus_of_others_that_none_can_have", {"eval__segmenter_gpus": 2.25}),
        (
            "gpus_of_others_that_none_can_have",
            COLOCATED_VALUES | {"rollout__gpus": 2, "learner__ranks": 2, "reward__gpus": 2},
        ),
        ("colocation_without_room", COLOCATED_VALUES | {"rollout__memory": 1.0}),
        (
            "sampling_ahead_on_shared_gpus",
            COLOCATED_VALUES | {"pipeline__max_staleness": 1, "pipeline__importance": ImportanceLevel.token},
        ),
        (
            "frozen_weights_that_no_sync_restores",
            COLOCATED_VALUES | {"rollout__sleep_level": 2, "learner__lora__rank": 4},
        ),
        ("curriculum_without_rollouts", {"feed__curriculum": 1, "method__rollouts": False}),
        ("mixture_without_parts", {"task__parts": {"a": PART}}),
        ("sets_named_like_parts", MIXTURE_VALUES | {"eval__sets": {"a": PART}}),
        ("settings_of_one_task_in_a_mixture", MIXTURE_VALUES | {"task__train": 5}),
        (
            "segmenters_that_differ",
            {"task__segmenter": "a", "eval__sets": {"b": SimpleNamespace(name="vqa", module=None, segmenter="b")}},
        ),
        ("many_greedy_answers", {"eval__n": 4}),
        ("best_without_evaluations", {"train__keep_best": "n_acc", "eval__every": 0}),
        ("dumps_of_no_step", {"train__dump_steps": [3, 81]}),
        ("dumps_of_no_step", {"train__dump_steps": [0]}),
        ("check_of_no_number", {"feed__check": "0"}),
        ("upload_without_an_export", {"train__push_to_hub": "me/mine", "train__export": False}),
        ("equality_that_cannot_be_promised", {"rollout__deterministic": True, "rollout__oversample": 1}),
    ],
)
def test_settings_that_contradict_each_other_are_refused(rule, values):
    config = with_values(**values)
    assert rule in [other.__name__ for other in rules.RULES if other(config)]
    with pytest.raises(ConfigError) as error:
        rules.check(config)
    assert any(key.replace("__", ".") in str(error.value) for key in values)


@pytest.mark.parametrize(
    ("overrides", "reasons"),
    [
        (["rollout.dtype=bfloat16"], ["rollout.dtype=bfloat16", "shown for float32"]),
        (["pipeline=one_step_off"], ["pipeline.max_staleness=1", "which weights sample a batch"]),
        (
            ["reward.on_error=skip", "rollout.oversample=2"],
            ["reward.on_error=skip", "rollout.oversample=2", "the load"],
        ),
        (["rollout.gpus=1", "learner.gpus=1"], ["rollout.gpus=1", "add in an order that changes"]),
    ],
)
def test_equal_runs_are_not_promised_where_they_cannot_be(overrides, reasons):
    composed(*overrides), composed("rollout.deterministic=true", "method=dapo", "rollout.oversample=2")
    with pytest.raises(ConfigError, match=r"rollout\.deterministic=true cannot promise equal runs") as caught:
        composed(*overrides, "rollout.deterministic=true")
    assert all(reason in str(caught.value) for reason in reasons)


def test_a_module_of_a_part_that_has_a_task_is_refused_by_the_parts_key():
    parts = ["task=mixture", "+task.parts.own.task=custom", "+task.parts.own.module=a:B", "+task.parts.b.task=vqa"]
    assert load_config(parts).parts["own"].module == "a:B"
    with pytest.raises(ConfigError, match=r"^task\.parts\.b\.module=a:B .* choose task\.parts\.b\.task=custom, not"):
        load_config([*parts, "+task.parts.b.module=a:B"])
    with pytest.raises(ConfigError, match=r"^eval\.sets\.c\.module=a:B .* choose eval\.sets\.c\.task=custom, not"):
        load_config(["+eval.sets.c.task=vqa", "+eval.sets.c.module=a:B"])
    with pytest.raises(
        ConfigError, match=r"task\.module=a:B: in a mixture each part has its own: set task\.parts\.NAME"
    ):
        load_config([*parts, "+task.module=a:B"])


def test_every_rule_is_tried():
    marks = test_settings_that_contradict_each_other_are_refused.pytestmark
    assert {case[0] for case in marks[0].args[1]} == {rule.__name__ for rule in rules.RULES}


def test_colocation_composes():
    assert composed(*COLOCATED.split()).colocated and not composed().colocated
    several = ["rollout.gpus=2", "rollout.workers=3", "learner.ranks=6"]
    assert composed(*COLOCATED.split(), *several).colocated


def test_the_label_styles_are_those_that_tasks_write():
    from visurf_ray.answers.responses import STYLES
    from visurf_ray.tasks.detection import DetectionTask

    assert list(LabelStyle) == [*DetectionTask.styles, "auto"] == [*STYLES, "quoted", "auto"]


def test_an_option_of_another_reward_is_refused():
    with pytest.raises(ConfigError, match=r"no configuration key .reward.options.credit_empty."):
        load_config(["reward=math", "reward.options.credit_empty=false"])
    with pytest.raises(ConfigError, match=r"Did you mean .reward.options.boxed_credit."):
        load_config(["reward.options.boxed_credi=0", "reward=math"])


def test_composing_again_is_not_disturbed_by_a_refusal():
    with pytest.raises(ConfigError):
        load_config(["rollout.nn=3"])
    assert load_config(["rollout.n=5"]).rollout.n == 5
    assert load_config([]).rollout.n == 8


def test_a_name_that_would_be_read_as_a_number_is_refused_in_every_program():
    line = CommandLine("check_data", ["check=2026.10"], [CONFIG_DIR])
    assert "Write a text, in quotes: \"check='2026.10'\"" in (misread(line) or "")


def test_importing_the_configuration_loads_nothing_heavy():
    code = (
        "import sys, visurf_ray.train, visurf_ray.evaluate; "
        "from visurf_ray.config.load import load_config; load_config([]);"
        "print([m for m in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_number_that_another_key_takes_over_is_refused_under_the_key_that_is_set():
    with pytest.raises(ConfigError, match=r"^rollout\.max_tokens=-1 must be at least 1$"):
        load_config(["rollout.max_tokens=-1"])
