"""From a DeepSpeed checkpoint to a Hugging Face model, without starting any rank."""

from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from transformers import AutoModelForImageTextToText

from visurf_ray.learner.rank import CHECKPOINT_TAG

_WRAPPER = "model."  # the policy holds the Hugging Face model under this name


def export_checkpoint(checkpoint: Path, base_model: str, out: Path) -> None:
    """Write the checkpoint's weights, float32, into `out` as `from_pretrained` loads them.

    base_model: the model that the run started from, for its configuration.
    """
    state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=CHECKPOINT_TAG)
    model = AutoModelForImageTextToText.from_pretrained(base_model, dtype=torch.float32)
    weights = {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys)
    if unexpected or set(missing) - tied:
        raise ValueError(f"{checkpoint} does not fit {base_model}: {[*unexpected, *missing][:3]}")
    model.save_pretrained(out)
