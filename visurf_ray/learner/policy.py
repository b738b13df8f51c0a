"""The policy: a Hugging Face vision-language model that returns the log-probs of response tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from visurf_ray.aliases import HFModel
from visurf_ray.config.choices import HeadDtype
from visurf_ray.errors import ConfigError
from visurf_ray.learner.attention import CASCADE
from visurf_ray.learner.logprob import LogprobHead
from visurf_ray.learner.packing import PackedGroups
from visurf_ray.learner.vision import VISION, vision_arguments


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
        hidden = self.model.model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            pixel_values=packed.pixel_values,
            image_grid_thw=packed.image_grid_thw.to(device),
            use_cache=False,
            plan=packed.plan,
            **vision_arguments(self.model.config.vision_config, packed.image_grid_thw, device),
        ).last_hidden_state
        return self.model.lm_head(hidden[0, packed.column_T], packed.target_T)


def load_model(path: str, *, dtype: torch.dtype, gradient_checkpointing: bool) -> HFModel:
    """Load a model for training; for ZeRO-3, create an `HfDeepSpeedConfig` before and keep a reference to it.

    Raises:
        ConfigError: the model has sliding-window attention, whose windows would cross responses in a row of groups.
    """
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    if "sliding_attention" in getattr(model.config.get_text_config(), "layer_types", ()):
        raise ConfigError(f"model.path={path}: layers with sliding-window attention are not supported")
    # Not as it loads: transformers would then look for a package that implements VISION.
    model.set_attn_implementation({"text_config": CASCADE, "vision_config": VISION})
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model
