"""Groups packed into one row, against one row for each response: forward and backward pass of the policy.

    python -m tests.benchmarks.packing [--quick] [--device cuda]

P prompt tokens (its picture's included), R tokens in each of K responses. The limit is the ratio of tokens,
K (P + R) / (P + K R): what packing saves when every token costs the same.
"""

import tempfile
from functools import partial

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.benchmarks.harness import arguments, finish, interleaved, start, table
from tests.benchmarks.models import random_group
from tests.unit.groups import held, ids
from visurf_ray.aliases import HFModel
from visurf_ray.config.schema import Packing
from visurf_ray.groups import Group
from visurf_ray.learner.packing import pack
from visurf_ray.learner.policy import Policy, load_model

IMAGE, START, END = 2040, 2041, 2042
CASES = ((45, 50, 9), (400, 100, 9))


def write_model(folder: str) -> None:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 2048,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 256,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=IMAGE,
        video_token_id=2043,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)


def make_group(prompt: int, response: int, responses: int) -> Group:
    """A group whose picture takes about half of the prompt's tokens."""
    side = max(2, int((prompt / 2) ** 0.5))
    return random_group(prompt, side, response, responses, special=(IMAGE, START, END), seed=0)


def plain_rows(model: HFModel, group: Group, device: str) -> torch.Tensor:
    """All responses as rows of a batch, prompt and picture in each; logits at response positions alone."""
    prompt, count = group.example.prompt.expanded_ids, len(group.responses)
    prompts = torch.tensor(prompt).expand(count, -1)
    answers = torch.stack([torch.as_tensor(ids(response)) for response in group.responses])
    rows = torch.cat([prompts, answers], dim=1).to(device)
    features = group.example.prompt.features
    length = answers.shape[1]
    logits = model(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        mm_token_type_ids=(rows == IMAGE).int(),
        pixel_values=features["pixel_values"].repeat(count, 1).to(device, model.dtype),
        image_grid_thw=features["image_grid_thw"].repeat(count, 1).to(device),
        use_cache=False,
        logits_to_keep=length + 1,
    ).logits[:, :-1]
    return logits.float().log_softmax(-1).gather(-1, rows[:, -length:, None]).flatten()


def measure(folder: str, case: tuple[int, int, int], device: str, repeats: int) -> dict[str, float]:
    group = make_group(*case)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    packings = {"plain": Packing.dense, "split": Packing.split, "dense": Packing.dense}
    models = {
        name: load_model(folder, dtype=dtype, packing=packing, gradient_checkpointing=False).to(device)
        for name, packing in packings.items()
    }
    policies = {packing.name: Policy(models[packing.name], 1.0, (), chunk=512) for packing in Packing}

    def packed(packing: Packing) -> torch.Tensor:
        row = pack(
            [group],
            [[1.0] * len(group.responses)],
            models[packing.name].model.get_rope_index,
            fetch=held,
            image_token_id=IMAGE,
            dtype=dtype,
            packing=packing,
        )
        return policies[packing.name](row.to(torch.device(device)))[0]

    forward = {
        "plain": lambda: plain_rows(models["plain"], group, device),
        "split": lambda: packed(Packing.split),
        "dense": lambda: packed(Packing.dense),
    }
    with torch.no_grad():
        expected = forward["plain"]()
        difference = {name: (forward[name]() - expected).abs().max().item() for name in policies}

    def step(name: str) -> None:
        models[name].zero_grad()
        forward[name]().sum().backward()

    seconds = interleaved({name: partial(step, name) for name in forward}, repeats)
    prompt, response, responses = case
    return {
        "speedup": seconds["plain"] / seconds["split"],
        "speedup_dense": seconds["plain"] / seconds["dense"],
        "token_ratio": responses * (prompt + response) / (prompt + responses * response),
        "max_logprob_diff": max(difference.values()),
        "seconds_plain": seconds["plain"],
        "seconds_split": seconds["split"],
    }


def main() -> None:
    options = arguments(__doc__).parse_args()
    start(options)
    cases = CASES[:1] if options.quick else CASES
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        results = {
            "P={} R={} K={}".format(*case): measure(folder, case, options.device, 2 if options.quick else 7)
            for case in cases
        }
    names = list(next(iter(results.values())))
    table(["case", *names], [[case, *(result[name] for name in names)] for case, result in results.items()])
    finish(results)


if __name__ == "__main__":
    main()
