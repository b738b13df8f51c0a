"""Weights as the files of a published model have them, which vLLM reads: transformers changes some as it loads them."""

from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from visurf_ray.aliases import HFModel

# Weights of experts: the files have (experts, inputs, outputs), the loaded model has (experts, outputs, inputs).
_TRANSPOSED = {"qwen3_vl_moe": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")}


def stored_name(model: HFModel, name: str) -> str:
    """Return the name that a parameter of a loaded model has in the model's files.

    Args:
        name: the parameter's name in the model, without adapters.
    """
    placeholder = torch.empty(1, 1, 1, device="meta")  # three dimensions, as the conversions of experts' weights expect
    (found,) = revert_weight_conversion(model, {name: placeholder})
    return found


def stored_weight(model: HFModel, name: str, weight: Tensor) -> Tensor:
    """Return the value that a parameter of a loaded model has in the model's files; for `name` see `stored_name`.

    Args:
        weight: its value in the model, unsharded.
    """
    if name.endswith(_TRANSPOSED.get(model.config.model_type, ())):
        return weight.transpose(1, 2).contiguous()
    return weight


def save_model(model: HFModel, weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write a model that transformers and vLLM load, without a processor.

    Args:
        weights: unsharded values of all parameters, tied ones once, by their names in the model without adapters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {stored_name(model, name): stored_weight(model, name, weight) for name, weight in weights}
    save_torch_state_dict(state, folder, metadata={"format": "pt"})
    model.config.dtype, model.config.architectures = model.dtype, [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
