"""Attention of the vision tower over windows or pictures: equal neighbours in one call, on CUDA all in one.

transformers calls its own attention once for each window, and reads the windows' lengths from the GPU in every layer.
Here they are computed on the host, once for each forward pass.
"""

from bisect import bisect_right
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from visurf_ray.aliases import HFConfig
from visurf_ray.learner.flash import has_flash
from visurf_ray.learner.sequences import Sequences

# The name under which transformers knows `vision_attention`. Only a function whose name contains "flash" gets all
# sequences in one call, with their lengths.
VISION = "flash_sequences"


def has_sequences(config: HFConfig) -> bool:
    """Return whether a vision tower takes all patches as one sequence, as those of the Qwen-VL families do."""
    return hasattr(config, "spatial_merge_size")


def vision_arguments(config: HFConfig, grid_thw: Int[Tensor, "images 3"], device: torch.device) -> dict[str, object]:
    """Return the arguments of a model's forward pass with what its vision tower would otherwise read from the GPU.

    These are the places of patches and the sequences in which they attend.

    The windows of a picture come in the order of their size, so that equal ones are neighbours. Which order they have
    makes no difference: layers attend within windows or over all of a picture.

    Args:
        config: of the vision tower.
        grid_thw: on the CPU.
        device: of the forward pass.
    """
    pictures = torch.repeat_interleave(grid_thw[:, 1] * grid_thw[:, 2], grid_thw[:, 0]).tolist()
    # transformers takes them in place of what it would compute, and passes them on to the attention of each layer.
    arguments: dict[str, object] = {
        "image_cu_seqlens": Sequences.of(pictures).to(device),
        "image_max_seqlen": max(pictures),
        "image_position_ids": get_vision_position_ids(grid_thw, config.spatial_merge_size).to(device),
    }
    if not hasattr(config, "window_size"):
        return arguments
    merged = config.spatial_merge_size**2  # patches that become one visual token, and stay together
    index, ends = get_vision_window_index(grid_thw, config.spatial_merge_size, config.window_size, config.patch_size)
    sizes = ends.diff().tolist()
    picture_ends = list(accumulate(pictures))
    picture = [bisect_right(picture_ends, begin) for begin in ends[:-1].tolist()]  # of each window
    order = sorted(range(len(sizes)), key=lambda window: (picture[window], sizes[window]))
    windows = index.split([size // merged for size in sizes])
    return arguments | {
        "image_window_index": torch.cat([windows[window] for window in order]).to(device),
        "image_cu_window_seqlens": Sequences.of([sizes[window] for window in order]).to(device),
        "image_max_window_seqlen": max(sizes),
    }


def vision_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads L D"],
    key: Float[Tensor, "1 heads L D"],
    value: Float[Tensor, "1 heads L D"],
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Sequences | Int[Tensor, " S+1"],
    **kwargs: object,
) -> tuple[Float[Tensor, "1 L heads D"], None]:
    """Attend within each sequence.

    Args:
        cu_seq_lens_q: the sequences, or where they begin and end, if the caller did not pass `vision_arguments`.
    """
    if isinstance(cu_seq_lens_q, Tensor):
        cu_seq_lens_q = Sequences.of(cu_seq_lens_q.diff().tolist()).to(query.device)
    sequences = cu_seq_lens_q
    if query.is_cuda and has_flash(query):
        queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        ends, longest = sequences.cumulative, sequences.longest
        found = varlen_attn(queries, keys, values, ends, ends, longest, longest, scale=scaling)
        assert isinstance(found, Tensor)  # with a log-sum-exp on request alone
        return found[None], None
    sizes = [run.count * run.length for run in sequences.runs]
    parts = zip(*(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True)
    outputs = []
    for run, part in zip(sequences.runs, parts, strict=True):
        queries, keys, values = (tensor.unflatten(1, (run.count, run.length)).transpose(0, 1) for tensor in part)
        output = scaled_dot_product_attention(queries, keys, values, scale=scaling)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


AttentionInterface.register(VISION, vision_attention)
