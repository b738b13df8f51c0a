"""What memory a rank takes, estimated from its configuration and from the model on PyTorch's meta device.

Model states are those that DeepSpeed 0.19 holds with the settings of `rank`, as counted in its engine
(tests/integration/test_memory.py). Activations are rough: see `activations`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.modeling_layers import GradientCheckpointingLayer

from visurf_ray.config.schema import LearnerConfig
from visurf_ray.learner.trained import Trained
from visurf_ray.models import resolve_model

Sizes = dict[str, float]  # bytes, by what they hold

_BYTES = {"float32": 4, "bfloat16": 2}
_BUCKET = 5e8  # elements of DeepSpeed's reduce bucket, its default
_SUB_GROUP = 1e9  # parameters that ZeRO-3 updates at once, its default
_LIVE = 1e9  # parameters that ZeRO-3 keeps gathered at most, its default
_SAVED = 2.5  # values kept for the backward pass for each output of a linear layer; 2.2 to 2.4 on Qwen2.5-VL
_KEPT = 2.5  # the same for each value between layers, where what is inside of them is computed again


@dataclass(frozen=True)
class Layers:
    """A stack of layers: how many, the width between them, and the outputs of all linear layers inside of one."""

    count: int
    width: int
    outputs: int


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters: all, those that are trained, those of the vision tower with its projector.

    kv_width: values that the KV cache holds for a token. patches: image patches in a visual token. tower_trained,
    head_trained: whether anything in the vision tower's layers is, and the output head.
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


def measure(path: str, trained: Trained) -> ModelSize:
    """The size of the model at `path` (see `models.resolve_model`), whose weights are not read."""
    return size_of(AutoConfig.from_pretrained(resolve_model(path)), trained)


def size_of(config: Any, trained: Trained) -> ModelSize:
    """The size of the vision-language model that a transformers configuration describes, adapters included.

    Raises ConfigError for learner.lora.targets that the model does not have.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        trained.apply(model)
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tower = [parameter for layer in _stack(model.model.visual) for parameter in layer.parameters()]
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),  # tied ones count once
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        vision_parameters=sum(parameter.numel() for parameter in model.model.visual.parameters()),
        text=_layers(model.model.language_model),
        vision=_layers(model.model.visual),
        vocabulary=text.vocab_size,
        kv_width=2 * text.num_hidden_layers * text.num_key_value_heads * head,
        patches=config.vision_config.spatial_merge_size**2,
        tower_trained=any(parameter.requires_grad for parameter in tower),
        head_trained=model.lm_head.weight.requires_grad,
    )


def _stack(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _layers(module: torch.nn.Module) -> Layers:
    layers = _stack(module)
    linear = [part for part in layers[0].modules() if isinstance(part, torch.nn.Linear)]
    return Layers(len(layers), linear[0].in_features, sum(part.out_features for part in linear))


def model_states(size: ModelSize, learner: LearnerConfig) -> tuple[Sizes, Sizes]:
    """What one rank holds of the model while it trains: on its device, and with learner.offload in the CPU's memory.

    P parameters, T of them trained, N ranks. Weights are in the training dtype; gradients are summed, and master
    weights and Adam's two moments kept, in float32.
    """
    width, ranks, stage = _BYTES[learner.dtype], learner.ranks, learner.zero_stage
    share = size.trained / ranks
    device = {"weights": size.parameters * width / (ranks if stage == 3 else 1)}
    states = {"master weights": 4 * share, "optimizer states": 8 * share}
    if stage == 1:  # every rank sums whole gradients; in bfloat16 DeepSpeed's optimizer is another without offload
        device["gradients"] = size.trained * (4 + (width if width == 2 and not learner.offload else 0))
    if not learner.offload:
        # ZeRO-3 makes a second float32 copy of the gradients that it updates with.
        sharded = {1: 0, 2: 4 * share, 3: 4 * share + 4 * min(share, _SUB_GROUP)}[stage]
        return device | {"gradients": device.get("gradients", 0) + sharded} | states, {}
    copies = {1: 4 + width, 2: 8 + width, 3: 8}[stage]
    return device, {"gradients": copies * share} | states


def buffers(size: ModelSize, learner: LearnerConfig) -> Sizes:
    """What DeepSpeed allocates to communicate."""
    width = _BYTES[learner.dtype]
    # On a CPU the bucket's memory is there only where something is written to it.
    bucket = _BUCKET if learner.gpus else min(_BUCKET, size.trained)
    found = {"reduce bucket": bucket * (4 if learner.zero_stage == 1 else width)}
    if learner.zero_stage == 3 and learner.ranks > 1:
        found["gathered weights"] = min(size.parameters, _LIVE) * width
    return found


def activations(size: ModelSize, learner: LearnerConfig, *, tokens: int, visual_tokens: int) -> Sizes:
    """What a forward pass over a row of `tokens` keeps for the backward pass, roughly; and a chunk of logits.

    Assumed: each linear layer's outputs are kept 2.5 times (with normalisation and what lies between), or with
    gradient checkpointing those of one layer at a time and what is between layers. A frozen vision tower keeps none.
    Logits of all tokens are there for a chunk of the vocabulary, in float32, three times (scaled, probabilities,
    gradient), and the gradient of the output head where it is trained.
    """
    width = _BYTES[learner.dtype]
    rows = [(size.text, tokens)]
    if size.tower_trained:
        rows.append((size.vision, visual_tokens * size.patches))
    if learner.gradient_checkpointing:
        between = sum(_KEPT * layers.count * layers.width * length for layers, length in rows)
        values = between + max(_SAVED * layers.outputs * length for layers, length in rows)
    else:
        values = sum(_SAVED * layers.count * layers.outputs * length for layers, length in rows)
    logits = 3 * 4 * tokens * min(learner.logprob_chunk, size.vocabulary)
    head = width * size.vocabulary * size.text.width if size.head_trained else 0
    return {"activations": values * width, "logits": logits + head}


def kv_bytes_per_token(size: ModelSize, dtype: str) -> int:
    """Bytes that the KV cache holds for a token, over all layers; tensor parallelism divides them."""
    return size.kv_width * _BYTES[dtype]


def sampler_weights(size: ModelSize, dtype: str, gpus: int) -> float:
    """Bytes of the weights on each GPU of a rollout worker, or in its process on a CPU."""
    return size.parameters * _BYTES[dtype] / max(gpus, 1)


def reference_weights(size: ModelSize, dtype: str) -> float:
    """Bytes of the frozen policy that a KL term compares with: each rank holds it whole."""
    return float(size.parameters * _BYTES[dtype])
