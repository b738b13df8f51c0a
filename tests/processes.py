"""The processes of a run, and what they leave behind when it has ended."""

import time
from contextlib import suppress
from pathlib import Path

import psutil

_SHARED_MEMORY = Path("/dev/shm")


class Family:
    """A process and its descendants, also those whose parents have ended since they were first seen."""

    def __init__(self, root: int) -> None:
        """Begin with the process that has this id. What lies in /dev/shm now is not taken for its own."""
        self.root = psutil.Process(root)
        self._seen: set[psutil.Process] = {self.root}
        self._foreign = _shared()

    def living(self) -> list[psutil.Process]:
        """Return the members that run. Call it from time to time: who is born and orphaned in between is not found."""
        with suppress(psutil.NoSuchProcess):
            self._seen.update(self.root.children(recursive=True))
        return [process for process in self._seen if _lives(process)]

    def find(self, name: str) -> psutil.Process:
        """Return the only member that runs and calls itself like this; see `title`."""
        (found,) = [process for process in self.living() if title(process).startswith(name)]
        return found

    def left(self, seconds: float) -> tuple[list[str], list[str]]:
        """Return the members that still live after so many seconds, and the names in /dev/shm that nobody uses.

        Waits for both: another program may be about to use such a name.
        """
        deadline = time.monotonic() + seconds
        while True:
            living = self.living()
            unused = sorted(_shared() - self._foreign - _used())
            if not (living or unused) or time.monotonic() >= deadline:
                return [title(process) for process in living], unused
            time.sleep(0.1)


def command(process: psutil.Process) -> list[str]:
    """Return the words of a process's command line; none if it has ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


def title(process: psutil.Process) -> str:
    """Return what a process calls itself, such as `ray::RolloutActor`, or its name; nothing if it has ended."""
    words = command(process)
    if words and words[0].startswith(("ray::", "VLLM::")):
        return words[0].strip()
    with suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _shared() -> set[str]:
    return {path.name for path in _SHARED_MEMORY.iterdir()}


def _used() -> set[str]:
    """Return the names in /dev/shm that a process has mapped."""
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (process / "maps").read_text().splitlines()
            found |= {line.rpartition("/")[2] for line in lines if f" {_SHARED_MEMORY}/" in line}
    return found
