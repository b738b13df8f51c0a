"""Shows a survey on the console."""

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import track as progress
from rich.table import Table
from rich.text import Text

from visurf_ray.config.schema import Config
from visurf_ray.data.rows import Row
from visurf_ray.inspection.numbers import lines, problems
from visurf_ray.inspection.survey import Survey

_WIDTH = 100  # columns, where the output is no terminal


def track(rows: Sequence[Row]) -> Iterator[Row]:
    """Iterate over rows, with a bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    yield from progress(rows, "checking rows", console=console, transient=True, disable=not console.is_terminal)


def show(survey: Survey, config: Config, accepted: dict[str, int], *, default_model: bool) -> None:
    """Print what was found.

    Args:
        accepted: See `numbers.lines`.
        default_model: Whether the command line names no model.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("what", no_wrap=True, style="bold")
    table.add_column("value", overflow="fold")
    for name, text in lines(survey, config, accepted):
        table.add_row(name, Text(text))
    console.print(table)
    if default_model:
        console.print("Tokens are those of model=miniature: name your model for its own, model.path=…", style="dim")
    found = problems(survey)
    if not found:
        console.print("A run would use every row.")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("the first one", overflow="fold")
    for verdict, count, message in found:
        table.add_row(verdict, count, Text(message))
    console.print()
    console.print(table)
