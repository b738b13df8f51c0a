"""Which of a model's weights are trained: all, all but parts of the vision tower, or low-rank adapters alone."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from visurf_ray.errors import ConfigError
from visurf_ray.names import nearest


@dataclass(frozen=True)
class Trained:
    """See `learner` in `conf/config.yaml`. lora_rank 0: no adapters. With adapters all else is frozen."""

    freeze_vision: bool = False
    freeze_projector: bool = False
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_dropout: float = 0.0
    lora_targets: list[str] | None = None

    def apply(self, model: Any) -> PeftModel | None:
        """Freeze the rest of the model, in place; returns the model with its adapters, if it is given any.

        Adapters are LoRA's (https://arxiv.org/abs/2106.09685), beside linear layers of the language model. They change
        nothing until they have learnt something. Raises ConfigError for a target that is none of these layers.
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
        """Raise ConfigError, as `apply` does, for what the model at a path cannot have; no weights are loaded."""
        try:
            with torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"model.path={path}: no vision-language model ({reason})") from error
        self.apply(model)

    def _add_adapters(self, model: Any) -> PeftModel:
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
        # In the dtype of the weights beside them: DeepSpeed keeps the float32 master copy.
        return get_peft_model(model, config, autocast_adapter_dtype=False)


# In `visual`: from patches to visual tokens, and Qwen3-VL's for the first layers of the language model.
_PROJECTOR = ("merger", "deepstack_merger_list")
