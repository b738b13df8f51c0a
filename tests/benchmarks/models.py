"""Models with random weights, and groups of random tokens, in the sizes that benchmarks ask for."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from visurf_ray.groups import Example, Group, Prompt, Response, Source, TokenSpan
from visurf_ray.miniature.base_model import BASE_MODEL


def write_model(
    folder: Path,
    *,
    hidden: int,
    layers: int,
    heads: int,
    vision_hidden: int = 256,
    vision_depth: int = 8,
    max_pixels: int = 28 * 28 * 64,
    max_length: int = 4096,
    mean_response: float | None = None,
) -> int:
    """Save a model with the miniature's tokenizer, and its processor; returns how many parameters it has.

    Args:
        hidden: width of the language model; its inner layers are three times as wide, and half of its heads hold keys.
        mean_response: tokens after which a response ends on average, each with the same probability. None: a response
            practically never ends.
    """
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(BASE_MODEL)
    processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": max_pixels}
    processor.tokenizer.model_max_length = max_length
    base = Qwen2_5_VLConfig.from_pretrained(BASE_MODEL).to_dict()
    part = hidden // heads // 16  # a head turns pairs of numbers: by time, height and width
    text = base["text_config"] | {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "layer_types": None,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": max_length,
        "rope_parameters": base["text_config"]["rope_parameters"] | {"mrope_section": [2 * part, 3 * part, 3 * part]},
    }
    vision = base["vision_config"] | {
        "depth": vision_depth,
        "hidden_size": vision_hidden,
        "intermediate_size": 2 * vision_hidden,
        "num_heads": 4,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [vision_depth - 1],
    }
    tied = {"tie_word_embeddings": mean_response is None}
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(**base | tied | {"text_config": text | tied, "vision_config": vision})
    )
    if mean_response:
        _end_responses(model, processor.tokenizer.eos_token_id, mean_response)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


@torch.no_grad()
def _end_responses(model: Qwen2_5_VLForConditionalGeneration, end: int, mean_response: float) -> None:
    """Give the token `end` the probability 1 / mean_response after every token.

    The first value of all embeddings is the same and large, so that it hardly varies in the last hidden states; the
    logit of `end` is made of it alone.
    """
    model.get_input_embeddings().weight[:, 0] = 1.0
    ids = torch.randint(0, 400, (8, 64), generator=torch.Generator().manual_seed(0))
    hidden = model.model.language_model(inputs_embeds=model.get_input_embeddings()(ids)).last_hidden_state
    others = (hidden @ model.lm_head.weight.T).logsumexp(-1).mean()
    model.lm_head.weight[end] = 0.0
    model.lm_head.weight[end, 0] = (others - math.log(mean_response - 1)) / hidden[..., 0].mean()


def random_group(prompt: int, side: int, lengths: Sequence[int], *, special: tuple[int, int, int], seed: int) -> Group:
    """Responses of `lengths` tokens to a prompt of `prompt`, side × side of them visual.

    special: the tokens for an image, and before and after it; other tokens are below 1,600. Advantages add up to 0.
    """
    generator = torch.Generator().manual_seed(seed)
    image, begin, end = special
    visual = side * side
    text = torch.randint(0, 1600, (prompt - visual - 2,), generator=generator).tolist()
    ids = [*text[:4], begin, *[image] * visual, end, *text[4:]]
    features = {
        "mm_token_type_ids": torch.tensor([[int(token == image) for token in ids]]),
        "pixel_values": torch.randn(4 * visual, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]]),
    }
    sampled = [
        Response(
            Source.ROLLOUT,
            "",
            TokenSpan.of(torch.randint(0, 1600, (length,), generator=generator).tolist()),
            advantage=number - (len(lengths) - 1) / 2,
        )
        for number, length in enumerate(lengths)
    ]
    return Group(Example("benchmark", "", "[]", Prompt([], ids, features=features), (28 * side, 28 * side)), sampled)
