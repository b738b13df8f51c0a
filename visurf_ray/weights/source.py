"""The trainer's weights in the form that vLLM's weight transfer takes, for any ZeRO stage, adapters merged.

vLLM's own `ModuleSource` supports plain and FSDP modules. Under ZeRO-3 a parameter is a shard whose full shape is
`ds_shape`, and gathering it is a collective operation: all ranks iterate over the same parameters in the same order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import deepspeed
import torch
from peft.tuners import lora
from torch import nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups


@dataclass(frozen=True)
class Weight:
    """A weight of the model without adapters: a parameter, and the adapter that changes it, if there is one."""

    parameter: nn.Parameter
    adapter: lora.Linear | None

    @property
    def trained(self) -> bool:
        return self.parameter.requires_grad or self.adapter is not None

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters that `value` reads; under ZeRO-3 these must be gathered."""
        return [self.parameter] if self.adapter is None else list(self.adapter.parameters())

    def value(self) -> torch.Tensor:
        """Return the weight with the adapter merged; changes no parameter. All `parts` must be gathered."""
        weight = self.parameter.detach()
        if self.adapter is None:
            return weight
        (name,) = self.adapter.active_adapters
        return weight + self.adapter.get_delta_weight(name).detach()


def named_weights(module: nn.Module) -> dict[str, Weight]:
    """Return all weights, tied ones once, by the names that they have in the model without adapters."""
    layers = module.named_modules()
    adapters = {f"{name}.base_layer.weight": layer for name, layer in layers if isinstance(layer, lora.Linear)}
    return {
        name.replace(".base_layer.", "."): Weight(parameter, adapters.get(name))
        for name, parameter in module.named_parameters()
        if ".lora_" not in name
    }


class ZeroSource(WeightSource):
    """The weights that a weight update sends, gathered one layer at a time under ZeRO-3.

    Frozen weights are not sent: vLLM keeps the layers that an update omits. But vLLM fuses some layers (query, key and
    value; gate and up), and an update must have all parts of a fused layer. So all siblings of an adapted layer are
    sent.
    """

    def __init__(self, module: nn.Module) -> None:
        weights = named_weights(module)
        adapted = {_block(name) for name, weight in weights.items() if weight.adapter is not None}
        self.weights = {n: weight for n, weight in weights.items() if weight.trained or _block(n) in adapted}

    def metadata(self) -> list[ParamMeta]:
        weights = ((name, self.weights[name].parameter) for names in self._layers() for name in names)
        return [ParamMeta(name, w.dtype, tuple(getattr(w, "ds_shape", w.shape))) for name, w in weights]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for names in self._layers():
            parameters = list(dict.fromkeys(part for name in names for part in self.weights[name].parts))
            sharded = any(hasattr(parameter, "ds_id") for parameter in parameters)
            with deepspeed.zero.GatheredParameters(parameters, enabled=sharded):
                for name in names:
                    yield name, self.weights[name].value()

    def _layers(self) -> list[list[str]]:
        return layerwise_groups(list(self.weights))


def _block(name: str) -> str:
    """Return the name of the parent of a weight's layer: `….self_attn` for `….self_attn.q_proj.weight`."""
    return name.rsplit(".", 2)[0]
