"""The learner alone at real sizes: packed rows compared with one row for each response.

    python -m tests.benchmarks.learner [--quick] [--device cuda]

On a GPU: Qwen2.5-VL-3B and -7B with random weights, in bfloat16; 16 pictures of 840×840 (900 visual tokens), prompts of
1,000 tokens, and nine responses of 200 tokens to each. Every case runs in a process of its own. A step is
`Rank.update`, with packing, backward pass and optimiser. On a CPU a small model replaces both.

MFU is the floating-point operations of the forward and backward pass, without recomputation, divided by what the device
can do in that time at its dense bfloat16 peak.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.benchmarks.harness import arguments, finish, start, table
from tests.benchmarks.models import random_group
from visurf_ray.config.choices import Dtype, HeadDtype
from visurf_ray.config.schema import ModelSource
from visurf_ray.groups import Group
from visurf_ray.learner.balance import cut
from visurf_ray.learner.cost import TOKENS
from visurf_ray.method import LossConfig, token_weights

IDS = {"image_token_id": 1655, "video_token_id": 1656, "vision_start_token_id": 1652, "vision_end_token_id": 1653}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, of the SXM boards (NVIDIA's data sheets)


@dataclass(frozen=True)
class Size:
    """A model's width and depth, and the step's shape. side: merged visual tokens along a picture's side."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool
    vision_hidden: int
    vision_inner: int
    vision_depth: int
    groups: int
    prompt: int
    side: int
    response: int
    responses: int
    micro_batch: int
    checkpointing: bool


SIZES = {
    "small": Size(256, 768, 4, 8, 4, 2048, True, 128, 256, 4, 2, 140, 10, 20, 9, 1024, False),
    "3b": Size(2048, 11008, 36, 16, 2, 151936, True, 1280, 3420, 32, 16, 1000, 30, 200, 9, 8400, False),
    "7b": Size(3584, 18944, 28, 28, 4, 152064, False, 1280, 3420, 32, 16, 1000, 30, 200, 9, 8400, True),
}


@dataclass(frozen=True)
class Case:
    size: str
    plain: bool = False
    offload: bool = False
    zero_stage: int = 1


CASES = {
    "cpu": [Case("small"), Case("small", plain=True)],
    "cuda": [
        Case("3b"),
        Case("3b", plain=True),
        Case("3b", offload=True),
        Case("3b", zero_stage=3),
        Case("7b", offload=True),
        Case("7b", offload=True, plain=True),
    ],
}


def write_model(name: str, folder: str, device: str) -> None:
    """Random weights in a folder as `from_pretrained` takes it."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    size = SIZES[name]
    half = size.hidden // size.heads // 2  # a head turns pairs of numbers: by time, height and width
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.key_heads,
            "tie_word_embeddings": size.tied,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8],
                "rope_theta": 1e6,
            },
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_inner,
            "num_heads": 16,
            "out_hidden_size": size.hidden,
            "window_size": 112,
            "fullatt_block_indexes": list(range(size.vision_depth // 4 - 1, size.vision_depth, size.vision_depth // 4)),
        },
        tie_word_embeddings=size.tied,
        **IDS,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.to(torch.bfloat16 if device == "cuda" else torch.float32).save_pretrained(folder)


def make_groups(size: Size, plain: bool) -> list[Group]:
    """A step's groups; plain: a group for each response, with a prompt and a picture of its own."""
    shape = (size.prompt, size.side, [size.response] * size.responses)
    special = (IDS["image_token_id"], IDS["vision_start_token_id"], IDS["vision_end_token_id"])
    groups = [random_group(*shape, special=special, seed=seed) for seed in range(size.groups)]
    if plain:
        return [replace(group, responses=[response]) for group in groups for response in group.responses]
    return groups


def operations(model: Any, size: Size, groups: list[Group]) -> float:
    """Floating-point operations of a forward and a backward pass: two for each weight and token, and attention's."""

    def count(module: Any) -> int:  # ZeRO-3 leaves a shard of a weight, and its number
        return sum(getattr(weight, "ds_numel", weight.numel()) for weight in module.parameters())

    language, vision = model.model.language_model, model.model.visual
    patches = 4 * size.side**2
    total = 0.0
    for group in groups:
        prompt, lengths = len(group.example.prompt.expanded_ids), [response.length for response in group.responses]
        pairs = prompt**2 / 2 + sum(length * prompt + length**2 / 2 for length in lengths)
        total += 2 * (count(language) - count(language.embed_tokens)) * (prompt + sum(lengths))
        total += 4 * size.layers * size.hidden * pairs
        total += 2 * size.vocabulary * size.hidden * sum(lengths)
        total += 2 * (count(vision) - count(vision.merger)) * patches + 2 * count(vision.merger) * size.side**2
        total += 4 * 4 * size.vision_hidden * patches**2  # its four layers of full attention; windows are small
    return 3 * total


def measure(case: Case, folder: str, device: str, repeats: int) -> dict[str, Any]:
    """Seconds of an update and the peak of the device's memory, in this process."""
    from visurf_ray.learner.config import RankConfig
    from visurf_ray.learner.rank import Rank
    from visurf_ray.learner.trained import Trained

    size = SIZES[case.size]
    config = RankConfig(
        model=ModelSource(folder),
        temperature=1.0,
        banned=(),
        zero_stage=case.zero_stage,
        offload=case.offload,
        trained=Trained(),
        learning_rate=1e-6,
        weight_decay=0.01,
        adam_betas=(0.9, 0.999),
        max_grad_norm=1.0,
        max_tokens_per_micro_batch=size.micro_batch,
        logprob_chunk=8192 if device == "cuda" else 256,
        gradient_checkpointing=size.checkpointing,
        head_dtype=HeadDtype.float32,
        timeout=600.0,
        async_checkpoint=False,
        dtype=Dtype.bfloat16 if device == "cuda" else Dtype.float32,
    )
    rank = Rank(config, rank=0, world_size=1, init_method="tcp://127.0.0.1:0", seed=0)  # 0: any port that is free
    groups = make_groups(size, case.plain)
    shard = cut(groups, token_weights(groups, LossConfig()), config.max_tokens_per_micro_batch)
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        begin = time.perf_counter()
        rank.update([shard], LossConfig(), lambda value: value)  # returns numbers: the device has finished
        seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds[1:])
    done = operations(rank.model, size, groups) / step
    found = {"seconds": step, "tokens_per_second": sum(map(TOKENS.tokens, groups)) / step, "tflops": done / 1e12}
    if device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if peak := next((peak for name, peak in PEAKS.items() if name in torch.cuda.get_device_name()), None):
            found["mfu"] = done / peak
    return found


def in_its_own_process(case: Case, folder: str, flags: list[str], device: str) -> dict[str, Any]:
    """What `measure` finds there, or how it failed: memory may run out."""
    command = [sys.executable, "-m", "tests.benchmarks.learner", "--case", json.dumps(vars(case)), "--model", folder]
    environment = os.environ | {"DS_ACCELERATOR": device}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--case", type=json.loads, help="measure this one alone, in this process")
    parser.add_argument("--model", help="the folder of its weights")
    options = parser.parse_args()
    repeats = 1 if options.quick else 5
    if options.case:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(Case(**options.case), options.model, options.device, repeats)))
        return
    start(options)
    flags = ["--device", options.device, "--threads", str(options.threads)] + ["--quick"] * options.quick
    results: list[dict[str, Any]] = []
    for name in dict.fromkeys(case.size for case in CASES[options.device]):
        with tempfile.TemporaryDirectory() as folder:
            write_model(name, folder, options.device)
            if options.device == "cuda":
                torch.cuda.empty_cache()  # the cases want all of it
            for case in CASES[options.device]:
                if case.size == name:
                    results.append(vars(case) | in_its_own_process(case, folder, flags, options.device))
    keys = [*vars(Case("")), "seconds", "tokens_per_second", "tflops", "peak_gib", "mfu", "error"]
    table(keys, [[row.get(key, "") for key in keys] for row in results])
    seconds = {(row["size"], row["offload"], row["zero_stage"], row["plain"]): row.get("seconds") for row in results}
    speedup = {
        size: plain_seconds / packed_seconds
        for (size, *rest, plain), plain_seconds in seconds.items()
        if plain and plain_seconds and (packed_seconds := seconds[(size, *rest, False)])
    }
    finish({"speedup": speedup, "cases": results})


if __name__ == "__main__":
    main()
