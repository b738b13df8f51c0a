"""Look-up of names and of a model's files: messages name what is missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, LlavaConfig, MistralConfig

from visurf_ray.aliases import Json
from visurf_ray.checks import check
from visurf_ray.config.load import load_config
from visurf_ray.config.schema import ModelConfig, ModelSource
from visurf_ray.errors import UserError
from visurf_ray.models import (
    MINIATURE,
    attends_causally,
    banned_token_ids,
    check_model,
    load_processor,
    model_config,
    resolve_model,
)
from visurf_ray.names import load, nearest

REGISTRY = {"pairs": "itertools:pairwise", "path": "pathlib:Path"}


def test_the_nearest_name_is_offered_or_none():
    assert nearest("groundin", ["miniature", "grounding"]) == " Did you mean 'grounding'?"
    assert nearest("xyz", ["miniature", "grounding"]) == ""
    assert nearest("a", []) == ""


def test_objects_are_loaded_by_name():
    assert load("thing", "path", REGISTRY) is Path


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(UserError) as error:
        load("thing", "pahts", REGISTRY)
    assert str(error.value) == "unknown thing 'pahts'. Did you mean 'path'? Known: pairs, path"


# Models


@pytest.fixture
def model_folder(tmp_path):
    """A folder with these files in it, empty ones."""

    def make(*files: str) -> Path:
        for name in files:
            if name.endswith(".safetensors"):
                save_file({}, tmp_path / name)
            else:
                (tmp_path / name).write_text("{}")
        return tmp_path

    return make


@pytest.mark.parametrize("processor", ["preprocessor_config.json", "processor_config.json"])
def test_a_whole_folder_is_taken(model_folder, processor):
    folder = model_folder("config.json", processor, "tokenizer.json", "tokenizer_config.json")
    assert resolve_model(str(folder)) == str(folder)


def test_the_miniature_is_a_folder_of_the_package():
    assert Path(resolve_model("miniature")).parts[-3:] == ("visurf_ray", "miniature", "base")


def test_a_hub_id_is_left_to_the_hub():
    assert resolve_model("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_what_is_neither_a_folder_nor_on_the_hub_is_named():
    """A misspelt folder `a/b` looks like a hub id."""
    config = load_config(["model.path=outputs/exprot"]).model
    with pytest.raises(
        UserError, match=r"model\.path=outputs/exprot: there is no such folder, and no such model on the"
    ):
        load_processor(config)


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_missing_folder_is_named(path):
    with pytest.raises(UserError, match=r"model\.path=.*no such folder") as error:
        resolve_model(path)
    assert path in str(error.value)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ((), "config.json"),
        (("preprocessor_config.json", "tokenizer.json"), "no config.json"),
        (("config.json",), "no processor"),
        (("config.json", "tokenizer.json", "tokenizer_config.json"), "no processor"),
        (("config.json", "preprocessor_config.json"), "tokenizer"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_named_with_what_it_lacks(model_folder, files, complaint):
    folder = model_folder(*files)
    with pytest.raises(UserError) as error:
        resolve_model(str(folder), "checkpoint")
    assert f"checkpoint={folder}: " in str(error.value) and complaint in str(error.value)


WHOLE = ("config.json", "preprocessor_config.json", "tokenizer.json")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_needs_its_weights(model_folder, weights):
    folder = model_folder(*WHOLE)
    with pytest.raises(UserError, match=r"model\.path=.*: the folder has no weights \(model\.safetensors or"):
        check_model(str(folder))
    model_folder(weights)
    check_model(str(folder))


def test_every_file_of_the_weights_index_must_be_there(model_folder):
    folder = model_folder(*WHOLE, "model-1.safetensors")
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match=r"the folder has no model-2\.safetensors"):
        check_model(str(folder))
    model_folder("model-2.safetensors")
    check_model(str(folder))


def test_a_model_that_is_neither_here_nor_to_be_fetched_is_named(tmp_path):
    """In a process of its own: the hub's client reads its environment once."""
    code = "from visurf_ray.models import check_model; check_model('owner/no-such-model')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    message = done.stderr.splitlines()[-1]
    assert "UserError: model.path=owner/no-such-model: the cache" in message and str(tmp_path) in message
    assert "HF_HUB_OFFLINE" in message and "hf download owner/no-such-model" in message


def test_a_processor_that_cannot_be_read_is_named_in_one_line(model_folder):
    folder = model_folder(*WHOLE)
    with pytest.raises(UserError, match=r"model\.path=.*: no processor \(") as error:
        load_processor(ModelConfig(path=str(folder), max_pixels=None))
    assert "\n" not in str(error.value)


@pytest.fixture
def edited(tmp_path):
    """The miniature's folder, with other values in its config.json and without some files."""

    def make(*without: str, **changes: Json) -> str:
        folder = tmp_path / "edited"
        shutil.copytree(MINIATURE, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        for name in without:
            (folder / name).unlink()
        return str(folder)

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "internvl_chat"},
        {"model_type": "new"},
        {"model_type": ""},
        {"model_type": "paligemma"},  # whose configuration fails on this model's values
    ],
    ids=lambda changes: changes["model_type"],
)
def test_a_family_that_transformers_does_not_have_is_refused(edited, changes):
    path = edited(**changes)
    with pytest.raises(UserError, match=r"transformers cannot read the model's config\.json .*name a model of a fam"):
        check(load_config([f"model.path={path}"]))


def test_a_list_in_place_of_a_configuration_is_refused(edited):
    path = edited()
    Path(path, "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"cannot read the model's config\.json"):
        model_config(ModelSource(path))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("nested", [False, True])
def test_quantised_weights_are_refused_and_an_empty_setting_is_none(edited, key, nested):
    text = json.loads((MINIATURE / "config.json").read_text())["text_config"]
    found = {key: {"quant_method": "awq", "bits": 4}}
    path = edited(**({"text_config": text | found} if nested else found))
    with pytest.raises(UserError, match="quantised weights cannot be trained"):
        check(load_config([f"model.path={path}"]))
    config = json.loads(Path(path, "config.json").read_text())
    (config["text_config"] if nested else config)[key] = None
    Path(path, "config.json").write_text(json.dumps(config))
    check(load_config([f"model.path={path}", f"output_dir={path}/run"]))


def test_a_model_without_a_chat_template_is_refused(edited):
    with pytest.raises(UserError, match="no chat template"):
        load_processor(ModelConfig(path=edited("chat_template.jinja"), max_pixels=None))


@pytest.mark.parametrize("content", [None, b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 7\n", b""])
def test_weights_that_are_not_whole_are_refused(edited, content):
    path = edited()
    weights = Path(path, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] if content is None else content)
    with pytest.raises(UserError, match=r"model\.safetensors is no whole file of weights"):
        check_model(path)


def test_vision_placeholders_are_banned_and_the_end_of_turn_is_not(processor):
    tokenizer = processor.tokenizer
    banned = set(tokenizer.convert_ids_to_tokens(banned_token_ids(processor)))
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"} <= banned
    assert tokenizer.eos_token not in banned and "<think>" not in banned


@pytest.mark.parametrize("pixels", [1, 28 * 28 - 1])
def test_images_below_the_processors_least_are_refused(pixels):
    with pytest.raises(UserError, match=f"model.max_pixels={pixels} is below the least .* 784 pixels"):
        load_processor(ModelConfig(path="miniature", max_pixels=pixels))
    load_processor(ModelConfig(path="miniature", max_pixels=28 * 28))


def test_a_stored_processor_keeps_the_bound_that_it_was_loaded_with(tmp_path):
    load_processor(ModelConfig(path="miniature", max_pixels=56 * 56)).save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    (grid,) = again.image_processor(Image.new("RGB", (560, 560)))["image_grid_thw"].tolist()
    assert grid == [1, 4, 4]
    assert load_processor(ModelConfig(path="miniature", max_pixels=None)).image_processor.size["longest_edge"] > 56 * 56


@pytest.mark.parametrize(("window", "causal"), [(None, True), (4096, False)])
def test_a_sliding_window_of_all_layers_is_no_causal_attention(model_folder, window, causal):
    """Mistral's configuration has a window and no kinds of layers; packed rows would let it reach other responses."""
    folder = model_folder(*WHOLE)
    text = MistralConfig(num_hidden_layers=2, sliding_window=window)
    LlavaConfig(text_config=text).save_pretrained(folder)
    assert attends_causally(ModelSource(str(folder))) is causal
