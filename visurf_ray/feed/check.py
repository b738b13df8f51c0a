"""The check of a split's rows before a run."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from visurf_ray.data.rows import Row
from visurf_ray.feed.strictness import Checked, Dropped

Note = Callable[[int], None]  # is told of so many more rows that are checked


@dataclass
class Report:
    """What the check of a split has found. JSON can hold it.

    Attributes:
        rows: How many rows were checked, the first ones of the split.
        dropped: The number of each row that is dropped, and the reason.
        repaired: The number of each row whose boxes were repaired, and its new solution.
        longest: The tokens of the longest prompt; 0 if none was checked.
        longest_labelled: The most tokens that a prompt and its label have together.
        longest_label: The tokens of the longest label.
        too_long: How many labels are longer than any response can be.
        first_too_long: What is wrong with the first of them.
        largest_coordinate: The largest coordinate of any box; None without boxes.
    """

    rows: int
    dropped: list[tuple[int, str]] = field(default_factory=list)
    repaired: list[tuple[int, str]] = field(default_factory=list)
    longest: int = 0
    longest_labelled: int = 0
    longest_label: int = 0
    too_long: int = 0
    first_too_long: str | None = None
    largest_coordinate: float | None = None

    def add(self, number: int, row: Row, found: Checked) -> None:
        """Take account of a row that can be used."""
        if found.row.solution != row.solution:
            self.repaired.append((number, found.row.solution))
        self.longest = max(self.longest, found.prompt)
        self.longest_labelled = max(self.longest_labelled, found.prompt + found.label)
        self.longest_label = max(self.longest_label, found.label)
        if found.too_long:
            self.too_long += 1
            self.first_too_long = self.first_too_long or found.too_long
        if found.largest_coordinate is not None:
            self.largest_coordinate = max(self.largest_coordinate or 0.0, found.largest_coordinate)


def check_rows(rows: Sequence[Row], look: Callable[[Row], Checked | Dropped], note: Note) -> Report:
    """Check rows in several threads. Raises what `look` raises for the first row that can neither be used nor dropped.

    Args:
        rows: The rows.
        look: Checks one row.
        note: Is told of each row that is checked.
    """
    report = Report(len(rows))
    threads = ThreadPoolExecutor()  # decoding releases the GIL
    try:
        for number, (row, found) in enumerate(zip(rows, threads.map(look, rows), strict=True)):
            note(1)
            if isinstance(found, Dropped):
                report.dropped.append((number, found.reason))
            else:
                report.add(number, row, found)
    finally:
        threads.shutdown(cancel_futures=True)  # an error, or Ctrl-C, does not wait for all rows
    return report
