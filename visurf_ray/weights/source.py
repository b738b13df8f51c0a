"""The trainer's weights in the form that vLLM's weight transfer takes, for any ZeRO stage.

vLLM's own `ModuleSource` supports plain and FSDP modules. Under ZeRO-3 a parameter is a shard whose full shape is
`ds_shape`, and gathering it is a collective operation: all ranks iterate over the same parameters in the same order.
"""

from collections.abc import Iterator, Mapping

import deepspeed
import torch
from torch import nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups

from visurf_ray.aliases import HFModel
from visurf_ray.weights.stored import stored_name, stored_weight


class ZeroSource(WeightSource):
    """The trained weights of a model, tied ones once, gathered one layer at a time under ZeRO-3.

    Frozen weights are not sent: vLLM keeps the layers that an update omits. vLLM fuses some layers (query, key and
    value; gate and up), and an update must have all parts of a fused layer, so these must be trained together.

    Names and values are those of the model's files, see `stored_name` and `stored_weight`.
    """

    def __init__(self, model: HFModel) -> None:
        self.model = model
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._names = {name: stored_name(model, name) for name in self.weights}
        self._running: Iterator[tuple[str, torch.Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        weights = ((name, self.weights[name]) for names in layerwise_groups(list(self.weights)) for name in names)
        shapes = ((name, torch.empty(_shape(weight), dtype=weight.dtype, device="meta")) for name, weight in weights)
        found = ((self._names[name], stored_weight(self.model, name, weight)) for name, weight in shapes)
        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in found]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self._running = self._all()
        return self._running

    def begin(self) -> None:
        """Note that a transfer begins, which will iterate once."""
        self._running = None

    def finish(self) -> None:
        """Gather what a failed transfer has not gathered, maybe everything: the other ranks go on with it."""
        for _ in self._running or self:
            pass
        self._running = None

    def _all(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in gathered(self.weights):
            yield self._names[name], stored_weight(self.model, name, parameter.detach())


def gathered(parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters by their names in the model; under ZeRO-3 those of one layer are gathered at a time.

    Gathering is a collective operation: all ranks iterate together, to the end.
    """
    for names in layerwise_groups(list(parameters)):
        layer = [parameters[name] for name in names]
        sharded = any(hasattr(parameter, "ds_id") for parameter in layer)
        with deepspeed.zero.GatheredParameters(layer, enabled=sharded):
            yield from zip(names, layer, strict=True)


def _shape(weight: torch.Tensor) -> torch.Size:
    return getattr(weight, "ds_shape", weight.shape)
