"""Weights as the files of a published model have them, which vLLM reads: transformers changes some as it loads them."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save

from visurf_ray.aliases import HFModel

FILE_BYTES = 5e9  # of a file of weights, as transformers and the hub divide models
_FILE = "model.safetensors"
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


def save_model(
    model: HFModel, weights: Iterable[tuple[str, Tensor]], folder: Path, file_bytes: float = FILE_BYTES
) -> None:
    """Write a model that transformers and vLLM load, without a processor, into an empty folder.

    Holds the weights of one file in memory at a time.

    Args:
        weights: unsharded values of all parameters, tied ones once, by their names in the model without adapters.
        file_bytes: how large a file may be; one that holds a single weight may be larger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, Tensor] = {}
    files: list[list[str]] = []  # the names of the weights of each file
    total = 0

    def write() -> None:
        save_file(held, folder / str(len(files)), metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, weight in weights:
        value = stored_weight(model, name, weight)
        if held and sum(each.nbytes for each in held.values()) + value.nbytes > file_bytes:
            write()
        held[stored_name(model, name)] = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        total += value.nbytes
    write()
    count = len(files)  # is part of their names, which are known at the end only
    names = (
        [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)] if count > 1 else [_FILE]
    )
    for number, name in enumerate(names):
        (folder / str(number)).rename(folder / name)
    if count > 1:
        places = {weight: name for name, within in zip(names, files, strict=True) for weight in within}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{_FILE}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    model.config.dtype, model.config.architectures = model.dtype, [type(model).__name__]
    if model._auto_class is not None:  # code that came with the model
        custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
