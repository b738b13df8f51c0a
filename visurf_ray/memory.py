"""What memory a run takes, estimated from its configuration and from the model on PyTorch's meta device.

Model states are those that DeepSpeed 0.19 holds with the settings of `learner.rank`, as counted in its engine
(tests/integration/test_memory.py). Activations are rough: see `activations`.
"""

from dataclasses import dataclass

from visurf_ray.config import LearnerConfig
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
    """A stack of layers: how many, the width between them, and the inputs and outputs of all linear layers in one."""

    count: int
    width: int
    inputs: int
    outputs: int


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, vision tower and projector included in `parameters`; the layers; and the vocabulary.

    kv_width: values that the KV cache holds for a token. patches: image patches in a visual token.
    """

    parameters: int
    vision_parameters: int
    text: Layers
    vision: Layers
    vocabulary: int
    kv_width: int
    patches: int


def measure(path: str) -> ModelSize:
    """The size of the model at `path` (see `models.resolve_model`), whose weights are not read."""
    from transformers import AutoConfig

    return size_of(AutoConfig.from_pretrained(resolve_model(path)))


def size_of(config) -> ModelSize:
    """The size of the vision-language model that a transformers configuration describes."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        parameters=_count(model),
        vision_parameters=_count(model.model.visual),
        text=_layers(model.model.language_model),
        vision=_layers(model.model.visual),
        vocabulary=text.vocab_size,
        kv_width=2 * text.num_hidden_layers * text.num_key_value_heads * head,
        patches=config.vision_config.spatial_merge_size**2,
    )


def _count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())  # tied ones once


def _layers(module) -> Layers:
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    linear = [part for part in layers[0].modules() if isinstance(part, torch.nn.Linear)]
    inputs, outputs = (sum(getattr(part, name) for part in linear) for name in ("in_features", "out_features"))
    return Layers(len(layers), linear[0].in_features, inputs, outputs)


def model_states(size: ModelSize, learner: LearnerConfig) -> tuple[Sizes, Sizes]:
    """What one rank holds of the model while it trains: on its device, and with learner.offload in the CPU's memory.

    P parameters, T of them trained, N ranks. Weights are in the training dtype; gradients are summed, and master
    weights and Adam's two moments kept, in float32.
    """
    width, ranks, stage = _BYTES[learner.dtype], learner.ranks, learner.zero_stage
    trained = trained_parameters(size, learner)
    share = trained / ranks
    device = {"weights": size.parameters * width / (ranks if stage == 3 else 1)}
    states = {"master weights": 4 * share, "optimizer states": 8 * share}
    if stage == 1:  # every rank sums whole gradients; in bfloat16 DeepSpeed's optimizer is another without offload
        device["gradients"] = trained * (4 + (width if width == 2 and not learner.offload else 0))
    if not learner.offload:
        # ZeRO-3 makes a second float32 copy of the gradients that it updates with.
        sharded = {1: 0, 2: 4 * share, 3: 4 * share + 4 * min(share, _SUB_GROUP)}[stage]
        return device | {"gradients": device.get("gradients", 0) + sharded} | states, {}
    copies = {1: 4 + width, 2: 8 + width, 3: 8}[stage]
    return device, {"gradients": copies * share} | states


def trained_parameters(size: ModelSize, learner: LearnerConfig) -> int:
    """How many there are at most: LoRA's targets may be fewer, and a frozen projector, which is small, is counted."""
    if learner.lora.rank:
        return learner.lora.rank * size.text.count * (size.text.inputs + size.text.outputs)
    return size.parameters - (size.vision_parameters if learner.freeze_vision else 0)


def buffers(size: ModelSize, learner: LearnerConfig) -> Sizes:
    """What DeepSpeed allocates to communicate."""
    width = _BYTES[learner.dtype]
    # On a CPU the bucket's memory is there only where something is written to it.
    bucket = _BUCKET if learner.gpus else min(_BUCKET, trained_parameters(size, learner))
    found = {"reduce bucket": bucket * (4 if learner.zero_stage == 1 else width)}
    if learner.zero_stage == 3 and learner.ranks > 1:
        found["gathered weights"] = min(size.parameters, _LIVE) * width
    return found


def activations(size: ModelSize, learner: LearnerConfig, *, tokens: int, visual_tokens: int) -> Sizes:
    """What a forward pass over a row of `tokens` keeps for the backward pass, roughly; and a chunk of logits.

    Assumed: each linear layer's outputs are kept 2.5 times (with normalisation and what lies between), or with
    gradient checkpointing those of one layer at a time and what is between layers. A frozen vision tower keeps none.
    Logits of a chunk of the vocabulary are in float32, three times (scaled, probabilities, gradient), for all tokens at
    most; beside them lies the output head's gradient.
    """
    width = _BYTES[learner.dtype]
    rows = [(size.text, tokens)]
    if not learner.freeze_vision and not learner.lora.rank:
        rows.append((size.vision, visual_tokens * size.patches))
    if learner.gradient_checkpointing:
        between = sum(_KEPT * layers.count * layers.width * length for layers, length in rows)
        values = between + max(_SAVED * layers.outputs * length for layers, length in rows)
    else:
        values = sum(_SAVED * layers.count * layers.outputs * length for layers, length in rows)
    logits = 3 * 4 * tokens * min(learner.logprob_chunk, size.vocabulary)
    logits += 0 if learner.lora.rank else width * size.vocabulary * size.text.width
    return {"activations": values * width, "logits": logits}


def kv_bytes_per_token(size: ModelSize, dtype: str) -> int:
    """Bytes that the KV cache holds for a token, over all layers; tensor parallelism divides them."""
    return size.kv_width * _BYTES[dtype]


def sampler_weights(size: ModelSize, dtype: str, gpus: int) -> float:
    """Bytes of the weights on each GPU of a rollout worker, or in its process on a CPU."""
    return size.parameters * _BYTES[dtype] / max(gpus, 1)


def reference_weights(size: ModelSize, dtype: str) -> float:
    """Bytes of the frozen policy that a KL term compares with: each rank holds it whole."""
    return float(size.parameters * _BYTES[dtype])
