"""Conversion of a DeepSpeed checkpoint into a Hugging Face model or adapters, without starting a rank."""

from pathlib import Path

import numpy as np
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForImageTextToText

from visurf_ray.aliases import HFModel
from visurf_ray.config.schema import ModelSource
from visurf_ray.learner.trained import Trained, adapter_files, merged_weights
from visurf_ray.learner.universal import CHECKPOINT_TAG
from visurf_ray.learner.unpickling import without_code
from visurf_ray.weights.stored import save_model

_WRAPPER = "model."  # the policy holds the Hugging Face model under this name


def export_checkpoint(checkpoint: Path, base: ModelSource, trained: Trained, out: Path) -> None:
    """Write the checkpoint's weights to `out` as `from_pretrained` loads them: in float32, adapters merged.

    Args:
        base: the model that the run started from, as for `policy.load_model`; gives the configuration and the frozen
            weights.
        trained: which weights the run trained.

    Raises:
        ValueError: the checkpoint's weights are not those that `trained` names.
        UserError: its files hold what might run code.
    """
    model = AutoModelForImageTextToText.from_pretrained(
        base.path, dtype=torch.float32, trust_remote_code=base.trust_remote_code
    )
    trained.apply(model)
    _load(model, checkpoint, base)
    save_model(model, merged_weights(model, model.named_parameters()), out)


def checkpoint_adapters(checkpoint: Path, base: ModelSource, trained: Trained) -> dict[str, NDArray[np.uint8]]:
    """Return the checkpoint's adapters in float32 as PEFT stores them: the contents of each file by its name.

    Arguments and errors are those of `export_checkpoint`. Loads no weights of the base model.
    """
    trust = base.trust_remote_code
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(base.path, trust_remote_code=trust)
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust)
    adapters = trained.apply(model)
    assert adapters, "the checkpoint has adapters"
    _load(model, checkpoint, base)
    return adapter_files(adapters)


def _load(model: HFModel, checkpoint: Path, base: ModelSource) -> None:
    """Give a model the weights of the checkpoint, in place of its trained ones."""
    with without_code(str(checkpoint)):
        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=CHECKPOINT_TAG)
    tied = set(model.all_tied_weights_keys)
    weights = {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wrong := expected - tied ^ weights.keys() - tied:
        raise ValueError(f"{checkpoint} does not fit {base.path}: {sorted(wrong)[:3]}")
    model.load_state_dict(weights, strict=False, assign=model.device.type == "meta")
