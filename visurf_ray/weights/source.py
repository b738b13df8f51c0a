"""The trainer's weights as vLLM's weight transfer takes them, whatever ZeRO stage they lie in, adapters merged.

vLLM's own `ModuleSource` knows plain and FSDP modules. Under ZeRO-3 a parameter is a shard whose full shape is
`ds_shape`, and gathering it is a collective: all ranks walk the same parameters in the same order.
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
    """A weight of the model as it is without adapters: a parameter, and the adapter beside it, if there is one."""

    parameter: nn.Parameter
    adapter: lora.Linear | None

    @property
    def trained(self) -> bool:
        return self.parameter.requires_grad or self.adapter is not None

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters that `value` reads."""
        return [self.parameter] if self.adapter is None else list(self.adapter.parameters())

    def value(self) -> torch.Tensor:
        """With the adapter merged into it, and no parameter changed; all parts must be gathered."""
        weight = self.parameter.detach()
        if self.adapter is None:
            return weight
        (name,) = self.adapter.active_adapters
        return weight + self.adapter.get_delta_weight(name).detach()


def named_weights(module: nn.Module) -> dict[str, Weight]:
    """All weights, tied ones once, by the names that they have without adapters."""
    layers = module.named_modules()
    adapters = {f"{name}.base_layer.weight": layer for name, layer in layers if isinstance(layer, lora.Linear)}
    return {
        name.replace(".base_layer.", "."): Weight(parameter, adapters.get(name))
        for name, parameter in module.named_parameters()
        if ".lora_" not in name
    }


class ZeroSource(WeightSource):
    """Weights of a module that DeepSpeed trains, gathered one layer at a time under ZeRO-3.

    Frozen weights stay where they are: vLLM keeps the layers that an update leaves out. But it joins layers (queries,
    keys and values; gate and up), and what an update leaves out of a joined one is lost: beside an adapted layer all of
    its siblings are sent.
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
    """The module that holds the layer that holds the weight: `….self_attn` of `….self_attn.q_proj.weight`."""
    return name.rsplit(".", 2)[0]
