"""Remembers what the checks of rows have found, so that a resumed or repeated run does not decode every picture again.

A report is found again by a fingerprint of all that the check depends on: the rows, the files of their pictures (path,
size and time of the last change), the settings, the model's processor, and the code.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from PIL import Image

import visurf_ray
from visurf_ray.aliases import Json, Processor
from visurf_ray.config.schema import Config
from visurf_ray.data.pictures import Picture
from visurf_ray.data.rows import Row
from visurf_ray.data.stored import StoredImage, StoredLine
from visurf_ray.feed.check import Report
from visurf_ray.tasks.task import Task

_LIBRARIES = ("transformers", "tokenizers", "pillow", "datasets")


def folder_of(config: Config) -> Path:
    """Return the folder that `feed.cache` names, or else this user's cache (XDG Base Directory Specification)."""
    if config.feed.cache:
        return Path(config.feed.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "visurf_ray"


class Remembered:
    """The reports of earlier checks, each in a file of a folder."""

    def __init__(self, folder: Path, settings: str) -> None:
        """Take the folder, which need not exist, and what `settings_of` returns."""
        self.folder = folder / "checks"
        self.settings = settings

    def key(self, split: str, task: Task, rows: Sequence[Row]) -> str:
        """Return the fingerprint of these rows of a task's split, and of all that their check depends on."""
        found = blake2b(digest_size=20)
        of_task = asdict(replace(task.config, train=None, held_out=None))
        told = [self.settings, split, of_task, task.template, task.system, task.answered, task.compared, _code_of(task)]
        found.update(json.dumps(told, default=str).encode())
        stamp = cache(_stamp)  # a file may have many rows
        for row in rows:
            texts = [row.id, row.where, row.problem, row.solution, row.thinking, row.system, row.turns, row.extra]
            found.update(json.dumps(texts, default=str).encode("utf-8", "surrogatepass"))
            for picture in row.images if row.mask is None else (*row.images, row.mask):
                for part in _picture(picture, stamp):
                    found.update(part)
        return found.hexdigest()

    def recall(self, key: str) -> Report | None:
        """Return the report with this fingerprint, or None if there is none or it cannot be read."""
        try:
            return Report(**json.loads((self.folder / f"{key}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, key: str, report: Report) -> None:
        """Write a report, in one step. A folder that cannot be written, or is full, remembers nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as aside:
                file = Path(aside, "report")
                file.write_text(json.dumps(asdict(report)))
                os.replace(file, self.folder / f"{key}.json")
        except OSError as error:
            print(f"the check of the rows is not remembered in {self.folder}: {error.strerror}", flush=True)


def settings_of(config: Config, processor: Processor) -> str:
    """Return a fingerprint of the code and of the settings, besides a task's own, that checks depend on."""
    found = blake2b(digest_size=20)
    with tempfile.TemporaryDirectory() as folder:  # what a processor is made of, wherever it comes from
        processor.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                found.update(file.name.encode() + file.read_bytes())
    rollout, learner, feed, method = config.rollout, config.learner, config.feed, config.method
    model = replace(config.model, path="")  # its processor is known
    told = [asdict(model), feed.on_bad_box, feed.on_long, feed.on_bad, rollout.max_tokens, rollout.max_model_len]
    told += [learner.max_tokens_per_micro_batch, method.label, method.sft_steps > 0, config.answers.strict]
    found.update(json.dumps([told, _code(), [version(name) for name in _LIBRARIES]], default=str).encode())
    return found.hexdigest()


@cache
def _code() -> str:
    """Return a fingerprint of this package."""
    found = blake2b(digest_size=20)
    for file in sorted(Path(visurf_ray.__path__[0]).rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _code_of(task: Task) -> str:
    """Return a fingerprint of the file that defines the task, which may be the user's."""
    file = getattr(sys.modules.get(type(task).__module__), "__file__", None)
    return blake2b(Path(file).read_bytes(), digest_size=20).hexdigest() if file else ""


def _stamp(path: Path) -> bytes:
    """Return what changes when a file changes."""
    try:
        found = path.stat()
    except OSError:
        return f"{path}: none".encode()
    return f"{path}: {found.st_size} {found.st_mtime_ns}".encode()


def _picture(picture: Picture, stamp: Json) -> Iterator[bytes]:
    """Yield what tells a picture from others. That at an address is told by the address alone."""
    if isinstance(picture, StoredImage):
        yield f"{picture.table} {picture.index}".encode()
    elif isinstance(picture, StoredLine):
        yield stamp(picture.path) + f" {picture.offset} {picture.keys}".encode()
    elif isinstance(picture, Image.Image):
        yield f"{picture.mode} {picture.size}".encode()
        yield picture.tobytes()
    elif isinstance(picture, bytes):
        yield picture
    elif isinstance(picture, Path):
        yield stamp(picture)
    else:
        yield repr(picture).encode()
