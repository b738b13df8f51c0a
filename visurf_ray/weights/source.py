"""The trainer's weights as vLLM's weight transfer takes them, whatever ZeRO stage they lie in.

vLLM's own `ModuleSource` knows plain and FSDP modules. Under ZeRO-3 a parameter is a shard whose full shape is
`ds_shape`, and gathering it is a collective: all ranks walk the same parameters in the same order.
"""

from collections.abc import Iterator

import deepspeed
import torch
from torch import nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups


class ZeroSource(WeightSource):
    """Weights of a module that DeepSpeed trains, gathered one layer at a time under ZeRO-3.

    Frozen weights stay where they are: vLLM keeps the layers that an update leaves out.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}

    def metadata(self) -> list[ParamMeta]:
        return [
            ParamMeta(name, parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter in self._parameters_in_groups()
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for names in self._layers():
            parameters = [self._parameters[name] for name in names]
            sharded = any(hasattr(parameter, "ds_id") for parameter in parameters)
            with deepspeed.zero.GatheredParameters(parameters, enabled=sharded):
                for name, parameter in zip(names, parameters, strict=True):
                    yield name, parameter.data

    def _layers(self) -> list[list[str]]:
        return layerwise_groups(list(self._parameters))

    def _parameters_in_groups(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, self._parameters[name]) for names in self._layers() for name in names]
