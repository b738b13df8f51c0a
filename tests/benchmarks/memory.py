"""Memory of the activations of real models without a GPU, compared with the estimate of a dry run.

    python -m tests.benchmarks.memory [--quick]

Forward and backward pass of Qwen2.5-VL-7B and 72B in bfloat16 with gradient checkpointing run on fake tensors, which
have shapes but no memory. A tracker adds up the storages that exist: activations, and what kernels and gradients need
for a while. Weights and summed gradients are left out: the dry run computes their sizes from DeepSpeed's rules
(tests/integration/test_memory.py compares them with its engine), and ZeRO-3 holds one layer's at a time.

A row holds as many tokens as learner.max_tokens_per_micro_batch allows. (even) responses of equal length, (ragged) one
of half of the tokens and eight short ones. `worst_ratio` is the largest of measured / estimated and its inverse;
`ragged_over_even` is the largest ratio of their peaks.
"""

import gc
import weakref
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.benchmarks.harness import arguments, finish, table
from visurf_ray.aliases import HFConfig
from visurf_ray.config.load import load_config
from visurf_ray.learner.attention import CASCADE
from visurf_ray.learner.cascade import CascadePlan, GroupLength
from visurf_ray.learner.logprob import logprob_and_entropy
from visurf_ray.learner.memory import activations, size_of
from visurf_ray.learner.trained import Trained
from visurf_ray.learner.vision import VISION, vision_arguments

SIDE = 30  # visual tokens along each side of an image of 840×840
PROMPT = SIDE**2 + 100
CHUNK = 8192  # learner.logprob_chunk on a GPU
SETTINGS = ["learner.gpus=1", "rollout.gpus=1", "learner.dtype=bfloat16", "learner.gradient_checkpointing=true"]
SETTINGS += [f"learner.logprob_chunk={CHUNK}"]
SIZES = {  # width, inner width, layers, heads, and heads of keys and values
    "7B": (3584, 18944, 28, 28, 4),
    "72B": (8192, 29568, 80, 64, 8),
}


def configuration(name: str) -> HFConfig:
    """Return the configuration of a published Qwen2.5-VL."""
    hidden, inner, layers, heads, kv_heads = SIZES[name]
    text = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 152064,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3456 if name == "72B" else 3420,
        "num_heads": 16,
        "out_hidden_size": hidden,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def groups_of(budget: int, ragged: bool) -> list[GroupLength]:
    """Return groups of nine responses that fill a row: one for each 8,192 tokens."""
    found = []
    for _ in range(budget // 8192):
        left = 8192 - PROMPT
        short = left // 2 // 8 if ragged else left // 9
        found.append(GroupLength(PROMPT, (*[short] * 8, left - 8 * short)))
    return found


class Peak(TorchDispatchMode):
    """Adds up the storages that operations create, for as long as they live; `largest` is the peak in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.largest = 0

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Leave tensors that exist already out of the sum."""
        self.live |= {id(tensor.untyped_storage()): 0 for tensor in tensors}
        self.ignored = [tensor.untyped_storage() for tensor in tensors]  # keep their ids

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.largest = max(self.largest, self.now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self.live:
            size = storage.nbytes()
            self.live[id(storage)] = size
            self.now += size
            weakref.finalize(storage, self._remove, id(storage))

    def _remove(self, key: int) -> None:
        self.now -= self.live.pop(key)


def measure(config: HFConfig, groups: Sequence[GroupLength]) -> int:
    """Return the peak of one forward and backward pass in bytes, without weights and summed gradients."""
    grid = torch.tensor([[1, 2 * SIDE, 2 * SIDE]] * len(groups))
    sequences = vision_arguments(config.vision_config, grid, torch.device("cpu"))
    plan = CascadePlan.of(groups)
    length = sum(group.total for group in groups)
    targets = sum(sum(group.responses) + len(group.responses) for group in groups)
    with FakeTensorMode(allow_non_fake_inputs=True):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2_5_VLForConditionalGeneration(deepcopy(config))  # which gets the names of the attention
        torch.set_default_dtype(previous)
        model.set_attn_implementation({"text_config": CASCADE, "vision_config": VISION})
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        for weight in model.parameters():  # as if a gradient was added to its sum at once
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
        pixels = torch.empty(4 * SIDE**2 * len(groups), 3 * 2 * 14 * 14, dtype=torch.bfloat16)
        inputs = torch.zeros(1, length, dtype=torch.long)
        positions = torch.zeros(3, 1, length, dtype=torch.long)
        chosen = torch.zeros(targets, dtype=torch.long)
        peak = Peak()
        peak.ignore([*model.parameters(), *model.buffers(), pixels, inputs, positions, chosen])
        with peak:
            kwargs = {name.removeprefix("image_"): value for name, value in sequences.items()}
            seen = model.model.visual(pixels, grid_thw=grid, **kwargs).pooler_output
            embedded = model.get_input_embeddings()(inputs)
            is_visual = torch.zeros(1, length, 1, dtype=torch.bool).expand_as(embedded)
            embedded = embedded.masked_scatter(is_visual, seen)
            hidden = model.model.language_model(
                inputs_embeds=embedded, position_ids=positions, use_cache=False, plan=plan
            ).last_hidden_state
            logprobs, _ = logprob_and_entropy(hidden[0, chosen], model.lm_head.weight, chosen, chunk=CHUNK)
            del embedded, seen, hidden, is_visual
            logprobs.sum().backward()
    return peak.largest


def main() -> None:
    options = arguments(__doc__, devices=["cpu"]).parse_args()
    rows, ratios, over = [], [], []
    for name in ("7B",) if options.quick else SIZES:
        config = configuration(name)
        size = size_of(config, Trained())
        for budget in (8192,) if options.quick else (8192, 16384):
            learner = load_config([*SETTINGS, f"learner.max_tokens_per_micro_batch={budget}"]).learner
            visual = SIDE**2 * (budget // 8192)
            estimate = sum(activations(size, learner, tokens=budget, visual_tokens=visual).values())
            peaks = {}
            for case in ("even", "ragged"):
                gc.collect()
                peaks[case] = measure(config, groups_of(budget, case == "ragged"))
                rows.append([name, f"{budget:,}", case, peaks[case] / 2**30, estimate / 2**30, peaks[case] / estimate])
                ratios.append(max(peaks[case] / estimate, estimate / peaks[case]))
            over.append(peaks["ragged"] / peaks["even"])
    table(["model", "tokens", "responses", "measured GiB", "estimated GiB", "ratio"], rows)
    finish({"worst_ratio": max(ratios), "ragged_over_even": max(over)})


if __name__ == "__main__":
    main()
