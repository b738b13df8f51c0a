"""From a DeepSpeed checkpoint to a Hugging Face model, without starting any rank."""

from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from transformers import AutoModelForImageTextToText

from visurf_ray.learner.rank import CHECKPOINT_TAG
from visurf_ray.learner.trained import Trained
from visurf_ray.weights.source import named_weights

_WRAPPER = "model."  # the policy holds the Hugging Face model under this name


def export_checkpoint(checkpoint: Path, base_model: str, trained: Trained, out: Path) -> None:
    """Write the checkpoint's weights, float32 and adapters merged, into `out` as `from_pretrained` loads them.

    base_model: the model that the run started from, for its configuration and the frozen weights. trained: as in the
    run. Raises ValueError for a checkpoint that does not hold just the weights that are trained.
    """
    state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=CHECKPOINT_TAG)
    model = AutoModelForImageTextToText.from_pretrained(base_model, dtype=torch.float32)
    trained.apply(model)
    tied = set(model.all_tied_weights_keys)
    weights = {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wrong := expected - tied ^ weights.keys() - tied:
        raise ValueError(f"{checkpoint} does not fit {base_model}: {sorted(wrong)[:3]}")
    model.load_state_dict(weights, strict=False)
    model.save_pretrained(out, state_dict={name: weight.value() for name, weight in named_weights(model).items()})
