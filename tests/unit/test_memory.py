"""The memory estimate against published sizes, DeepSpeed's own estimators and what autograd keeps."""

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLConfig

from tests.unit.conftest import composed
from visurf_ray.config.schema import ModelSource
from visurf_ray.learner.memory import (
    activations,
    buffers,
    checkpoint_copy,
    kv_bytes_per_token,
    measure,
    model_states,
    sampler_weights,
    size_of,
)
from visurf_ray.learner.trained import Trained

ALL = Trained()
GPUS = ["learner.gpus=1", "rollout.gpus=1", "learner.dtype=bfloat16"]


def qwen2_5_vl_7b() -> Qwen2_5_VLConfig:
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def qwen2_vl_2b() -> Qwen2VLConfig:
    text = {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    return Qwen2VLConfig(text_config=text, vision_config={"hidden_size": 1536}, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def size():
    return size_of(qwen2_5_vl_7b(), ALL)


def learner(*overrides: str):
    return composed(*GPUS, *overrides).learner


@pytest.mark.parametrize(
    ("config", "total_bytes"),
    # metadata.total_size of the published model.safetensors.index.json, in bfloat16
    [(qwen2_5_vl_7b(), 16_584_333_312), (qwen2_vl_2b(), 4_417_971_200)],
)
def test_parameters_are_those_of_the_published_weights(config, total_bytes):
    size = size_of(config, ALL)
    assert 2 * size.parameters == total_bytes == sampler_weights(size, "bfloat16", gpus=1)
    assert size.text.count == 28 and size.vision.count == 32


def test_the_miniature_is_as_large_as_its_file():
    from safetensors import safe_open

    from visurf_ray.models import MINIATURE

    with safe_open(MINIATURE / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118  # no mapping
    count = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    size = measure(ModelSource("miniature"), ALL)
    assert size.parameters == sum(count.values())
    assert size.vision_parameters == sum(number for name, number in count.items() if "visual" in name)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_model_states_are_those_of_deepspeeds_estimators(size, ranks):
    """Its ZeRO-2 formula has sharded 16-bit gradients beside ours, ours a copy that ZeRO-3 makes in its step."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    batch = "train.batch_size=16"
    _, theirs = estimate_zero2_model_states_mem_needs(size.parameters, ranks, cpu_offload=False)
    ours, host = model_states(size, learner("learner.zero_stage=2", f"learner.ranks={ranks}", batch))
    assert sum(ours.values()) == pytest.approx(theirs - 2 * size.parameters / ranks, rel=1e-6) and not host

    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        size.parameters, largest_layer_params=0, num_gpus_per_node=ranks, cpu_offload=False, cpu_offload_params=False
    )
    ours, _ = model_states(size, learner("learner.zero_stage=3", f"learner.ranks={ranks}", batch))
    second_copy = 4 * min(size.parameters / ranks, 1e9)  # of a sub-group's gradients, for which it has nothing
    assert sum(ours.values()) == pytest.approx(theirs + second_copy, rel=1e-6)


def test_offload_leaves_weights_on_the_device_and_loses_nothing(size):
    for stage in (2, 3):
        near, none = model_states(size, learner(f"learner.zero_stage={stage}", "learner.ranks=4"))
        device, host = model_states(
            size, learner(f"learner.zero_stage={stage}", "learner.ranks=4", "learner.offload=true")
        )
        assert device == {"weights": near["weights"]} and none == {}
        assert host["optimizer states"] == near["optimizer states"] == 8 * size.parameters / 4


def test_a_checkpoints_copy_is_what_rank_0_writes(size):
    """Compared with files by tests/integration/test_learner.py."""
    for stage, weights in ((1, 2), (2, 2), (3, 0)):
        settings = learner(f"learner.zero_stage={stage}", "learner.ranks=4")
        assert checkpoint_copy(size, settings) == (weights + 12 / 4) * size.parameters


def test_frozen_parameters_have_weights_and_nothing_else(size):
    tower_alone = size_of(qwen2_5_vl_7b(), Trained(freeze_vision=True))
    all_vision = size_of(qwen2_5_vl_7b(), Trained(freeze_vision=True, freeze_projector=True))
    assert all_vision.trained == size.parameters - size.vision_parameters < tower_alone.trained < size.trained
    whole, _ = model_states(size, learner("learner.ranks=4"))
    frozen, _ = model_states(all_vision, learner("learner.ranks=4"))
    assert frozen["weights"] == whole["weights"]
    assert frozen["optimizer states"] == 8 * all_vision.trained / 4 and frozen["gradients"] == 6 * all_vision.trained
    assert not tower_alone.tower_trained and size.tower_trained


def test_adapters_are_all_that_is_trained(size):
    """Two matrices of rank 8 beside q_proj (3584 → 3584) and v_proj (3584 → 512) of 28 layers."""
    adapted = size_of(qwen2_5_vl_7b(), Trained(lora_rank=8, lora_alpha=16, lora_targets=["q_proj", "v_proj"]))
    assert adapted.trained == 28 * 8 * (3584 + 3584 + 3584 + 512)
    assert adapted.parameters == size.parameters + adapted.trained
    assert not adapted.tower_trained and not adapted.head_trained


def test_shards_sum_to_the_whole(size):
    one, _ = model_states(size, learner("learner.zero_stage=3", "learner.ranks=1"))
    four, _ = model_states(size, learner("learner.zero_stage=3", "learner.ranks=4"))
    for name in ("weights", "master weights", "optimizer states"):
        assert 4 * four[name] == one[name]


def test_what_communication_takes(size):
    assert buffers(size, learner("learner.zero_stage=2", "learner.ranks=2")) == {"reduce bucket": 2 * 5e8}
    both = buffers(size, learner("learner.zero_stage=3", "learner.ranks=2"))
    assert both == {"reduce bucket": 2 * 5e8, "gathered weights": 2 * 1e9}


def test_the_kv_cache_of_a_token(size):
    """Keys and values of 28 layers, 4 heads of 128 numbers of 2 bytes."""
    assert kv_bytes_per_token(size, "bfloat16") == 2 * 28 * 4 * 128 * 2 == 57_344


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_about_what_autograd_keeps(dtype, checkpointing):
    """A model with the proportions of the small Qwens, four layers of each kind."""
    text = {
        "hidden_size": 448,
        "intermediate_size": 2432,
        "num_hidden_layers": 4,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "vocab_size": 1000,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {"depth": 4, "hidden_size": 160, "intermediate_size": 428, "num_heads": 4, "out_hidden_size": 448}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"fullatt_block_indexes": [1, 3]})
    config.image_token_id, config.video_token_id, config._attn_implementation = 7, 8, "sdpa"
    model = Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, dtype)).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokens, side = 640, 28
    ids = torch.full((1, tokens), 3)
    ids[0, 4 : 4 + side * side // 4] = 7
    kept = _bytes_kept_by_autograd(
        model,
        input_ids=ids,
        mm_token_type_ids=(ids == 7).int(),
        pixel_values=torch.randn(side * side, 3 * 2 * 14 * 14, dtype=model.dtype),
        image_grid_thw=torch.tensor([[1, side, side]]),
        use_cache=False,
    )
    settings = learner(f"learner.dtype={dtype}", f"learner.gradient_checkpointing={checkpointing}")
    found = activations(size_of(config, ALL), settings, tokens=tokens, visual_tokens=side * side // 4)["activations"]
    if checkpointing:  # the backward pass holds a layer more than what is kept up to it
        size = size_of(config, ALL)
        found -= 2.5 * max(size.text.outputs * tokens, size.vision.outputs * side * side) * model.dtype.itemsize
    assert 0.8 * kept < found < 1.5 * kept


def _bytes_kept_by_autograd(model, **inputs) -> int:
    """Of the storages that the graph of a forward pass holds, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.model(**inputs).last_hidden_state
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
