"""Attention of packed rows, as transformers calls it: each response sees its prompt and itself, no other response.

Cascade attention computes it wherever flash attention can. Float32 on CUDA, dropout, and models that bring a mask of
their own take the dense reference: one mask over the whole row.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from visurf_ray.learner.cascade import CascadePlan, GroupLength, cascade
from visurf_ray.learner.flash import has_flash

CASCADE = "cascade"  # the name under which transformers knows `packed_attention`


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "B heads L D"],
    key: Float[Tensor, "B kv_heads L D"],
    value: Float[Tensor, "B kv_heads L D"],
    attention_mask: Bool[Tensor, "1 1 L L"] | None,
    *,
    scaling: float,
    plan: CascadePlan | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Float[Tensor, "B L heads D"], None]:
    """Compute the attention of a row (B = 1) by its plan; without a plan it is plain SDPA.

    Args:
        attention_mask: with a plan: what the model adds to causal attention, such as images whose tokens see each
            other. transformers passes none where attention is causal.
    """
    if plan is not None and attention_mask is None and not dropout and has_flash(query):
        queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return cascade(queries, keys, values, plan, scaling)[None], None
    if plan is not None:
        row_mask = dense_mask(plan.groups, query.dtype, query.device, causal=attention_mask is None)
        hidden = torch.finfo(query.dtype).min
        attention_mask = row_mask if attention_mask is None else row_mask.masked_fill(~attention_mask, hidden)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


@lru_cache(maxsize=1)  # the layers of a forward pass share one mask
def dense_mask(
    groups: Sequence[GroupLength], dtype: torch.dtype, device: torch.device, *, causal: bool = True
) -> Float[Tensor, "1 1 L L"]:
    """Return the additive mask of a row: 0 where a query (third axis) sees a key (fourth), else the dtype's minimum.

    Args:
        causal: false: a token sees all of its prompt and of its response, also what follows it.
    """
    total = sum(group.total for group in groups)
    visible = torch.zeros(total, total, dtype=torch.bool, device=device)
    begin = 0
    for group in groups:
        prompt = slice(begin, begin + group.prompt)
        visible[prompt, prompt] = True
        begin += group.prompt
        for count in group.responses:
            own = slice(begin, begin + count)
            visible[own, prompt] = True
            visible[own, own] = True
            begin += count
    if causal:
        visible.tril_()
    mask = torch.zeros(total, total, dtype=dtype, device=device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]


AttentionInterface.register(CASCADE, packed_attention)
AttentionMaskInterface.register(CASCADE, sdpa_mask)
