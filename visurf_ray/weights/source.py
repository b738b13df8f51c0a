"""The trainer's weights in the form that vLLM's weight transfer takes, for any ZeRO stage.

vLLM's own `ModuleSource` supports plain and FSDP modules. Under ZeRO-3 a parameter is a shard whose full shape is
`ds_shape`, and gathering it is a collective operation: all ranks iterate over the same parameters in the same order.
"""

from collections.abc import Iterator

import deepspeed
import torch
from torch import nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups


class ZeroSource(WeightSource):
    """The trained weights of a model, tied ones once, gathered one layer at a time under ZeRO-3.

    Frozen weights are not sent: vLLM keeps the layers that an update omits. vLLM fuses some layers (query, key and
    value; gate and up), and an update must have all parts of a fused layer, so these must be trained together.
    """

    def __init__(self, module: nn.Module) -> None:
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}

    def metadata(self) -> list[ParamMeta]:
        weights = ((name, self.weights[name]) for names in self._layers() for name in names)
        return [ParamMeta(name, w.dtype, tuple(getattr(w, "ds_shape", w.shape))) for name, w in weights]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for names in self._layers():
            parameters = [self.weights[name] for name in names]
            sharded = any(hasattr(parameter, "ds_id") for parameter in parameters)
            with deepspeed.zero.GatheredParameters(parameters, enabled=sharded):
                for name, parameter in zip(names, parameters, strict=True):
                    yield name, parameter.detach()

    def _layers(self) -> list[list[str]]:
        return layerwise_groups(list(self.weights))
