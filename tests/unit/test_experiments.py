"""The experiments of conf/experiment/: all of them compose, and are what the tables say."""

import re
from itertools import product

import pytest
from omegaconf import OmegaConf

from tests.unit.conftest import composed
from visurf_ray.config.load import CONFIG_DIR, load_config
from visurf_ray.errors import ConfigError
from visurf_ray.rewards.spec import RewardSpec

NAMES = sorted(file.stem for file in (CONFIG_DIR / "experiment").glob("*.yaml"))
TASKS = ("non_object", "reasoning_segmentation", "gui_grounding", "anomaly", "lesion", "math")
DATA = {"task.train", "task.held_out"}


def experiment(name: str, *overrides: str):
    return composed(f"+experiment={name}", *overrides)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_composes_and_leaves_only_data_to_tell(name):
    config = experiment(name)
    assert OmegaConf.missing_keys(config) <= DATA
    OmegaConf.to_container(config, resolve=True)
    if config.task.name != "vqa":  # which is only evaluated
        RewardSpec.of(config.reward).load()
    assert config.model.path != "miniature" or name == "one_node_8_gpus"
    assert config.rollout.workers * config.rollout.gpus + config.learner.ranks * config.learner.gpus == 8


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_says_what_it_is(name):
    header, first, *_ = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert header == "# @package _global_", "Hydra reads it from the first line alone"
    if table := re.match(r"paper_table(\d)", name):
        assert first.startswith(f"# Table {table[1]}, ")


def test_every_row_that_is_trained_has_its_experiment():
    methods = ("sft", "rlvr", "sft_then_rlvr", "visurf")
    expected = {f"paper_table1_{method}_{task}" for method, task in product(methods, TASKS)}
    expected |= {f"paper_table3_{method}_{task}" for method, task in product(methods, ("anomaly", "lesion"))}
    expected |= {
        f"paper_table4_no_{part}_{task}" for part, task in product(("eliminate", "smooth"), (*TASKS[:2], "math"))
    }
    expected |= {f"paper_table4_no_align_{task}" for task in TASKS[:2]}
    expected |= {f"paper_table5_{method}_plain_reasoning_segmentation" for method in ("rlvr", "visurf")}
    expected |= {f"paper_table6_{method}_reasoning_segmentation" for method in methods}
    assert {name for name in NAMES if name.startswith("paper_table")} == expected | {"paper_table2_vqa"}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("paper_table")])
def test_a_row_is_its_method_task_and_settings(name):
    """§5.4 of the paper: the learning rate, the batch, and equal steps of one task."""
    config = experiment(name)
    if name == "paper_table2_vqa":
        assert config.task.name == "vqa"
        return
    _, table, row, task = re.fullmatch(
        rf"(paper_table(\d))_(\w+?)_({'|'.join(TASKS)}|plain_reasoning_segmentation)", name
    ).groups()
    assert config.task.name == task.removeprefix("plain_")
    assert config.method.name == ("visurf" if row.startswith("no_") else row)
    assert config.learner.learning_rate == 1e-6
    assert config.train.batch_size == (32 if row == "sft" else 16)
    assert config.reward.name == ("math" if task == "math" else "vision_reasoner")
    assert config.model.path.endswith("Qwen2-VL-7B-Instruct" if table == "3" else "Qwen2.5-VL-7B-Instruct")
    if table != "6":
        whole = experiment(f"paper_table1_visurf_{config.task.name}")
        assert config.train.steps == whole.train.steps
    assert config.method.sft_steps == (config.train.steps // 2 if row == "sft_then_rlvr" else 0)


def test_the_ablations_switch_off_one_control_each():
    controls = {
        "align": {"style": "compact"},
        "eliminate": {"eliminate": False, "label_thinking": "empty"},
        "smooth": {"smooth": False},
    }
    whole = experiment("paper_table1_visurf_non_object").method
    for part, changed in controls.items():
        assert experiment(f"paper_table4_no_{part}_non_object").method == OmegaConf.merge(whole, changed)


def test_what_is_said_beside_an_experiment_wins():
    config = experiment("paper_table1_visurf_non_object", "method=rlvr", "rollout.n=4", "task.held_out=a.parquet")
    assert (config.method.name, config.rollout.n, config.task.held_out) == ("rlvr", 4, "a.parquet")
    assert config.train.steps == 456


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+experiment=paper_table1_visurf_nonobject",
            "unknown experiment 'paper_table1_visurf_nonobject'. Did you mean",
        ),
        ("+experiment=paper_table1_visurf_nonobject", "'paper_table1_visurf_non_object'?"),
        ("experiment=paper_base", "write +experiment=paper_base"),
        ("+experiment=paper_base rollout.nn=3", "'rollout.nn'. Did you mean 'rollout.n'?"),
        ("+experiment=paper_table1_visurf_math reward.options.boxed_credi=0", "'reward.options.boxed_credit'?"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(override, message):
    with pytest.raises(ConfigError) as error:
        load_config(override.split())
    assert message in str(error.value)
