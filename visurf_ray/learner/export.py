"""Conversion of a DeepSpeed checkpoint into a Hugging Face model, without starting a rank."""

from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from transformers import AutoModelForImageTextToText

from visurf_ray.config.schema import ModelSource
from visurf_ray.learner.trained import Trained, merged_weights
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
    with without_code(str(checkpoint)):
        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=CHECKPOINT_TAG)
    model = AutoModelForImageTextToText.from_pretrained(
        base.path, dtype=torch.float32, trust_remote_code=base.trust_remote_code
    )
    trained.apply(model)
    tied = set(model.all_tied_weights_keys)
    weights = {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wrong := expected - tied ^ weights.keys() - tied:
        raise ValueError(f"{checkpoint} does not fit {base.path}: {sorted(wrong)[:3]}")
    model.load_state_dict(weights, strict=False)
    save_model(model, merged_weights(model, model.named_parameters()), out)
