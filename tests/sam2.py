"""A SAM2 of 0.1 M random weights, in a folder as transformers saves it."""

from pathlib import Path

SIDE = 128  # pixels of the image that the model sees


def save_sam2(folder: Path) -> Path:
    import torch
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    backbone = {
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
        "fpn_hidden_size": 32,
    }
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        initializer_range=0.2,  # masks that depend on the prompt
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam2Model(config)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    Sam2Processor(Sam2ImageProcessor(size=size)).save_pretrained(folder)
    return folder
