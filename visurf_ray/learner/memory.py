"""Estimates of the memory that a rank needs, from its configuration and the model on PyTorch's meta device.

Model states are those that DeepSpeed 0.19 allocates with the settings of `rank`; tests/integration/test_memory.py
compares them with its engine. Activations are a rough estimate: see `activations`.
"""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.modeling_layers import GradientCheckpointingLayer

from visurf_ray.aliases import HFConfig, HFModel
from visurf_ray.config.schema import LearnerConfig, ModelSource
from visurf_ray.learner.cost import Cost
from visurf_ray.learner.parts import ModelPart, parameters_of, part_of
from visurf_ray.learner.trained import Trained
from visurf_ray.models import resolve_model

Sizes = dict[str, float]  # bytes, by what they hold

_BYTES = {"float32": 4, "bfloat16": 2}
_BUCKET = 5e8  # elements of a reduce bucket (DeepSpeed's default)
_SUB_GROUP = 1e9  # parameters that ZeRO-3 updates at a time (its default)
_LIVE = 1e9  # parameters that ZeRO-3 keeps gathered at most (its default)
# Values per output of a linear layer, measured on Qwen2.5-VL by tests/benchmarks/memory.py:
_SAVED = 2.5  # saved for the backward pass
_RECOMPUTED = 2.8  # that exist while a layer's backward pass runs: saved ones, and gradients
_ENDS = 2  # values between layers that are kept before the first and after the last of them


@dataclass(frozen=True)
class Layers:
    """A stack of equal layers.

    Attributes:
        count: number of layers.
        width: number of values per token that pass from one layer to the next.
        outputs: number of values per token that the linear layers of one layer return.
        weights: number of weights of the linear layers of one layer.
        whole: number of layers whose tokens attend to the whole sequence, not to a window of it.
        attended: number of values per token that are compared in attention: all heads together.
    """

    count: int
    width: int
    outputs: int
    weights: int
    whole: int
    attended: int


@dataclass(frozen=True)
class ModelSize:
    """What the memory of a vision-language model depends on.

    Attributes:
        parameters: number of parameters, adapters included.
        trained: number of parameters that are trained.
        vision_parameters: number of parameters of the vision tower and its projector.
        text: layers of the language model.
        vision: layers of the vision tower.
        vocabulary: number of token ids.
        kv_width: values that the KV cache holds per token, over all layers.
        patches: image patches per visual token.
        tower_trained: whether any parameter in the vision tower's layers is trained.
        head_trained: whether the output head is trained.
    """

    parameters: int
    trained: int
    vision_parameters: int
    text: Layers
    vision: Layers
    vocabulary: int
    kv_width: int
    patches: int
    tower_trained: bool
    head_trained: bool


def measure(model: ModelSource, trained: Trained) -> ModelSize:
    """Return the size of a model, without reading its weights."""
    trust = model.trust_remote_code
    config = AutoConfig.from_pretrained(resolve_model(model.path), trust_remote_code=trust)
    return size_of(config, trained, trust_remote_code=trust)


def size_of(config: HFConfig, trained: Trained, *, trust_remote_code: bool = False) -> ModelSize:
    """Return the size of the model that a transformers configuration describes.

    Raises:
        ConfigError: the model has no layer that `trained.lora_targets` names.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
        trained.apply(model)
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    vision = config.vision_config
    tower = _stack(model, ModelPart.vision)
    whole = len(getattr(vision, "fullatt_block_indexes", tower))
    types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),  # tied ones count once
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        vision_parameters=sum(
            parameter.numel()
            for part in (ModelPart.vision, ModelPart.projector)
            for parameter in parameters_of(model, part)
        ),
        text=_layers(_stack(model, ModelPart.language), attended=head * text.num_attention_heads),
        vision=_layers(tower, windowed=len(tower) - whole),
        vocabulary=text.vocab_size,
        # Linear attention has a state of fixed size instead.
        kv_width=2 * sum(kind != "linear_attention" for kind in types) * text.num_key_value_heads * head,
        patches=_patches(config),
        tower_trained=any(parameter.requires_grad for layer in tower for parameter in layer.parameters()),
        head_trained=model.lm_head.weight.requires_grad,
    )


def _patches(config: HFConfig) -> int:
    """Return the patches that become one visual token: families have different names for the factor."""
    vision = config.vision_config
    if side := getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", None):
        return side**2
    if ratio := getattr(config, "downsample_ratio", None):
        return round(ratio**-2)
    if tokens := getattr(config, "mm_tokens_per_image", None):
        return (vision.image_size // vision.patch_size) ** 2 // tokens
    return 1


def _stack(model: HFModel, part: ModelPart) -> list[torch.nn.Module]:
    return [
        layer
        for path, layer in model.named_modules()
        if isinstance(layer, GradientCheckpointingLayer) and part_of(path) is part
    ]


def _layers(layers: list[torch.nn.Module], attended: int | None = None, windowed: int = 0) -> Layers:
    """Describe equal layers. Of a layer's experts only as many count as each token uses.

    Args:
        attended: see `Layers`; None: the width of the layers.
        windowed: how many layers attend within windows.
    """
    linear = [part for part in layers[0].modules() if isinstance(part, torch.nn.Linear)]
    width = linear[0].in_features
    outputs, weights = sum(part.out_features for part in linear), sum(part.weight.numel() for part in linear)
    for block in layers[0].modules():
        experts, gate = getattr(block, "experts", None), getattr(block, "gate", None)
        if experts is not None and gate is not None:
            matrices = [weight for weight in experts.parameters() if weight.ndim == 3]  # (experts, outputs, inputs)
            outputs += gate.top_k * sum(weight.shape[1] for weight in matrices)
            weights += gate.top_k * sum(weight[0].numel() for weight in matrices)
    return Layers(
        count=len(layers),
        width=width,
        outputs=outputs,
        weights=weights,
        whole=len(layers) - windowed,
        attended=attended or width,
    )


def forward_cost(size: ModelSize) -> Cost:
    """Return the floating-point operations of a forward pass: two for each weight, and four for each value attended."""
    return Cost(
        token=2 * size.text.count * size.text.weights,
        pair=4 * size.text.count * size.text.attended,
        predicted=2 * size.vocabulary * size.text.width,
        patch=2 * size.vision.count * size.vision.weights,
        patch_pair=4 * size.vision.whole * size.vision.attended,
        patches=size.patches,
    )


def model_states(size: ModelSize, learner: LearnerConfig) -> tuple[Sizes, Sizes]:
    """Return the sizes of the model states of one rank: on its device, and with learner.offload in CPU memory.

    Weights are in the training dtype; summed gradients, master weights and Adam's two moments are in float32.
    """
    width, ranks, stage = _BYTES[learner.dtype], learner.ranks, learner.zero_stage
    share = size.trained / ranks
    device = {"weights": size.parameters * width / (ranks if stage == 3 else 1)}
    states = {"master weights": 4 * share, "optimizer states": 8 * share}
    if stage == 1:  # sums of whole gradients; in bfloat16, without offload, beside the gradients themselves
        device["gradients"] = size.trained * (4 + (width if width == 2 and not learner.offload else 0))
    if not learner.offload:
        # ZeRO-3 makes a second float32 copy of the gradients of the sub-group that it updates.
        sharded = {1: 0, 2: 4 * share, 3: 4 * share + 4 * min(share, _SUB_GROUP)}[stage]
        return device | {"gradients": device.get("gradients", 0) + sharded} | states, {}
    copies = {1: 4 + width, 2: 8 + width, 3: 8}[stage]
    return device, {"gradients": copies * share} | states


def checkpoint_copy(size: ModelSize, learner: LearnerConfig) -> float:
    """Return the bytes of rank 0's part of a checkpoint, which train.async_checkpoint copies to the CPU's memory."""
    weights = 0 if learner.zero_stage == 3 else _BYTES[learner.dtype] * size.trained  # other ranks write states alone
    return weights + 12 * size.trained / learner.ranks


def buffers(size: ModelSize, learner: LearnerConfig) -> Sizes:
    """Return the sizes of DeepSpeed's communication buffers."""
    width = _BYTES[learner.dtype]
    # On a CPU the operating system provides only the part of the bucket that is written to.
    bucket = _BUCKET if learner.gpus else min(_BUCKET, size.trained)
    found = {"reduce bucket": bucket * (4 if learner.zero_stage == 1 else width)}
    if learner.zero_stage == 3 and learner.ranks > 1:
        found["gathered weights"] = min(size.parameters, _LIVE) * width
    return found


def activations(size: ModelSize, learner: LearnerConfig, *, tokens: int, visual_tokens: int) -> Sizes:
    """Estimate what a forward pass over a row saves for the backward pass, and the memory of logits beside it.

    With gradient checkpointing the values between layers are kept. Beside them, the backward pass holds either one
    recomputed layer or the logits: the larger of both counts. A frozen vision tower keeps nothing. The logits of one
    chunk of the vocabulary exist three times in float32 (scaled logits, probabilities, gradient), beside two float32
    copies of the hidden states' gradient and the gradient of the output head, if that is trained.

    Args:
        tokens: tokens of the row.
        visual_tokens: how many of them are visual tokens.
    """
    width = _BYTES[learner.dtype]
    rows = [(size.text, tokens)]
    if size.tower_trained:
        rows.append((size.vision, visual_tokens * size.patches))
    logits = 4.0 * tokens * (3 * min(learner.logprob_chunk, size.vocabulary) + 2 * size.text.width)
    head = logits + (width * size.vocabulary * size.text.width if size.head_trained else 0)
    if not learner.gradient_checkpointing:
        saved = sum(_SAVED * layers.count * layers.outputs * length for layers, length in rows)
        return {"activations": saved * width, "logits": head}
    kept = sum((layers.count + _ENDS) * layers.width * length for layers, length in rows)
    layer = max(_RECOMPUTED * layers.outputs * length for layers, length in rows)
    return {"activations": (kept + layer) * width, "logits": max(0.0, head - layer * width)}


def kv_bytes_per_token(size: ModelSize, dtype: str) -> int:
    """Return the bytes that the KV cache holds per token, over all layers and all GPUs of a worker."""
    return size.kv_width * _BYTES[dtype]


def sampler_weights(size: ModelSize, dtype: str, gpus: int) -> float:
    """Return the bytes of weights on each GPU of a rollout worker; `gpus` 0: in its process's memory."""
    return size.parameters * _BYTES[dtype] / max(gpus, 1)


def reference_weights(size: ModelSize, dtype: str) -> float:
    """Return the bytes of the reference policy of a KL term, of which each rank holds an unsharded copy."""
    return float(size.parameters * _BYTES[dtype])
