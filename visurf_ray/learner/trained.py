"""The weights of a model that are trained: all, all but parts of the vision tower, or low-rank adapters alone."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from visurf_ray.aliases import HFModel
from visurf_ray.config.schema import Config, ModelSource
from visurf_ray.errors import ConfigError
from visurf_ray.learner.parts import ModelPart, parameters_of, part_of
from visurf_ray.names import nearest


@dataclass(frozen=True)
class Trained:
    """Which weights are trained; see `learner` in `conf/config.yaml`.

    Attributes:
        lora_rank: 0 adds no adapters. With adapters all other weights are frozen.
        lora_targets: names of linear layers (see `adaptable`); None for all of the language model.
    """

    freeze_vision: bool = False
    freeze_projector: bool = False
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_dropout: float = 0.0
    lora_targets: list[str] | None = None

    def apply(self, model: HFModel) -> PeftModel | None:
        """Freeze the other weights and add adapters, in place; returns the wrapper of a model with adapters, else None.

        Adapters are LoRA's, beside linear layers (https://arxiv.org/abs/2106.09685). They are initialised so that the
        model's outputs do not change.

        Raises:
            ConfigError: `lora_targets` names a layer that the model does not have.
        """
        if self.lora_rank:
            return self._add_adapters(model)
        for part, frozen in ((ModelPart.vision, self.freeze_vision), (ModelPart.projector, self.freeze_projector)):
            for parameter in parameters_of(model, part):
                parameter.requires_grad_(not frozen)
        return None

    def check(self, source: ModelSource) -> None:
        """Check that the settings fit a model, without loading its weights.

        Args:
            source: as for `policy.load_model`.

        Raises:
            ConfigError: there is no vision-language model at its path, or `apply` raises.
        """
        trust = source.trust_remote_code
        try:
            with torch.device("meta"):
                config = AutoConfig.from_pretrained(source.path, trust_remote_code=trust)
                model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"model.path={source.path}: no vision-language model ({reason})") from error
        self.apply(model)

    def _add_adapters(self, model: HFModel) -> PeftModel:
        layers = adaptable(model)
        known = sorted(layers)
        targets = [name for name in known if "." not in name] if self.lora_targets is None else self.lora_targets
        for name in targets:
            if name not in known:
                raise ConfigError(
                    f"learner.lora.targets: the model has no linear layers named {name!r}."
                    f"{nearest(name, known)} Known: {', '.join(known)}"
                )
        config = LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]  # typed as an integer, used as a factor
            lora_dropout=self.lora_dropout,
            target_modules=[path for name in targets for path in layers[name]],
        )
        # Adapters in the dtype of the weights beside them, as DeepSpeed casts the whole model to the training dtype.
        return get_peft_model(model, config, autocast_adapter_dtype=False)

    @property
    def adapts_vision(self) -> bool:
        """Whether adapters lie in the vision tower or its projector."""
        return bool(self.lora_rank) and any("." in name for name in self.lora_targets or ())


def trained_weights(config: Config) -> Trained:
    """Return which weights the run trains. Settings without effect keep their defaults: equal runs compare equal."""
    learner, lora = config.learner, config.learner.lora
    if not lora.rank:
        return Trained(freeze_vision=learner.freeze_vision, freeze_projector=learner.freeze_projector)
    return Trained(
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        lora_targets=None if lora.targets is None else list(lora.targets),
    )


def adaptable(model: HFModel) -> dict[str, list[str]]:
    """Return the layers that adapters can lie beside: their paths in the model, by the name of a target.

    A linear layer of the language model has the last part of its path as name (`q_proj`), one of the vision tower has
    `visual.` before it (`visual.qkv`), one of the projector `merger.` (`merger.0`).
    """
    prefixes = {ModelPart.language: "", ModelPart.vision: "visual.", ModelPart.projector: "merger."}
    found: dict[str, list[str]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and path.startswith("model."):
            found.setdefault(prefixes[part_of(path)] + path.split(".")[-1], []).append(path)
    return found


def adapter_files(adapters: PeftModel) -> dict[str, NDArray[np.uint8]]:
    """Return the adapters as PEFT stores them: the contents of each file by its name. They must be gathered.

    Arrays, because Ray passes them on without a copy, and copies bytes several times.
    """
    with tempfile.TemporaryDirectory() as folder:
        adapters.save_pretrained(folder, save_embedding_layers=False)
        return {path.name: np.fromfile(path, np.uint8) for path in Path(folder).glob("adapter_*")}


def merged_weights(model: HFModel, parameters: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights, with adapters merged, by their names in the model without adapters.

    Adapters are merged in float32 and the sum is rounded to the weight's dtype. Changes no parameter.

    Args:
        parameters: `model.named_parameters()`, or those of one layer after another, see `weights.source.gathered`.
    """
    layers = model.named_modules()
    adapted = {f"{name}.base_layer.weight": layer for name, layer in layers if isinstance(layer, lora.Linear)}
    for name, parameter in parameters:
        if ".lora_" not in name:
            weight = parameter.detach()
            yield name.replace(".base_layer.", "."), _merge(weight, adapted[name]) if name in adapted else weight


def _merge(weight: Tensor, layer: lora.Linear) -> Tensor:
    (name,) = layer.active_adapters
    down, up = (layer.get_parameter(f"{side}.{name}.weight").detach().float() for side in ("lora_A", "lora_B"))
    return torch.addmm(weight.float(), up, down, alpha=layer.scaling[name]).to(weight.dtype)
