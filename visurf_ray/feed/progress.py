"""Shows how far the check of the rows is: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_QUIET = 2.0  # seconds in which nothing is shown: most checks are short
_EVERY = 10.0  # seconds between lines


class CheckProgress:
    """A context in which `show` shows progress."""

    def __init__(self, console: Console | None = None) -> None:
        """Begin to count time. The console is standard output by default."""
        self._console = console or Console()
        self._begin = self._said = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "CheckProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, checked: int, rows: int) -> None:
        """Show how many of the rows are checked, if it is time to."""
        now = time.monotonic()
        if now - self._begin < _QUIET or not rows:
            return
        if self._console.is_terminal:
            if self._bar is None:
                columns = (TextColumn("checking rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self._console, transient=True)
                self._bar.add_task("", total=rows)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=checked, total=rows)
        elif now - self._said >= _EVERY:
            self._said = now
            self._console.print(f"data  {checked:,} of {rows:,} rows checked", soft_wrap=True, highlight=False)
