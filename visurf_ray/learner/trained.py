"""The weights of a model that are trained: all, all but parts of the vision tower, or low-rank adapters alone."""

import re
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from visurf_ray.aliases import HFModel
from visurf_ray.errors import ConfigError
from visurf_ray.names import nearest


@dataclass(frozen=True)
class Trained:
    """Which weights are trained; see `learner` in `conf/config.yaml`.

    Attributes:
        lora_rank: 0 adds no adapters. With adapters all other weights are frozen.
        lora_targets: names of linear layers of the language model; None for all.
    """

    freeze_vision: bool = False
    freeze_projector: bool = False
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_dropout: float = 0.0
    lora_targets: list[str] | None = None

    def apply(self, model: HFModel) -> PeftModel | None:
        """Freeze the other weights and add adapters, in place; returns the wrapper of a model with adapters, else None.

        Adapters are LoRA's, beside linear layers of the language model (https://arxiv.org/abs/2106.09685). They are
        initialised so that the model's outputs do not change.

        Raises:
            ConfigError: `lora_targets` names no linear layer of the language model.
        """
        if self.lora_rank:
            return self._add_adapters(model)
        visual = model.model.visual
        visual.requires_grad_(not self.freeze_vision)
        for name in _PROJECTOR:
            if hasattr(visual, name):
                getattr(visual, name).requires_grad_(not self.freeze_projector)
        return None

    def check(self, path: str) -> None:
        """Check that the settings fit the model at a path, without loading its weights.

        Raises:
            ConfigError: there is no vision-language model at the path, or `apply` raises.
        """
        try:
            with torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"model.path={path}: no vision-language model ({reason})") from error
        self.apply(model)

    def _add_adapters(self, model: HFModel) -> PeftModel:
        layers = model.model.language_model.named_modules()
        known = sorted({name.rpartition(".")[2] for name, layer in layers if isinstance(layer, nn.Linear)})
        targets = known if self.lora_targets is None else self.lora_targets
        for name in targets:
            if name not in known:
                raise ConfigError(
                    f"learner.lora.targets: the language model has no linear layers named {name!r}."
                    f"{nearest(name, known)} Known: {', '.join(known)}"
                )
        config = LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]  # typed as an integer, used as a factor
            lora_dropout=self.lora_dropout,
            # The vision tower has layers of the same names.
            target_modules=rf"model\.language_model\..*\.({'|'.join(map(re.escape, targets))})",
        )
        # Adapters in the dtype of the weights beside them, as DeepSpeed casts the whole model to the training dtype.
        return get_peft_model(model, config, autocast_adapter_dtype=False)


# Modules of `visual` that map patches to visual tokens; the second is Qwen3-VL's, whose output enters several layers.
_PROJECTOR = ("merger", "deepstack_merger_list")
