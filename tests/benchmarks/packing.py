"""Groups packed into one row, against one row for each response: forward and backward pass of the policy.

    python -m tests.benchmarks.packing [--quick] [--device cuda]

Plain rows have the prompt and its picture each, and transformers' own attention. Where responses are equally long they
are a batch, else they are computed one after another, without padding. The limit is the ratio of tokens: what packing
saves when every token costs the same.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.benchmarks.harness import arguments, finish, interleaved, start, table
from tests.benchmarks.models import random_group
from tests.unit.groups import held, ids
from visurf_ray.aliases import HFModel
from visurf_ray.config.schema import ModelSource
from visurf_ray.groups import Group, Response
from visurf_ray.learner.packing import pack_prefix
from visurf_ray.learner.policy import Policy, load_model

IMAGE, START, END = 2040, 2041, 2042


@dataclass(frozen=True)
class Case:
    """A prompt of `prompt` tokens, its picture's included, and responses of `lengths` tokens."""

    name: str
    prompt: int
    lengths: tuple[int, ...]

    @property
    def token_ratio(self) -> float:
        rows = len(self.lengths) * self.prompt + sum(self.lengths)
        return rows / (self.prompt + sum(self.lengths))

    def group(self) -> Group:
        """A group whose picture takes about half of the prompt's tokens."""
        side = max(2, int((self.prompt / 2) ** 0.5))
        return random_group(self.prompt, side, self.lengths, special=(IMAGE, START, END), seed=0)


CASES = (
    Case("even, short", 45, (50,) * 9),
    Case("even", 400, (100,) * 9),
    Case("ragged", 400, (2000, *(100,) * 8)),
)


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


def plain_rows(model: HFModel, group: Group, responses: Sequence[Response], device: str) -> torch.Tensor:
    """Equally long responses as rows of a batch, prompt and picture in each; logits at response positions alone."""
    prompt, count = group.example.prompt.expanded_ids, len(responses)
    prompts = torch.tensor(prompt).expand(count, -1)
    answers = torch.stack([torch.as_tensor(ids(response)) for response in responses])
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


def measure(folder: str, case: Case, device: str, repeats: int) -> dict[str, float | str]:
    group = case.group()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    plain = load_model(ModelSource(folder), dtype=dtype, gradient_checkpointing=False).to(device)
    plain.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    packed = load_model(ModelSource(folder), dtype=dtype, gradient_checkpointing=False).to(device)
    policy = Policy(packed, 1.0, (), chunk=512)
    even = len(set(case.lengths)) == 1
    batches = [group.responses] if even else [[response] for response in group.responses]

    def packed_logprobs() -> torch.Tensor:
        row = pack_prefix([group], [[1.0] * len(group.responses)], packed, fetch=held, dtype=dtype)
        return policy(row.to(torch.device(device)))[0]

    parts: dict[str, list[Callable[[], torch.Tensor]]] = {
        "plain": [partial(plain_rows, plain, group, batch, device) for batch in batches],
        "packed": [packed_logprobs],
    }
    with torch.no_grad():
        expected, found = (torch.cat([part() for part in parts[name]]) for name in ("plain", "packed"))

    def step(name: str) -> None:
        for model in (plain, packed):
            model.zero_grad()
        for part in parts[name]:
            part().sum().backward()

    seconds = interleaved({name: partial(step, name) for name in parts}, repeats)
    return {
        "name": case.name,
        "speedup": seconds["plain"] / seconds["packed"],
        "token_ratio": case.token_ratio,
        "max_logprob_diff": (found - expected).abs().max().item(),
        "seconds_plain": seconds["plain"],
        "seconds_packed": seconds["packed"],
    }


def main() -> None:
    options = arguments(__doc__).parse_args()
    start(options)
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        results = [
            measure(folder, case, options.device, 2 if options.quick else 7)
            for case in (CASES[:1] if options.quick else CASES)
        ]
    table(list(results[0]), [list(result.values()) for result in results])
    finish({"cases": results})


if __name__ == "__main__":
    main()
