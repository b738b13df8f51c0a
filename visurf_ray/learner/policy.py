"""The policy: a Hugging Face vision-language model that returns the log-probs of response tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from visurf_ray.aliases import HFModel
from visurf_ray.config.choices import HeadDtype
from visurf_ray.config.schema import ModelSource
from visurf_ray.learner.attention import CASCADE
from visurf_ray.learner.logprob import LogprobHead
from visurf_ray.learner.packing import GRIDS, PackedGroups
from visurf_ray.learner.vision import VISION, has_sequences, vision_arguments


class Policy(nn.Module):
    """Wraps the model so that DeepSpeed sees one forward pass from packed groups to log-probs."""

    def __init__(
        self,
        model: HFModel,
        temperature: float,
        banned: Sequence[int],
        chunk: int,
        head_dtype: HeadDtype = HeadDtype.float32,
    ) -> None:
        """Wrap the model and replace its output head.

        Args:
            temperature: the sampler's, so that both compute one distribution.
            banned: token ids that the sampler never samples.
            chunk: vocabulary entries whose logits are held at once.
            head_dtype: of the logits; see `learner.head_dtype`.
        """
        super().__init__()
        self.model = model
        model.lm_head = LogprobHead(
            model.lm_head, banned=banned, temperature=temperature, chunk=chunk, head_dtype=head_dtype
        )

    def forward(self, packed: PackedGroups) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """Return log-prob and entropy of each response token; see `logprob_and_entropy`."""
        device = packed.input_ids.device
        arguments: dict[str, object] = {name: value.to(device) for name, value in packed.features.items()}
        for name in ("position_ids", "attention_mask", "plan"):
            if (value := getattr(packed, name)) is not None:
                arguments[name] = value
        if GRIDS in packed.features:
            arguments |= vision_arguments(self.model.config.vision_config, packed.features[GRIDS], device)
        output = self.model.model(input_ids=packed.input_ids, use_cache=False, **arguments)
        hidden = output.last_hidden_state.flatten(0, 1)
        logprobs, entropy = self.model.lm_head(hidden[packed.column_T], packed.target_T)
        if packed.anchor is not None:
            logprobs = logprobs + 0.0 * hidden[packed.anchor].sum()
        return logprobs, entropy


def load_model(source: ModelSource, *, dtype: torch.dtype, gradient_checkpointing: bool) -> HFModel:
    """Load a model for training; for ZeRO-3, create an `HfDeepSpeedConfig` before and keep a reference to it.

    The language model can compute rows by a plan, see `attention.packed_attention`.

    Args:
        source: with a path that `from_pretrained` takes; see `models.resolved`.
    """
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        source.path, dtype=dtype, attn_implementation="sdpa", trust_remote_code=source.trust_remote_code
    )
    # Not as it loads: transformers would then look for a package that implements VISION.
    vision = VISION if has_sequences(model.config.vision_config) else "sdpa"
    model.set_attn_implementation({"text_config": CASCADE, "vision_config": vision})
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model
