"""The progress display: live on a terminal, one line per step elsewhere."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from visurf_ray.errors import during
from visurf_ray.groups import Metrics, without_bounds

# The columns of a step's line: word, metric, format. A column has alternatives; the first metric that exists is shown.
_HEADLINE: list[list[tuple[str, str, str]]] = [
    [("reward", "reward/rollout/total", "5.2f"), ("loss", "train/loss", "7.4f")],
    [("label", "train/label_active", "4.2f")],
    [("entropy", "train/entropy/rollout", "5.3f"), ("entropy", "train/entropy/label", "5.3f")],
    [("grad", "train/grad_norm", "5.2f")],
    [("diff", "train/rollout_logprob_diff", "5.0e")],
]
_EVERY_STEP = ("sample", "reward", "learn", "sync")
_ETA_STEPS = 20  # the time left is estimated from the mean of so many steps


class Progress:
    """Times the phases of a step, and shows them with the step's metrics."""

    def __init__(self, total_steps: int, *, start_step: int = 0, console: Console | None = None) -> None:
        """Start the display.

        Args:
            total_steps: the step at which the run ends.
            start_step: steps that a resumed run has done before.
            console: where to print; standard output by default.
        """
        self._total = total_steps
        self._console = console or Console()
        self._times: dict[str, float] = {}
        self._phase: str | None = None
        self._recent: deque[float] = deque(maxlen=_ETA_STEPS)
        self._bar = Bar(
            TextColumn("{task.fields[phase]:<10}", style="bold"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}", style="cyan"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=start_step, phase="start", eta="-")
        self._last = Text("", style="dim", no_wrap=True, overflow="ellipsis")
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(Group(self._bar, self._last), console=self._console, refresh_per_second=4)
            self._live.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase of a step (sample, reward, learn, sync, evaluate, …).

        Raises:
            RuntimeError: called inside of another phase.
        """
        if self._phase is not None:
            raise RuntimeError(f"phase {name!r} inside {self._phase!r}: phases are timed one at a time")
        self._phase = name
        self._bar.update(self._task, phase=name)
        started = time.perf_counter()
        try:
            with during(name):
                yield
        finally:
            self._times[name] = self._times.get(name, 0.0) + time.perf_counter() - started
            self._phase = None

    def take_times(self, *names: str) -> Metrics:
        """Return and reset the seconds of the named phases, or of all, as `time/<phase>`."""
        taken = names or tuple(self._times)
        return {f"time/{name}": self._times.pop(name) for name in taken if name in self._times}

    def step(self, step: int, metrics: Metrics) -> None:
        """Show a finished step. The time left is estimated from `time/step`, if the metrics have it."""
        if "time/step" in metrics:
            self._recent.append(metrics["time/step"])
        eta = clock((self._total - step) * sum(self._recent) / len(self._recent)) if self._recent else "-"
        self._bar.update(self._task, completed=step, eta=eta)
        headline, phases, speed = _headline(metrics), _phases(metrics), _speed(metrics)
        if self._live is None:
            width = len(str(self._total))
            parts = [f"step  {step:>{width}}/{self._total}  {headline}", phases, f"{speed}eta {eta}"]
            self.say(" | ".join(part for part in parts if part))
        else:
            self._last.plain = f"{headline}\n{phases}  {speed}"

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Print the scores of an evaluation in one line, without the bounds of their intervals."""
        width = len(str(self._total))
        scores = "  ".join(f"{name} {value:.3f}" for name, value in without_bounds(metrics).items())
        self.say(f"eval  {step:>{width}}/{self._total}  {scores}")

    def say(self, line: str) -> None:
        """Print a line, on a terminal above the live display."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """End the live display, and leave its last state on the terminal."""
        if self._live is not None:
            self._live.stop()


def clock(seconds: float) -> str:
    """Return seconds as 4:12 or 1:04:12."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def compact(number: float) -> str:
    """Return a number in two to three digits: 850, 1.2k, 31k."""
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1000:.1f}k" if number < 10_000 else f"{number / 1000:.0f}k"


def _headline(metrics: Metrics) -> str:
    shown = []
    for choices in _HEADLINE:
        found = next((choice for choice in choices if choice[1] in metrics), None)
        if found:
            word, key, form = found
            shown.append(f"{word} {metrics[key]:{form}}")
    return "  ".join(shown)


def _phases(metrics: Metrics) -> str:
    times = {key.removeprefix("time/"): value for key, value in metrics.items() if key.startswith("time/")}
    times.pop("step", None)
    # Phases of every step come first and in a fixed order, so that the columns of a log stay aligned.
    names = [name for name in _EVERY_STEP if name in times] + [name for name in times if name not in _EVERY_STEP]
    return "  ".join(f"{name} {times[name]:4.1f} s" for name in names)


def _speed(metrics: Metrics) -> str:
    speed = metrics.get("train/tokens_per_second")
    return "" if speed is None else f"{compact(speed)} tok/s  "
