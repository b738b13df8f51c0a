"""The policy: a Hugging Face vision-language model that returns log-probs of response tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from visurf_ray.learner.packing import PackedGroups
from visurf_ray.models import BANNED_BIAS


class Policy(nn.Module):
    """Wraps the model so that DeepSpeed sees one forward pass from packed groups to log-probs."""

    def __init__(self, model: Any, temperature: float, banned: Sequence[int]) -> None:
        """temperature and banned token ids: as the sampler has them, so that both see one distribution."""
        super().__init__()
        self.banned = list(banned)
        self.model = model
        self.temperature = temperature

    def forward(self, packed: PackedGroups) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """Log-probability of each response token, and the entropy (nats, detached) of what it is drawn from.

        Logits are computed at response positions alone, divided by the sampling temperature, in float32.
        """
        hidden = self.model.model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=packed.attention_mask,
            pixel_values=packed.pixel_values,
            image_grid_thw=packed.image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(hidden[packed.row_T, packed.column_T]).float()
        logits[:, self.banned] += BANNED_BIAS
        logits = logits / self.temperature
        logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, packed.target_T[:, None])[:, 0], entropy


def load_model(path: str, *, dtype: torch.dtype, attention: str, gradient_checkpointing: bool) -> Any:
    """Load the model for training. ZeRO-3 wants an `HfDeepSpeedConfig` alive before this is called."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation=attention)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model
