"""Groups in files, with all that the learner gets of them: a folder of JSON and safetensors."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visurf_ray.aliases import Fetch, Json, Reference
from visurf_ray.groups import Coordinates, Example, Group, Prompt, Response, Source, TokenSpan

_FILE = "groups.json"  # what is no tensor; the tensors of each group are in a file of its own


def write_groups(groups: Sequence[Group], folder: Path, fetch: Fetch) -> None:
    """Write groups into an existing folder, one after the other. Images are left out: the learner gets features.

    Args:
        fetch: resolves references to features and to `Tokens`.
    """
    stored = cache(fetch)  # the rollouts of a group share one store
    plain = []
    for number, group in enumerate(groups):
        prompts = _prompts(group.example.prompt)
        tensors: dict[str, Tensor] = {}
        for index, prompt in enumerate(prompts):
            tensors |= {f"{index}.features.{name}": value for name, value in fetch(prompt.features).items()}
        for index, response in enumerate(group.responses):
            tokens = response.tokens.resolve(stored)
            tensors[f"{index}.ids"] = torch.tensor(tokens.ids)
            if tokens.sampler_logprobs is not None:
                tensors[f"{index}.sampler_logprobs"] = torch.tensor(tokens.sampler_logprobs)
        # Copies, as the file may not have views of one tensor.
        save_file(
            {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()},
            folder / _name(number),
        )
        plain.append(
            {
                "example": _values(group.example, without="prompt"),
                "prompts": [{"token_ids": each.token_ids, "expanded_ids": each.expanded_ids} for each in prompts],
                "responses": [_values(response, without="tokens") for response in group.responses],
            }
        )
    (folder / _FILE).write_text(json.dumps(plain), encoding="utf-8")


def read_groups(folder: Path, put: Callable[[object], Reference]) -> list[Group]:
    """Return the groups that `write_groups` has written.

    Args:
        put: stores features, and returns a reference; in a cluster, `ray.put`.

    Raises:
        OSError, ValueError, KeyError, TypeError: the folder does not have them.
    """
    plain = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return [_group(entry, load_file(folder / _name(number)), put) for number, entry in enumerate(plain)]


def _group(plain: Json, tensors: dict[str, Tensor], put: Callable[[object], Reference]) -> Group:
    stand_in = None
    for index, ids in reversed(list(enumerate(plain["prompts"]))):
        start = f"{index}.features."
        features = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        stand_in = Prompt(**ids, features=put(features), stand_in=stand_in)
    assert stand_in, "a group has a prompt"
    example = plain["example"]
    example |= {"size": tuple(example["size"]), "prompt": stand_in}
    example |= {name: Coordinates(example[name]) for name in ("answered", "compared")}
    responses = []
    for index, response in enumerate(plain["responses"]):
        logprobs = tensors.get(f"{index}.sampler_logprobs")
        span = TokenSpan.of(tensors[f"{index}.ids"].tolist(), None if logprobs is None else logprobs.tolist())
        responses.append(Response(**response | {"source": Source(response["source"]), "tokens": span}))
    return Group(Example(**example), responses)


def _prompts(prompt: Prompt) -> list[Prompt]:
    """Return a prompt, and its stand-in if it has one."""
    return [prompt, *_prompts(prompt.stand_in)] if prompt.stand_in else [prompt]


def _values(value: Example | Response, *, without: str) -> dict[str, Json]:
    return {field.name: getattr(value, field.name) for field in fields(value) if field.name != without}


def _name(number: int) -> str:
    return f"group_{number:05d}.safetensors"
