"""Reads the rows of the papers' tables (`paper_rows.yaml`): how each is run, and the numbers that the paper reports."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf
from rapidfuzz import fuzz, process

from visurf_ray.aliases import Json
from visurf_ray.errors import ConfigError

_FILE = Path(__file__).with_suffix(".yaml")
_NEEDED = {"train": ("task.train", "task.held_out"), "evaluate": ("checkpoint", "task.held_out")}
_SUGGESTED = 5  # rows that a message names


@dataclass(frozen=True)
class PaperRow:
    """A row of a table.

    program: the entry point that runs it, train or evaluate. reported: data set and split → metric → number, in the
    paper's unit: percent, but seconds for time/step and GB for gpu_memory.
    """

    name: str
    program: str
    overrides: tuple[str, ...]
    reported: dict[str, dict[str, float]]
    notes: tuple[str, ...]

    @property
    def table(self) -> str:
        return self.name.partition(",")[0]

    @property
    def needed(self) -> list[str]:
        """Keys that the user must set: data or a model that the overrides do not name."""
        given = {override.partition("=")[0] for override in self.overrides}
        return [key for key in _NEEDED[self.program] if key not in given]

    def values(self, metric: str) -> list[tuple[str, float]]:
        """Each data set and split with the number that is reported for this metric, in the paper's unit."""
        return [(split, numbers[metric]) for split, numbers in self.reported.items() if metric in numbers]


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    """All rows, in the order of the tables."""
    return tuple(_row(name, entry) for name, entry in _content()["rows"].items())


def table_titles() -> dict[str, str]:
    """The title of each table."""
    return dict(_content()["titles"])


def find_row(name: str, key: str | None = None) -> PaperRow:
    """The row with this name, or the only one whose name has all words of it. Case, commas and order do not matter.

    Args:
        key: the configuration key that holds the name, for the message.

    Raises:
        ConfigError: where no row or several rows are meant, with the nearest ones.
    """
    asked, rows = _words(name), paper_rows()
    same = [row for row in rows if sorted(_words(row.name)) == sorted(asked)]
    found = same or [row for row in rows if set(asked) <= set(_words(row.name))]
    if len(found) == 1:
        return found[0]
    candidates = [row.name for row in found or rows]
    nearest = process.extract(
        name, candidates, scorer=fuzz.token_set_ratio, processor=lambda text: " ".join(_words(text)), limit=_SUGGESTED
    )
    raise ConfigError(
        f"{f'{key}=' if key else ''}{name!r} names {'several rows' if found else 'no row'} of the papers' tables. "
        f"The nearest: {'; '.join(text for text, _, _ in nearest)}. `python -m visurf_ray.paper` lists all"
    )


@cache
def _content() -> Json:
    return OmegaConf.to_container(OmegaConf.load(_FILE), resolve=False)


def _row(name: str, entry: Json) -> PaperRow:
    program = "train" if "train" in entry else "evaluate"
    overrides = tuple(f"{key}={_text(value)}" for key, value in entry[program].items())
    return PaperRow(name, program, overrides, entry.get("reported", {}), tuple(entry.get("notes", ())))


def _text(value: str | float | bool) -> str:
    """A value as Hydra's command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower().replace("→", " then ").replace("->", " then "))
