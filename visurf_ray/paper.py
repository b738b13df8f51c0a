"""Lists the rows of the papers' tables, or prints the command that runs one.

    python -m visurf_ray.paper
    python -m visurf_ray.paper "table 4, without smooth, non_object"

The rows are data: `paper_rows.yaml`. Nothing is run.
"""

import argparse
import shlex
import sys
import textwrap
from itertools import groupby

from rich.console import Console
from rich.table import Table

from visurf_ray.errors import UserError, printing
from visurf_ray.paper_rows import PaperRow, find_row, paper_rows, table_titles

_WIDTH = 100  # columns, where the output is no terminal
_UNITS = {"time/step": "s", "gpu_memory": "GB"}  # of all other metrics: percent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m visurf_ray.paper", description="The rows of the papers' tables.")
    parser.add_argument("row", nargs="*", help="a row's name: print its command. Without one, list all rows")
    try:
        with printing():
            name = " ".join(parser.parse_args().row)
            print(describe(find_row(name)) if name else listing(), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def listing() -> str:
    """All rows by table, each with the numbers that the paper reports."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    titles = table_titles()
    with console.capture() as output:
        for name, rows in groupby(paper_rows(), key=lambda row: row.table):
            table = Table(box=None, pad_edge=False, show_header=False)
            table.add_column(no_wrap=True)
            table.add_column()
            for row in rows:
                table.add_row(row.name, "\n".join(_reported(row)) or "–")
            console.print(titles[name], style="bold")
            console.print(table)
            console.print()
        console.print("The numbers are the papers' own; none has been reproduced here. To print the command of a row:")
        console.print('python -m visurf_ray.paper "table 1, visurf, non_object"')
    return output.get()


def describe(row: PaperRow) -> str:
    """The command of a row, and below it, as comments of a shell, what to add, the paper's numbers and notes."""
    lines = [command(row)]
    if row.needed:
        lines.append(f"# Add {' '.join(f'{key}=…' for key in row.needed)} (see conf/task/).")
    if row.reported:
        lines.append(f"# The paper reports {'; '.join(_reported(row))}.")
    for note in row.notes:
        lines += textwrap.wrap(note, _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def command(row: PaperRow) -> str:
    """One line for a shell. A training run gets the name of its row: its report then shows the paper's numbers."""
    named = [f'monitor.paper_row="{row.name}"'] if row.program == "train" else []
    return shlex.join(["python", "-m", f"visurf_ray.{row.program}", *row.overrides, *named])


def _reported(row: PaperRow) -> list[str]:
    """The numbers of each data set and split, as text."""
    texts = {
        split: [f"{metric} {value:.1f} {_UNITS.get(metric, '%')}" for metric, value in numbers.items()]
        for split, numbers in row.reported.items()
    }
    return [f"{split}: {', '.join(numbers)}" for split, numbers in texts.items()]


if __name__ == "__main__":
    sys.exit(main())
