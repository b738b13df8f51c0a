"""Finds and checks the files of a model, and loads its processor. Says what the model's family needs."""

import json
from pathlib import Path

from visurf_ray.aliases import HFConfig, Processor
from visurf_ray.config.choices import CoordinateUnit
from visurf_ray.config.schema import ModelConfig, ModelSource
from visurf_ray.errors import UserError, short
from visurf_ray.groups import Coordinates

MINIATURE = Path(__file__).parent / "miniature" / "base"


def resolve_model(path: str, key: str = "model.path") -> str:
    """Return the folder or hub id to load a model from.

    Args:
        path: `miniature`, a folder, or a hub id. A path `a/b` that is no folder is taken for a hub id; the hub is
            not asked whether it exists.
        key: the configuration key that the user set, for messages.

    Raises:
        UserError: the folder does not exist, or lacks files of a model.
    """
    if path == "miniature":
        return str(MINIATURE)
    folder = Path(path).expanduser()
    if not folder.exists():
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise UserError(f"{key}={path}: there is no such folder, and it is not a hub id (owner/name)")
        return path
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}={path}: the folder has no config.json")
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise UserError(
            f"{key}={path}: the folder has no processor (preprocessor_config.json, tokenizer files): "
            "copy them from the model that it was trained from"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise UserError(f"{key}={path}: the folder has no tokenizer: copy it from the model that it was trained from")
    return str(folder)


def resolved(model: ModelSource) -> ModelSource:
    """Return a source whose path is what `resolve_model` returns; raises UserError like it."""
    return ModelSource(resolve_model(model.path), model.trust_remote_code)


def model_config(model: ModelSource) -> HFConfig:
    """Return the model's configuration.

    Raises:
        UserError: there is none, transformers does not know the model's family, or it needs code that is not trusted.
    """
    from transformers import AutoConfig

    path, found = model.path, resolve_model(model.path)
    try:
        return AutoConfig.from_pretrained(found, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # each family's configuration raises what it likes
        _refuse_code(path, error)
        reason = short(" ".join(str(error).split()), 150)
        if isinstance(error, OSError):
            raise UserError(f"model.path={path}: no model ({reason})") from error
        raise UserError(
            f"model.path={path}: transformers cannot read the model's config.json ({reason}): name a model of a family "
            "that transformers has. For InternVL, these are the models whose names end in -hf"
        ) from error


def _refuse_code(path: str, error: Exception) -> None:
    """Raise UserError if `error` is transformers' refusal to run code that comes with a model."""
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        raise UserError(
            f"model.path={path}: the model needs code of its own, which is run only if you trust it: read it, and set "
            "model.trust_remote_code=true, or name a model of a family that transformers has. For InternVL, these are "
            "the models whose names end in -hf"
        ) from error


def check_model(path: str) -> None:
    """Check the files of a model without asking the hub.

    A folder must have all files of weights, and those in safetensors must be whole. A hub id is checked only if
    HF_HUB_OFFLINE forbids fetching: then the cache must have all files of weights.

    Raises:
        UserError: files are missing or incomplete.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    found = resolve_model(path)
    if Path(found).is_dir():
        if missing := _missing_weights(Path(found)):
            raise UserError(f"model.path={path}: the folder has no {missing}")
        _check_weights(Path(found), path)
        return
    try:
        missing = _missing_weights(Path(snapshot_download(found, local_files_only=True)))
    except LocalEntryNotFoundError:
        missing = "file of it"
    if missing and constants.HF_HUB_OFFLINE:
        raise UserError(
            f"model.path={path}: the cache {constants.HF_HUB_CACHE} has no {missing}, and HF_HUB_OFFLINE "
            f"forbids fetching it: run `hf download {path}` where the hub can be reached, or name a local folder"
        )


_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def _missing_weights(folder: Path) -> str:
    """Return the name of the first missing file of weights, or an empty string if none is missing."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return next((name for name in names if not (folder / name).is_file()), "")
        if (folder / name).is_file():
            return ""
    return f"weights ({' or '.join(_WEIGHTS)}, or the index of several files)"


def _check_weights(folder: Path, path: str) -> None:
    """Raise UserError if a file in safetensors is shorter than its header says, or is a pointer of Git LFS."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, "pt"):  # reads the header alone
                continue
        except SafetensorError as error:
            raise UserError(
                f"model.path={path}: {file.name} is no whole file of weights ({error}; it has "
                f"{file.stat().st_size:,} bytes): fetch it again; with Git, by `git lfs pull`"
            ) from error


# Vision tokens of the Qwen-VL families, around images and videos: their processors have no attribute for them.
_AROUND_IMAGES = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
# Attributes of processors that hold ids of vision tokens, beside image_token_ids and video_token_ids.
_ID_ATTRIBUTES = ("image_token_id", "video_token_id", "start_image_token_id", "end_image_token_id")
BANNED_BIAS = -100.0


def banned_token_ids(processor: Processor) -> list[int]:
    """Return the ids of vision tokens, which a response must not contain.

    A placeholder in a response breaks the learner ("image features and image tokens do not match"). Sampler and learner
    both exclude these tokens by adding BANNED_BIAS to their logits.
    """
    vocabulary = processor.tokenizer.get_vocab()
    around = [vocabulary[token] for token in _AROUND_IMAGES if token in vocabulary]
    attributes = [getattr(processor, name, None) for name in _ID_ATTRIBUTES]
    found = {*around, *attributes, *processor.image_token_ids, *processor.video_token_ids}
    return sorted(token for token in found if token is not None)


def attends_causally(model: ModelSource) -> bool:
    """Return whether each layer of the language model attends to all tokens before and to nothing else.

    Layers with linear or sliding-window attention do not. The configuration lists the kinds in `layer_types`; without
    it, all layers are of one kind.
    """
    text = model_config(model).get_text_config()
    if types := getattr(text, "layer_types", None):
        return set(types) == {"full_attention"}
    return getattr(text, "sliding_window", None) is None


_ANSWER_IN_PIXELS = ("qwen2_5_vl",)  # families; others answer in thousandths, or have learnt no unit


def coordinates_of(config: ModelConfig) -> Coordinates:
    """Return the unit in which the model gives coordinates.

    Raises:
        UserError: there is no model at `config.path`.
    """
    if config.coordinates is not CoordinateUnit.auto:
        return Coordinates(config.coordinates.value)
    family = model_config(config).model_type
    return Coordinates.pixels if family in _ANSWER_IN_PIXELS else Coordinates.thousandths


def has_pixel_bounds(processor: Processor) -> bool:
    """Return whether a processor scales images between two numbers of pixels, as those of the Qwen-VL families do."""
    return hasattr(processor.image_processor, "merge_size")


def load_processor(config: ModelConfig) -> Processor:
    """Load the model's processor, its image size bounded by `config.max_pixels` if it takes such a bound.

    Raises:
        UserError: there is no model at `config.path`, it has no processor or no chat template, it needs code that is
            not trusted (`config.trust_remote_code`), or `config.max_pixels` is too small for it.
    """
    from transformers import AutoProcessor

    path = resolve_model(config.path)
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # code that comes with a model raises what it likes
        _refuse_code(config.path, error)
        reason = " ".join(str(error).split())
        if Path(path).is_dir():
            raise UserError(f"model.path={config.path}: no processor ({reason})") from error
        raise UserError(
            f"model.path={config.path}: there is no such folder, and no such model on the Hugging Face hub ({reason})"
        ) from error
    if processor.chat_template is None:
        raise UserError(
            f"model.path={config.path}: the model has no chat template (chat_template.jinja): copy it from the model "
            "that it was trained from, or name one that was trained on conversations"
        )
    if config.max_pixels is None or not has_pixel_bounds(processor):
        return processor
    size = processor.image_processor.size
    least = size["shortest_edge"]  # the least number of pixels of an image; longest_edge is the largest number
    if config.max_pixels < least:
        token = (processor.image_processor.patch_size * processor.image_processor.merge_size) ** 2
        raise UserError(
            f"model.max_pixels={config.max_pixels} is below the least of this model's processor, {least} pixels. It "
            f"counts pixels, not patches or visual tokens, of which each has {token} pixels: for 1280 visual tokens "
            f"write model.max_pixels={1280 * token}, or null for the processor's own limit"
        )
    size["longest_edge"] = config.max_pixels
    return processor
