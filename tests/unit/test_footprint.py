"""The experiments on the nodes that they are meant for: where everything goes, and whether it fits into memory."""

import pytest
from transformers import Qwen2_5_VLConfig

from tests.unit.conftest import composed
from tests.unit.test_memory import qwen2_5_vl_7b
from visurf_ray.checks import plan_run
from visurf_ray.cluster.placement import Plan
from visurf_ray.cluster.resources import Node
from visurf_ray.config.load import CONFIG_DIR
from visurf_ray.dry_run import _drawing, _imagined
from visurf_ray.errors import ClusterError, ConfigError
from visurf_ray.footprint import Footprint, check_memory, footprint, needs
from visurf_ray.learner.memory import size_of
from visurf_ray.learner.trained import trained_weights

GIB = 2**30


def qwen2_5_vl_3b() -> Qwen2_5_VLConfig:
    text = {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def qwen2_5_vl_72b() -> Qwen2_5_VLConfig:
    text = {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3456, "num_heads": 16, "out_hidden_size": 8192}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


MODELS = {"3b": qwen2_5_vl_3b, "7b": qwen2_5_vl_7b, "72b": qwen2_5_vl_72b}
LENGTHS = ["learner.max_tokens_per_micro_batch=8192", "rollout.max_model_len=4096", "rollout.max_tokens=2000"]
# Each experiment: the nodes that it is meant for, their GPUs, models that it is meant for, and further settings.
MEANT_FOR = {
    "one_gpu": (1, 1, ["3b", "7b"], LENGTHS),
    "one_node_8_gpus": (1, 8, ["7b"], []),
    "one_node_8_gpus_async": (1, 8, ["7b"], []),
    "two_nodes_16_gpus": (2, 8, ["7b"], []),
    "four_nodes_72b": (4, 8, ["72b"], []),
    "paper": (1, 8, ["7b"], []),
    "visual_rft": (1, 8, ["3b"], []),
}


def machines(count: int, gpus: int, memory: float = 1000 * GIB) -> list[Node]:
    there = {"GPU": float(gpus), "CPU": 16.0, "memory": memory}
    return [Node(f"node-{number}", there, there, f"id-{number}") for number in range(count)]


def planned(name: str, model: str, *overrides: str, gpu: float | None = 80, memory: float = 1000 * GIB):
    """The configuration, plan and footprint of an experiment on the nodes that it is meant for."""
    count, gpus, _, settings = MEANT_FOR[name]
    config = composed(
        f"+experiment={name}", "task=non_object", "task.train=a", "task.held_out=b", *settings, *overrides
    )
    size = size_of(MODELS[model](), trained_weights(config))
    found = footprint(config, size, prompt=1300, gpu=gpu and gpu * GIB)
    return config, plan_run(config, machines(count, gpus, memory)), found


def test_every_experiment_is_tested():
    assert sorted(file.stem for file in (CONFIG_DIR / "experiment").glob("*.yaml")) == sorted(MEANT_FOR)


@pytest.mark.parametrize(("name", "model"), [(name, model) for name, meant in MEANT_FOR.items() for model in meant[2]])
def test_every_experiment_fits_the_nodes_that_it_is_meant_for(name, model):
    config, plan, found = planned(name, model)
    compared = needs(config, plan, found)
    check_memory(compared)
    on_gpus = [need for need in compared if "GPU" in need.what]
    assert on_gpus and all(need.needed < 0.9 * need.there for need in on_gpus), "room for what is not estimated"
    count, gpus, *_ = MEANT_FOR[name]
    assert {seat.node for seat in plan.ranks} == set(range(count))
    used = sum(seat.gpus for seat in (*plan.ranks, *plan.workers))
    assert used == count * gpus, "the whole of them"
    with pytest.raises(ClusterError):
        plan_run(config, machines(count, gpus)[1:])


def test_ranks_and_workers_of_four_nodes():
    _, plan, _ = planned("four_nodes_72b", "72b")
    assert [seat.node for seat in plan.ranks] == [node for node in range(4) for _ in range(8)]
    assert [(seat.node, seat.ranks) for seat in plan.workers] == [
        (node, tuple(range(8 * node, 8 * node + 8))) for node in range(4)
    ]


@pytest.mark.parametrize(
    ("name", "model", "overrides", "known", "message"),
    [
        ("one_node_8_gpus", "7b", (), {"gpu": 40}, "a GPU that a rank and a worker share needs .* and has 40.0 GiB"),
        ("one_node_8_gpus", "72b", (), {}, "a GPU that a rank and a worker share needs .*learner.offload=true"),
        ("one_node_8_gpus_async", "7b", (), {"gpu": 40}, "the GPU of a learner rank needs 45.5 GiB and has 40.0 GiB"),
        ("one_node_8_gpus", "7b", ("rollout.memory=0.15",), {}, r"a worker's share of a GPU \(rollout.memory\) needs"),
        ("one_node_8_gpus", "7b", (), {"memory": 100 * GIB}, "memory of node-0 needs 216.2 GiB and has 100.0 GiB"),
        ("one_gpu", "7b", ("learner.offload=false",), {}, "a GPU that a rank and a worker share needs"),
    ],
)
def test_what_cannot_fit_into_memory_is_refused(name, model, overrides, known, message):
    with pytest.raises(ConfigError, match=message):
        check_memory(needs(*planned(name, model, *overrides, **known)))


def test_unknown_memory_refuses_nothing():
    config, plan, found = planned("one_node_8_gpus", "72b", gpu=None, memory=0)
    compared = needs(config, plan, found)
    check_memory(compared)
    assert {need.there for need in compared} == {None}


def test_memory_is_counted_on_the_node_that_holds_the_actors():
    config = composed("rollout.workers=2", "learner.ranks=1")
    found = Footprint({"weights": 3.0, "logits": 1.0}, {}, {"KV cache": 10.0}, asleep=0, least=0, gpu=None)
    compared = needs(config, plan_run(config, machines(3, 0)), found)
    assert [(need.what, need.needed) for need in compared] == [
        ("memory of node-0", 10),
        ("memory of node-1", 10),
        ("memory of node-2", 4),
    ]


# The drawing


def drawn(plan: Plan, found: Footprint) -> list[list[str]]:
    table = _drawing(plan, found)
    return [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]


SIZES = Footprint(
    {"weights": 2.0 * GIB, "activations": 1.0 * GIB}, {}, {"weights": 4.0 * GIB}, asleep=0, least=0, gpu=None
)


def test_a_drawing_of_a_worker_on_two_ranks():
    config = composed(
        *["cluster.layout=colocated", "rollout.gpus=2", "rollout.workers=2", "rollout.memory=0.4"],
        *["learner.gpus=1", "learner.ranks=4"],
    )
    rows = drawn(plan_run(config, machines(2, 3)), SIZES)
    assert rows == [
        ["node-0", "GPU 0", "rank 0", "3.0", "worker 0", "4.0", "6.0"],
        ["", "GPU 1", "rank 1", "3.0", "worker 0", "4.0", "6.0"],
        ["node-1", "GPU 0", "rank 2", "3.0", "worker 1", "4.0", "6.0"],
        ["", "GPU 1", "rank 3", "3.0", "worker 1", "4.0", "6.0"],
    ]


def test_a_drawing_of_actors_apart_and_of_others():
    config = composed(
        *["rollout.gpus=2", "learner.gpus=1", "learner.ranks=2", "reward.gpus=0.5", "reward.workers=2"],
    )
    rows = drawn(plan_run(config, machines(1, 5)), SIZES)
    assert [row[1:] for row in rows] == [
        ["GPU 0", "rank 0", "3.0", "", "", "3.0"],
        ["GPU 1", "rank 1", "3.0", "", "", "3.0"],
        ["GPU 2", "", "", "worker 0", "4.0", "4.0"],
        ["GPU 3", "", "", "worker 0", "4.0", "4.0"],
        ["0.5 GPU", "reward workers", "", "", "", ""],
        ["0.5 GPU", "reward workers", "", "", "", ""],
    ]


def test_a_drawing_without_gpus():
    rows = drawn(plan_run(composed(), machines(1, 0)), SIZES)
    assert [row[1:] for row in rows] == [
        ["CPU", "rank 0", "3.0", "", "", "3.0"],
        ["CPU", "", "", "worker 0", "4.0", "4.0"],
        ["memory", "", "", "", "", "7.0"],
    ]


@pytest.mark.parametrize(
    ("settings", "nodes"),
    [
        ("+experiment=one_gpu", 1),
        ("+experiment=one_node_8_gpus", 1),
        ("+experiment=two_nodes_16_gpus", 2),
        ("+experiment=four_nodes_72b task.train=a task.held_out=b", 4),
        ("+experiment=one_node_8_gpus cluster.gpus_per_node=4", 2),
        ("+experiment=one_node_8_gpus_async rollout.gpus=3 rollout.workers=5 reward.gpus=0.5", 3),
        ("rollout.gpus=1 learner.gpus=1 cluster.gpus_per_node=1 reward.gpus=1 reward.workers=4", 6),
    ],
)
def test_as_many_nodes_are_imagined_as_the_run_needs(settings, nodes):
    assert len(_imagined(composed(*settings.split()))) == nodes


def test_a_worker_that_no_node_can_hold_is_refused_on_imagined_nodes_too():
    with pytest.raises(ClusterError, match=r"4 rollout workers .* with 8 GPU of ranks on one node.*\n  node 1 .*\Z"):
        _imagined(composed("+experiment=four_nodes_72b", "cluster.gpus_per_node=4"))
