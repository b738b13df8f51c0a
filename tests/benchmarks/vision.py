"""The vision tower with the learner's attention against transformers' own: forward and backward pass of one picture.

    python -m tests.benchmarks.vision [--quick] [--device cuda]

A picture of 840×840 pixels (3,600 patches) in a tower with Qwen2.5-VL's 32 layers, of which 4 attend to the whole
picture and 28 within 64 windows. On a GPU it has the published width, on a CPU a twentieth of it: linear layers, which
are the same on both sides, would otherwise take minutes and nearly all of the time. `calls` counts calls of attention
in a forward pass; `window_speedup` compares one layer's attention module alone, its linear layers included.
"""

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from tests.benchmarks.harness import arguments, finish, interleaved, start, table
from visurf_ray.aliases import HFModel
from visurf_ray.learner import vision
from visurf_ray.learner.sequences import Sequences
from visurf_ray.learner.vision import VISION, vision_arguments

SIZES = {"cpu": (64, 4), "cuda": (1280, 16)}  # width and heads
SIDE = 60  # patches


def make_tower(attention: str, device: str, depth: int) -> HFModel:
    torch.manual_seed(0)
    width, heads = SIZES[device]
    config = Qwen2_5_VLVisionConfig(
        depth=depth,
        hidden_size=width,
        intermediate_size=3420 * width // 1280,
        num_heads=heads,
        out_hidden_size=width,
        fullatt_block_indexes=list(range(7, depth, 8)),
        attn_implementation="sdpa",
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel(config)
    tower.config._attn_implementation = attention
    return tower.to(device, torch.bfloat16 if device == "cuda" else torch.float32)


def backward(forward: Callable[[], Tensor], module: HFModel) -> None:
    module.zero_grad()
    forward().sum().backward()


def calls(forward: Callable[[], Tensor]) -> int:
    """How often a forward pass calls SDPA, or flash attention for variable lengths."""
    functions = [(torch.nn.functional, "scaled_dot_product_attention")]
    functions += [(vision, "scaled_dot_product_attention"), (vision, "varlen_attn")]
    count = 0

    def counted(function: Callable[..., Tensor], *args: Tensor, **kwargs: object) -> Tensor:
        nonlocal count
        count += 1
        return function(*args, **kwargs)

    with torch.no_grad():
        patches = [patch.object(place, name, partial(counted, getattr(place, name))) for place, name in functions]
        for replaced in patches:
            replaced.start()
        forward()
        for replaced in patches:
            replaced.stop()
    return count


def main() -> None:
    options = arguments(__doc__).parse_args()
    start(options)
    device, depth, repeats = options.device, 8 if options.quick else 32, 2 if options.quick else 7
    grid = torch.tensor([[1, SIDE, SIDE]])
    towers = {"transformers": make_tower("sdpa", device, depth), "ours": make_tower(VISION, device, depth)}
    planned = vision_arguments(towers["ours"].config, grid, torch.device(device))
    names = {name: name.removeprefix("image_") for name in planned}
    kwargs = {"transformers": {}, "ours": {names[name]: value for name, value in planned.items()}}
    dtype = towers["ours"].dtype
    pixels = torch.randn(SIDE**2, 3 * 2 * 14 * 14).to(device, dtype)

    def merged(name: str) -> Tensor:
        return towers[name](pixels, grid_thw=grid.to(device), **kwargs[name]).pooler_output

    hidden = torch.randn(SIDE**2, SIZES[device][0]).to(device, dtype).requires_grad_()
    turns = tuple(torch.ones(SIDE**2, hidden.shape[1] // SIZES[device][1], device=device) for _ in range(2))
    windows, longest = planned["image_cu_window_seqlens"], planned["image_max_window_seqlen"]
    assert isinstance(windows, Sequences)
    ends = {"transformers": windows.cumulative, "ours": windows}

    def window(name: str) -> Tensor:
        module = towers[name].blocks[0].attn
        return module(hidden, cu_seqlens=ends[name], position_embeddings=turns, max_seqlen=longest)

    with torch.no_grad():
        expected, found = merged("transformers"), merged("ours")
    seconds = interleaved({name: partial(backward, partial(merged, name), towers[name]) for name in towers}, repeats)
    one = interleaved({name: partial(backward, partial(window, name), towers[name]) for name in towers}, repeats)
    count = {name: calls(partial(merged, name)) for name in towers}
    table(["", "seconds", "calls"], [[name, seconds[name], count[name]] for name in towers])
    finish(
        {
            "speedup": seconds["transformers"] / seconds["ours"],
            "window_speedup": one["transformers"] / one["ours"],
            "calls": count["ours"],
            "calls_transformers": count["transformers"],
            "max_diff": (found - expected).abs().max().item(),
        }
    )


if __name__ == "__main__":
    main()
