"""The configuration: what composes, what is refused and how, and that it costs no heavy import."""

import importlib
import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

from visurf_ray.config.load import CONFIG_DIR, load_config
from visurf_ray.config.schema import _ONE_OF, Config
from visurf_ray.errors import ConfigError

GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONFIG_DIR.iterdir())
    if folder.is_dir() and folder.name != "experiment"  # see test_experiments
}
DATA = ["task.train=a.jsonl", "task.held_out=b.jsonl"]


def schema_keys(schema=Config, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for field in fields(schema):
        kind = get_type_hints(schema)[field.name]
        found |= schema_keys(kind, f"{prefix}{field.name}.") if is_dataclass(kind) else {prefix + field.name}
    return found


# What these hold is up to the option that is chosen: each reward has settings of its own.
OPEN = {"reward.options"}


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


COLOCATED = "pipeline=colocated rollout.gpus=1 learner.gpus=1 rollout.memory=0.4"


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in GROUPS[group]])
def test_every_option_composes_and_resolves(group, option):
    needed = COLOCATED.split()[1:] if option == "colocated" else []
    config = load_config([f"{group}={option}", *needed, *DATA])
    assert OmegaConf.missing_keys(config) == set()
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert leaves(plain) == schema_keys()
    assert group != "method" or config.method.name == option


def test_only_the_data_of_a_users_own_task_are_left_to_tell():
    assert OmegaConf.missing_keys(load_config([])) == set()
    assert OmegaConf.missing_keys(load_config(["task=non_object"])) == {"task.train", "task.held_out"}


def test_yaml_and_schema_have_the_same_keys():
    written = written_keys(CONFIG_DIR / "config.yaml")
    for group, options in GROUPS.items():
        for option in options:
            keys = written_keys(CONFIG_DIR / group / f"{option}.yaml", f"{group}.")
            assert keys <= schema_keys(), f"{group}/{option}.yaml has what the schema lacks"
            written |= keys
    assert written == schema_keys()


def test_overrides_arrive_with_their_types():
    config = load_config(
        ["rollout.n=4", "learner.learning_rate=1e-6", "train.resume=auto", "eval.examples=null", "seed=3"]
    )
    assert (config.rollout.n, config.learner.learning_rate, config.train.resume) == (4, 1e-6, "auto")
    assert config.eval.examples is None
    assert config.output_dir == "outputs/visurf-seed3"
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
    config = load_config([f"reward={name}", "task=non_object", *DATA]).reward
    defaults = {key: parameter.default for key, parameter in inspect.signature(reward).parameters.items()}
    assert config.name == name and dict(config.options) == defaults
    RewardSpec.of(config).load()


def test_every_reward_has_its_configuration():
    from visurf_ray.rewards import REWARDS

    assert GROUPS["reward"] == sorted([*REWARDS, "none"])


def test_every_task_has_its_configuration():
    from visurf_ray.tasks import TASKS

    assert GROUPS["task"] == sorted(TASKS)
    assert {load_config([f"task={name}"]).task.name for name in TASKS} == set(TASKS)


def test_a_rewards_options_are_set_by_name():
    config = load_config(["reward=math", "reward.options.boxed_credit=0", "reward.function=my_module:score"])
    assert config.reward.options == {"boxed_credit": 0} and config.reward.function == "my_module:score"


def test_methods_differ_in_what_defines_them():
    visurf, rlvr, sft = (load_config([f"method={name}"]).method for name in ("visurf", "rlvr", "sft"))
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
        ("learnr.ranks=2", "'learnr.ranks'. Did you mean 'learner.ranks'?"),
        ("train.batch=3", "Did you mean 'train.batch_size'?"),
        ("method.clip=0.1", "Did you mean 'method.clip_"),
        ("sed=1", "'sed'. Did you mean 'seed'?"),
        (
            "method=visruf",
            "unknown method 'visruf'. Did you mean 'visurf'? Known: dapo, rlvr, sft, sft_then_rlvr, visurf",
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
    "override",
    [
        "rollout.n=many",
        "rollout.n=2.5",
        "train.steps=null",
        "train.export=perhaps",
        "learner.adam_betas=0.9",
        "learner.adam_betas=[a,b]",
        "rollout=8",
        "rollout.n=1,2",
        "rollout.n=[1",
        "rollout.n",
        "task.train=a=b",
        "method=null",
        "~rollout.n",
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line_that_names_it(override):
    with pytest.raises(ConfigError) as error:
        load_config(["seed=1", override])
    message = str(error.value)
    assert "\n" not in message
    assert override.lstrip("~").partition("=")[0] in message or override in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.workers=0", "rollout.workers=0 must be 1 at least"),
        ("rollout.max_in_flight=0", "rollout.max_in_flight=0 must be 1 at least"),
        ("rollout.max_tokens=0", "rollout.max_tokens=0 must be 1 at least"),
        ("reward.workers=0", "reward.workers=0 must be 1 at least"),
        ("learner.ranks=0", "learner.ranks=0 must be 1 at least"),
        ("learner.minibatches=-1", "learner.minibatches=-1 must be 1 at least"),
        ("train.keep_checkpoints=0", "train.keep_checkpoints=0 must be 1 at least"),
        ("rollout.temperature=0", "rollout.temperature=0 must be above 0"),
        ("rollout.temperature=2.5", "rollout.temperature=2.5 must be above 0 and not above 2"),
        ("rollout.n=0", "rollout.n=0: a group needs two responses"),
        ("train.batch_size=1 learner.ranks=2", "train.batch_size=1 must be learner.ranks × learner.minibatches = 2"),
        (
            "method.style=spacd",
            "method.style=spacd: it must be one of spaced, compact, quoted, auto. Did you mean 'spaced'?",
        ),
        ("method.aggregation=tokens", "Did you mean 'token'?"),
        ("method.advantage_from=x", "method.advantage_from=x: it must be one of group, rollouts."),
        ("method.advantage_ddof=2", "method.advantage_ddof=2: it must be one of 0, 1."),
        ("method.kl_coef=-1", "method.kl_coef=-1 must be 0 at least"),
        ("method=sft method.label_term=ppo", "without method.rollouts it must be ce"),
        ("pipeline=one_step_off pipeline.importance_cap=0", "pipeline.importance_cap=0 must be above 0"),
        ("method.dual_clip=0.9", "method.dual_clip=0.9 must be above 1"),
        ("method.shaping=0", "method.shaping=0 must be above 0"),
        ("method.label_decay=0", "method.label_decay=0 must be 1 at least"),
        ("method.label_term=x", "method.label_term=x: it must be one of ppo, shaped, ce."),
        ("learner.dtype=bfloat", "Did you mean 'bfloat16'?"),
        ("learner.packing=splt", "Did you mean 'split'?"),
        ("learner.zero_stage=4", "learner.zero_stage=4: it must be one of 1, 2, 3."),
        ("learner.gpus=2", "learner.gpus=2: it must be one of 0, 1."),
        ("learner.lora.rank=-1", "learner.lora.rank=-1 must be 0 at least"),
        ("learner.lora.alpha=0", "learner.lora.alpha=0 must be above 0"),
        ("learner.lora.dropout=1", "learner.lora.dropout=1 must be 0 at least and below 1"),
        ("learner.lora.targets=[]", "learner.lora.targets is empty"),
        ("monitor.wandb=on", "monitor.wandb=on: it must be one of auto, online, offline, disabled."),
        ("reward.on_error=skp", "reward.on_error=skp: it must be one of stop, skip. Did you mean 'skip'?"),
        ("reward.timeout=0", "reward.timeout=0 must be above 0"),
        ("rollout.oversample=-1", "rollout.oversample=-1 must be 0 at least"),
        ("pipeline.max_staleness=-1", "pipeline.max_staleness=-1 must be 0 at least"),
        ("pipeline.max_staleness=1", "pipeline.max_staleness > 0 needs pipeline.importance_cap"),
        ("pipeline=colocated", "pipeline.sleep_level=1 puts one rollout worker beside each learner rank: it needs"),
        (f"{COLOCATED} rollout.memory=1.0", "rollout.memory=1: with pipeline.sleep_level it must be below 1"),
        ("rollout.memory=0", "rollout.memory=0 must be above 0"),
        ("rollout.gpus=-1", "rollout.gpus=-1 must be 0 at least"),
        ("learner.learning_rate=-1", "learner.learning_rate=-1 must be 0 at least"),
        (f"{COLOCATED} rollout.workers=2", "as many rollout.workers as learner.ranks"),
        (f"{COLOCATED} pipeline.max_staleness=1 pipeline.importance_cap=2", "needs pipeline.max_staleness=0"),
        (f"{COLOCATED} pipeline.sleep_level=2 learner.lora.rank=4", "pipeline.sleep_level=2 drops frozen weights"),
        (f"{COLOCATED} pipeline.sleep_level=3", "pipeline.sleep_level=3: it must be one of 0, 1, 2."),
        ("method.rollouts=false method.label=false", "there is nothing to learn from"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused(override, message):
    with pytest.raises(ConfigError) as error:
        load_config(override.split())
    assert message in str(error.value)


def test_the_names_that_are_accepted_are_those_that_exist():
    from visurf_ray.answers.boxes import STYLES
    from visurf_ray.learner.packing import Packing
    from visurf_ray.method.objective import Aggregation, LabelTerm
    from visurf_ray.monitor.metrics import Mode
    from visurf_ray.tasks.detection import DetectionTask

    assert _ONE_OF["learner.packing"] == get_args(Packing)
    assert _ONE_OF["method.aggregation"] == get_args(Aggregation)
    assert _ONE_OF["method.label_term"] == get_args(LabelTerm)
    assert _ONE_OF["monitor.wandb"] == ("auto", *get_args(Mode))
    assert _ONE_OF["method.style"] == (*DetectionTask.styles, "auto") == (*STYLES, "quoted", "auto")


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


def test_importing_the_configuration_loads_nothing_heavy():
    code = (
        "import sys, visurf_ray.config; visurf_ray.config.load_config([]);"
        "print([m for m in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
