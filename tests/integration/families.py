"""A small random model of each family that this project names, as a whole folder with a processor of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.integration.architectures import MROPE, QWEN3_VISION, configuration
from visurf_ray.models import MINIATURE
from visurf_ray.weights.stored import save_model

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
PLAIN_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PLAIN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class _Family:
    """What the folders below are made from: a tokenizer with further tokens, and the ids of those."""

    def __init__(self, words: Sequence[str] = (), **tokens: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(MINIATURE, extra_special_tokens=tokens)
        self.tokenizer.add_tokens(list(words))
        self.text = TEXT | {
            "vocab_size": len(self.tokenizer),
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
            "bos_token_id": self.tokenizer.pad_token_id,
        }

    def id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def template(self, image: str) -> str:
        return PLAIN_TEMPLATE.replace("IMAGE", image)


def _qwen_ids(family: _Family) -> dict[str, Any]:
    tokens = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    tokens |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return {f"{name}_token_id": family.id(token) for name, token in tokens.items()} | {"tie_word_embeddings": True}


def _qwen_processor(family: _Family, kind: Any, video: Any, patch: int) -> Any:
    pixels = {"patch_size": patch, "min_pixels": (2 * patch) ** 2, "max_pixels": (2 * patch) ** 2 * 64}
    return kind(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=family.tokenizer,
        video_processor=video(**pixels),
        chat_template=family.template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def qwen2_vl() -> tuple[Any, Any]:
    family = _Family()
    config = configuration("qwen2_vl", family.text, _qwen_ids(family))
    return config, _qwen_processor(family, Qwen2VLProcessor, Qwen2VLVideoProcessor, 14)


def qwen2_5_vl() -> tuple[Any, Any]:
    family = _Family()
    config = configuration("qwen2_5_vl", family.text, _qwen_ids(family))
    return config, _qwen_processor(family, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 14)


def qwen3_vl() -> tuple[Any, Any]:
    family = _Family()
    config = configuration("qwen3_vl", family.text, _qwen_ids(family))
    return config, _qwen_processor(family, Qwen3VLProcessor, Qwen3VLVideoProcessor, 16)


def qwen3_vl_moe() -> tuple[Any, Any]:
    family = _Family()
    text = family.text | {
        "rope_parameters": MROPE | {"mrope_interleaved": True},
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
    }
    config = Qwen3VLMoeConfig(text_config=text, vision_config=QWEN3_VISION, **_qwen_ids(family))
    return config, _qwen_processor(family, Qwen3VLProcessor, Qwen3VLVideoProcessor, 16)


def qwen3_5() -> tuple[Any, Any]:
    family = _Family()
    text = family.text | {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "rope_parameters": MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 1.0},
    }
    vision = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
    config = Qwen3_5Config(text_config=text, vision_config=vision, **_qwen_ids(family))
    return config, _qwen_processor(family, Qwen3VLProcessor, Qwen3VLVideoProcessor, 16)


def internvl() -> tuple[Any, Any]:
    family = _Family(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    vision = PLAIN_VISION | {"image_size": [56, 56], "patch_size": [14, 14]}
    config = InternVLConfig(
        text_config=family.text | {"model_type": "qwen2"},
        vision_config=vision,
        image_token_id=family.id("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    size = {"height": 56, "width": 56}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=family.tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=family.template("<IMG_CONTEXT>"),
    )
    return config, processor


def gemma3() -> tuple[Any, Any]:
    family = _Family(
        ["\n", "\n\n", "\n\n\n", "\n\n\n\n"],  # of Gemma's vocabulary; vLLM joins those around images
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    text = family.text | {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 512,
        "query_pre_attn_scalar": 32,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=PLAIN_VISION | {"image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        boi_token_index=family.id("<start_of_image>"),
        eoi_token_index=family.id("<end_of_image>"),
        image_token_index=family.id("<image_soft_token>"),
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=family.tokenizer,
        image_seq_length=4,
        chat_template=family.template("<start_of_image>"),
    )
    return config, processor


def smolvlm() -> tuple[Any, Any]:
    family = _Family(
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    config = SmolVLMConfig(
        text_config=family.text | {"model_type": "llama"},
        vision_config=PLAIN_VISION | {"image_size": 56, "patch_size": 14},
        image_token_id=family.id("<image>"),
        scale_factor=2,
        pad_token_id=family.tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        tokenizer=family.tokenizer,
        video_processor=SmolVLMVideoProcessor(**sizes),
        image_seq_len=4,
        chat_template=family.template("<image>"),
    )
    return config, processor


def llava_onevision() -> tuple[Any, Any]:
    family = _Family(image_token="<image>", video_token="<video>")
    pinpoints = [[56, 56], [56, 112], [112, 56], [112, 112]]
    config = LlavaOnevisionConfig(
        text_config=family.text | {"model_type": "qwen2"},
        vision_config=PLAIN_VISION
        | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        image_token_index=family.id("<image>"),
        video_token_index=family.id("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints),
        tokenizer=family.tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=family.template("<image>"),
    )
    return config, processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make
    for make in (
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_vl_moe,
        qwen3_5,
        internvl,
        gemma3,
        smolvlm,
        llava_onevision,
    )
}


def make_family(name: str, folder: Any) -> str:
    """Write a model with weights three times the usual, so that pictures matter; returns its folder."""
    config, processor = FAMILIES[name]()
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    save_model(model, model.named_parameters(), Path(folder))
    if config.vision_config.model_type == "siglip_vision_model":  # in published models the tower has one more level
        path = Path(folder) / "model.safetensors"
        level = ("vision_tower.", "vision_tower.vision_model.")
        weights = {name.replace(*level): weight for name, weight in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    return str(folder)
