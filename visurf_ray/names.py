"""Look-up of tasks and rewards by name; the message for an unknown name suggests the nearest known one."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from visurf_ray.errors import UserError


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or an empty string if none is near.

    These count as near, in this order: other capitals; the initials of a key's last part, in the same section
    (`learner.lr` for `learner.learning_rate`); similar letters; the last part, or its initials, in another section.
    """
    known = list(known)
    section, _, last = name.rpartition(".")
    ends = {other: other.rpartition(".") for other in known}
    abbreviated = [other for other, (_, _, end) in ends.items() if last == _initials(end)]
    candidates = (
        [other for other in known if other.casefold() == name.casefold()]
        or [other for other in abbreviated if ends[other][0] == section]
        or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        or [other for other, (_, _, end) in ends.items() if end == last]
        or abbreviated
    )
    return f" Did you mean {candidates[0]!r}?" if candidates else ""


def _initials(name: str) -> str:
    """Return `lr` for `learning_rate`, and an empty string for a name of one word."""
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def load(kind: str, name: str, registry: Mapping[str, str]) -> Any:
    """Import and return a registered object.

    Args:
        kind: what is looked up, for the message: "task", "reward".
        registry: `module:attribute` by name.

    Raises:
        UserError: the name is not registered; the message lists the known names.
    """
    if name not in registry:
        raise UserError(f"unknown {kind} {name!r}.{nearest(name, registry)} Known: {', '.join(sorted(registry))}")
    module, attribute = registry[name].split(":")
    return getattr(importlib.import_module(module), attribute)
