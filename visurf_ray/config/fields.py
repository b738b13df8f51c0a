"""Fields of the schema, whose metadata say what their values may be, and a walk over a configuration's settings."""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from omegaconf import MISSING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Unset = Any  # what the functions here return: a field without a default, whatever its type is
# int | str | list[str] | None: a union that OmegaConf 2.3 cannot merge while it is missing.
Sources = Any


@dataclass(frozen=True)
class Bounds:
    """What a number must be: at least, at most, above, below; None sets no bound."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None


def within(
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    free: bool = False,
) -> Unset:
    """Return a field that `conf/` must set to a number within these bounds, or to null where its type allows it.

    Args:
        free: as in `free`.
    """
    return field(default=MISSING, metadata={"bounds": Bounds(at_least, at_most, above, below), "free": free})


def free() -> Unset:
    """Return a field that `conf/` must set, and that a resumed run may change: it alters nothing of what is learnt.

    It may alter the speed, the memory, what is written and shown, and the order in which floating-point numbers are
    added. If a section is such a field, all its settings are free; see `schema.is_free`.
    """
    return field(default=MISSING, metadata={"free": True})


@dataclass(frozen=True)
class PathRule:
    """Which texts name a file or a folder, whose path may be relative to the user's folder.

    Attributes:
        hub: where there is no such file or folder, the text is a name on a hub. `:split` may follow the path.
        address: the text may also be the address of a folder, `protocol://…`.
        function: `:function` follows the path of a .py file; other texts name a module.
        words: texts that are no paths.
        ending: of a path; other texts are no paths.
        keys: of a dictionary, those whose values are such texts.
    """

    hub: bool = False
    function: bool = False
    words: tuple[str, ...] = ()
    ending: str = ""
    keys: frozenset[str] = frozenset()
    address: bool = False


def path_field(hub: bool = False, function: bool = False, words: tuple[str, ...] = (), free: bool = False) -> Unset:
    """Return a field that `conf/` must set to a file or folder, or to null where its type allows it; see `PathRule`.

    Args:
        free: as in `free`.
    """
    return field(default=MISSING, metadata={"path": PathRule(hub, function, words), "free": free})


def nullable(declared: Field[object]) -> bool:
    """Return whether a field's type allows null."""
    return declared.type is Sources or type(None) in get_args(declared.type)


class Setting(NamedTuple):
    """A setting of a configuration: its dotted key, the section that holds it, and its field there."""

    key: str
    section: "DataclassInstance"
    declared: Field[object]

    @property
    def value(self) -> object:
        return getattr(self.section, self.declared.name)


def settings(section: "DataclassInstance", prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a section, of the sections in it, and of the parts of a mixture and the held-out sets."""
    for declared in fields(section):
        setting = Setting(f"{prefix}{declared.name}", section, declared)
        value = setting.value
        if is_dataclass(value) and not isinstance(value, type):
            yield from settings(value, f"{setting.key}.")
        elif isinstance(value, dict) and value and all(map(is_dataclass, value.values())):  # parts or held-out sets
            for name, part in value.items():
                yield from settings(part, f"{setting.key}.{name}.")
        else:
            yield setting
