"""Registries by name: tasks and rewards are loaded when they are asked for, and a misspelt name is answered."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from visurf_ray.errors import UserError


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest known name, or an empty string where none is near.

    An abbreviation of a name's last part is near: `learner.lr` of `learner.learning_rate`.
    """
    known = list(known)
    section, _, last = name.rpartition(".")
    abbreviated = [other for other in known if last == _initials(other.rpartition(".")[2])]
    candidates = [other for other in abbreviated if other.rpartition(".")[0] == section] or (
        difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    return f" Did you mean {candidates[0]!r}?" if candidates else ""


def _initials(name: str) -> str:
    """`lr` of `learning_rate`; empty for a name of one word."""
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def load(kind: str, name: str, registry: Mapping[str, str]) -> Any:
    """The object that `registry[name]` names as `module:attribute`.

    Raises UserError for an unknown name, with the nearest known one.
    """
    if name not in registry:
        raise UserError(f"unknown {kind} {name!r}.{nearest(name, registry)} Known: {', '.join(sorted(registry))}")
    module, attribute = registry[name].split(":")
    return getattr(importlib.import_module(module), attribute)
