"""The trainer's weights in the form that vLLM's weight transfer takes, for any ZeRO stage.

vLLM's own `ModuleSource` supports plain and FSDP modules. Under ZeRO-3 a parameter is a shard whose full shape is
`ds_shape`, and gathering it is a collective operation: all ranks iterate over the same parameters in the same order.
"""

from collections.abc import Iterator

import deepspeed
import torch
from transformers.core_model_loading import revert_weight_conversion
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups

from visurf_ray.aliases import HFModel


class ZeroSource(WeightSource):
    """The trained weights of a model, tied ones once, gathered one layer at a time under ZeRO-3.

    Frozen weights are not sent: vLLM keeps the layers that an update omits. vLLM fuses some layers (query, key and
    value; gate and up), and an update must have all parts of a fused layer, so these must be trained together.

    Weights are those of the model's files, which vLLM reads: transformers renames and transposes some as it loads them.
    """

    def __init__(self, model: HFModel) -> None:
        self.model = model
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def metadata(self) -> list[ParamMeta]:
        found = []
        for names in self._layers():
            for name in names:
                weight = self.weights[name]
                shape = getattr(weight, "ds_shape", weight.shape)
                stored = self._stored(name, torch.empty(shape, dtype=weight.dtype, device="meta"))
                found += [ParamMeta(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in stored.items()]
        return found

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for names in self._layers():
            parameters = [self.weights[name] for name in names]
            sharded = any(hasattr(parameter, "ds_id") for parameter in parameters)
            with deepspeed.zero.GatheredParameters(parameters, enabled=sharded):
                for name, parameter in zip(names, parameters, strict=True):
                    yield from self._stored(name, parameter.detach()).items()

    def _layers(self) -> list[list[str]]:
        return layerwise_groups(list(self.weights))

    def _stored(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a weight as the model's files have it, by its name there."""
        return revert_weight_conversion(self.model, {name: weight})
