"""Small random Qwen-VL models without a processor, and groups made for them without images or tokenizer."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from tests.unit.groups import ids
from visurf_ray.groups import Example, Group, Prompt, Response, Source, TokenSpan

TEXT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
IMAGE, VIDEO, VISION_START, VISION_END = 290, 291, 292, 293
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": True,
}


QWEN3_VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 16,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}


def configuration(architecture: str, text: dict[str, Any] = TEXT, ids: dict[str, Any] = IDS) -> Any:
    if architecture == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
        return Qwen2VLConfig(text_config=text | {"rope_parameters": MROPE}, vision_config=vision, **ids)
    if architecture == "qwen2_5_vl":
        vision = {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "window_size": 56,  # 2×2 merged tokens: pictures below have several windows
            "fullatt_block_indexes": [1],
        }
        return Qwen2_5_VLConfig(text_config=text | {"rope_parameters": MROPE}, vision_config=vision, **ids)
    text = text | {"head_dim": 32, "rope_parameters": MROPE | {"mrope_interleaved": True}}
    return Qwen3VLConfig(text_config=text, vision_config=QWEN3_VISION, **ids)


ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def make_model(architecture: str, folder, **changes: Any) -> str:
    """Write a model with weights three times the usual, so that pictures matter; returns its folder."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(configuration(architecture, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    return str(folder)


def make_groups(model: Any) -> list[Group]:
    """Three groups: of one picture and of two, prompts and responses of many lengths, with and without a label."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, 280, (count,), generator=generator).tolist()

    vision = model.config.vision_config
    channels = 3 * vision.temporal_patch_size * vision.patch_size**2
    groups = []
    plans = (([(6, 8)], [9, 1, 5], True), ([(4, 4), (8, 6)], [2, 7, 7, 12], True), ([(4, 8)], [3], False))
    for number, (grids, lengths, has_label) in enumerate(plans):
        ids = tokens(3)
        for height, width in grids:
            ids += [VISION_START, *[IMAGE] * (height * width // 4), VISION_END]
        ids += tokens(4 + number)
        patches = sum(height * width for height, width in grids)
        features = {
            "mm_token_type_ids": torch.tensor([[int(token == IMAGE) for token in ids]]),
            "pixel_values": torch.randn(patches, channels, generator=generator),
            "image_grid_thw": torch.tensor([[1, height, width] for height, width in grids]),
        }
        responses = [
            Response(Source.ROLLOUT, "", TokenSpan.of(tokens(length), [-1.0] * length), advantage=float(index) - 1.5)
            for index, length in enumerate(lengths)
        ]
        if has_label:
            responses.append(Response(Source.LABEL, "", TokenSpan.of(tokens(6)), advantage=2.0 * number))
        groups.append(
            Group(Example(f"group-{number}", "", "[]", Prompt([], ids, features=features), (84, 84)), responses)
        )
    return groups


def plain_logprobs(model: Any, group: Group, *, banned: Sequence[int] = (), temperature: float = 1.0) -> torch.Tensor:
    """One full row for each response, pictures encoded anew, positions computed by the model itself."""
    found = []
    prompt = group.example.prompt.expanded_ids
    for response in group.responses:
        answer = ids(response)
        row = torch.tensor([[*prompt, *answer]])
        features = {  # those of the prompt's tokens are 0 for the response's
            name: torch.cat([value, torch.zeros(1, len(answer), dtype=value.dtype)], dim=1)
            if name in ("mm_token_type_ids", "token_type_ids")
            else value
            for name, value in group.example.prompt.features.items()
        }
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, **features).logits[
            0, len(prompt) - 1 : -1
        ]
        logits[:, list(banned)] -= 100.0
        logprobs = (logits / temperature).log_softmax(-1)
        found.append(logprobs[torch.arange(len(answer)), torch.tensor(answer)])
    return torch.cat(found)
