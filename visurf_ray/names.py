"""Registries by name: tasks and rewards are loaded when they are asked for, and a misspelt name is answered."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from visurf_ray.errors import UserError


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest known name, or an empty string when nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


def load(kind: str, name: str, registry: Mapping[str, str]) -> Any:
    """The object that `registry[name]` names as `module:attribute`.

    Raises UserError for an unknown name, with the nearest known one.
    """
    if name not in registry:
        raise UserError(f"unknown {kind} {name!r}.{nearest(name, registry)} Known: {', '.join(sorted(registry))}")
    module, attribute = registry[name].split(":")
    return getattr(importlib.import_module(module), attribute)
