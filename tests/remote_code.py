"""A model whose files come with code: the miniature in a family of its own."""

import json
import shutil
from pathlib import Path

from visurf_ray.miniature.base_model import BASE_MODEL

_CODE = {
    "configuration_own.py": """
from transformers import Qwen2_5_VLConfig

class OwnConfig(Qwen2_5_VLConfig):
    model_type = "own_vl"
""",
    "modeling_own.py": """
from transformers import Qwen2_5_VLForConditionalGeneration

from .configuration_own import OwnConfig

class OwnForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    config_class = OwnConfig
""",
    "processing_own.py": """
from transformers import Qwen2_5_VLProcessor

class OwnProcessor(Qwen2_5_VLProcessor):
    pass
""",
}
_CLASSES = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForImageTextToText": "modeling_own.OwnForConditionalGeneration",
    "AutoProcessor": "processing_own.OwnProcessor",
}


def save_model_with_code(folder: Path) -> Path:
    """Write the model to a new folder. Each file of code notes in the folder `ran` beside it that it has been run."""
    shutil.copytree(BASE_MODEL, folder)
    ran = folder.parent / "ran"
    ran.mkdir()
    for name, code in _CODE.items():
        (folder / name).write_text(f"open({str(ran / name)!r}, 'w').close()\n{code}")
    for name, changes in (
        ("config.json", {"model_type": "own_vl", "auto_map": _CLASSES}),
        ("processor_config.json", {"processor_class": "OwnProcessor", "auto_map": _CLASSES}),
        ("tokenizer_config.json", {"processor_class": "OwnProcessor"}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))
    return folder
