"""Reads and checks every row of a data set as a run does, but goes on after a row that a run would refuse."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from visurf_ray.answers.boxes import Box
from visurf_ray.config.schema import Config
from visurf_ray.data.bad_rows import each, listing
from visurf_ray.data.rows import Row
from visurf_ray.data.tables import expand
from visurf_ray.errors import BoxError, DataError, UserError
from visurf_ray.feed.loader import ExampleLoader
from visurf_ray.feed.strictness import Checked, Strictness, max_prompt_tokens
from visurf_ray.groups import Example, Prompt
from visurf_ray.inspection.schemas import Schema, schema_of
from visurf_ray.models import load_processor
from visurf_ray.tasks import load_task
from visurf_ray.tasks.task import Task

REFUSED, DROPPED, REPAIRED, WARNED = "refused", "dropped", "repaired", "warning"


@dataclass
class Problem:
    """What is wrong with some rows in the same way: what a run does with them, how many, and the first one's message.

    Attributes:
        verdict: REFUSED: the run does not start. DROPPED: it leaves the row out. REPAIRED: it mends the boxes.
            WARNED: it trains on the row.
    """

    verdict: str
    first: str
    rows: int = 1


@dataclass(frozen=True)
class Facts:
    """A row that a run can use, in numbers.

    Attributes:
        sizes: Width and height of its pictures as stored, in pixels.
        prompt: The tokens of its prompt.
        label: The tokens of its label, in the longest style.
        answer: Its ground truth, as rewards take it.
        boxes: The boxes of its ground truth in pixels of the stored picture; None if the task has none.
    """

    row: Row
    sizes: tuple[tuple[int, int], ...]
    prompt: int
    label: int
    answer: str
    boxes: list[Box] | None


@dataclass(frozen=True)
class Shown:
    """A row as a page shows it: its pictures and boxes as the model sees them, its prompt and its label."""

    where: str
    images: list[Image.Image]
    boxes: list[Box] | None
    prompt: str
    label: str


@dataclass
class Survey:
    """What was found in a data set.

    Attributes:
        rows: The number of rows, those that cannot be read included.
        pictures: The number of pictures of each row that can be read.
    """

    source: str
    schema: Schema
    task: str
    rows: int = 0
    pictures: list[int] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    problems: dict[str, Problem] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)

    def add(self, verdict: str, message: str, where: str = "") -> None:
        """Count a problem of a row."""
        kind = f"{verdict}: {_kind(message.removeprefix(where))}"
        if kind in self.problems:
            self.problems[kind].rows += 1
        else:
            self.problems[kind] = Problem(verdict, message)

    def count(self, verdict: str) -> int:
        """Return how many rows have a problem with this verdict."""
        return sum(problem.rows for problem in self.problems.values() if problem.verdict == verdict)


def _kind(message: str) -> str:
    """Return what all messages of one kind have in common: without places, numbers, paths and quoted values."""
    text = re.sub(r"^.*?, (row|line|scene) \S+( \(id .*?\))?: ", "", message, flags=re.DOTALL)
    text = re.sub(r"(['\"]).*?\1|[\[{(<].*", "…", text, flags=re.DOTALL)
    return re.sub(r"\S*(/|\d)\S*", "#", text)[:80]


def survey(config: Config, source: str, shown: int, track: Callable[[Sequence[Row]], Iterator[Row]]) -> Survey:
    """Look at a data set as training on it would.

    Args:
        config: A run's configuration, with the task that reads the data.
        source: As in task.train.
        shown: How many rows to make for a page.
        track: Iterates over the rows, and may show how far it is.

    Raises:
        UserError: The task or the model cannot be used, or nothing can be read of the data at all.
    """
    task = load_task(config.task, config.seed, strict=config.answers.strict, model=config.model)
    with listing() as unread:
        schema = _schema(source)
        unread.errors.clear()
        rows = read_all(task, source)
    found = Survey(source, schema, config.task.name, rows=len(rows) + len(unread.errors))
    for error in unread.errors:
        found.add(REFUSED, str(error))
    found.pictures = [len(row.images) for row in rows]
    loader = ExampleLoader(
        task,
        load_processor(config.model),
        seed=config.seed,
        max_prompt_tokens=max_prompt_tokens(config),
        put=lambda value: value,
        model=config.model,
        strictness=Strictness.of(config),
        rows={"train": rows},
    )
    largest: list[float] = []
    threads = ThreadPoolExecutor()  # decoding releases the GIL
    try:
        for row, outcome in zip(track(rows), threads.map(lambda row: _look(loader, row), rows), strict=True):
            if isinstance(outcome, UserError):
                dropped = isinstance(outcome, DataError) and loader.strictness.drops(outcome)
                found.add(DROPPED if dropped else REFUSED, str(outcome), row.where)
                continue
            checked, facts = outcome
            found.facts.append(facts)
            if checked.row.solution != row.solution:
                found.add(REPAIRED, f"{row.where}: boxes have swapped corners or reach outside the image", row.where)
            if checked.too_long:
                found.add(WARNED, checked.too_long, row.where)
            if checked.largest_coordinate is not None:
                largest.append(checked.largest_coordinate)
    finally:
        threads.shutdown(cancel_futures=True)  # Ctrl-C does not wait for all rows
    if largest and max(largest) <= 1:
        found.add(REFUSED, f"{source}: all coordinates of boxes lie between 0 and 1, but must be in {task.unit}")
    chosen = np.sort(np.random.default_rng(0).permutation(len(found.facts))[:shown])  # data may be sorted
    found.shown = [_shown(loader, found.facts[place].row) for place in chosen]
    return found


def read_all(task: Task, source: str) -> list[Row]:
    """Return the rows of a source as for training. Raises DataError if they cannot be read.

    Inside of `listing`, one of several files may be unreadable.
    """
    names = expand(source)
    if len(names) == 1:
        return task.read_split(names[0], "train")
    return [row for rows in each(lambda name: task.read_split(name, "train"), names) for row in rows]


def _schema(source: str) -> Schema:
    try:
        return schema_of(expand(source)[0])
    except DataError:  # a task of the user's own may read what is no table; if it cannot, it says why
        return Schema("none that is known", [])


def _look(loader: ExampleLoader, row: Row) -> tuple[Checked, Facts] | UserError:
    try:
        decoded = row.decoded()
        checked = loader.measured(decoded, trained=True)
        sizes = tuple(image.size for image in decoded.open_images())
        truth = loader.task.ground_truth(checked.row, 1.0, 1.0)
        example = Example(row.id, row.problem, truth, Prompt([], []), sizes[0] if sizes else (0, 0))
        boxes = loader.task.true_boxes(example)
        kept = replace(row, solution=checked.row.solution)  # without the decoded pictures
        return replace(checked, row=kept), Facts(kept, sizes, checked.prompt, checked.label, truth, boxes)
    except UserError as error:
        return error


def _shown(loader: ExampleLoader, row: Row) -> Shown:
    example = loader.example(row)
    return Shown(
        row.where,
        list(example.prompt.images),
        loader.task.true_boxes(example),
        loader.processor.tokenizer.decode(example.prompt.token_ids),
        loader.task.label(example, loader.task.styles[0]),
    )


# Guessing the task

# In the order in which they are preferred. A text that all of the last three accept is vqa's, unless it tells more.
_TABLES = ("non_object", "detection", "grounding", "classification", "math", "vqa")
_TRIED = 20  # rows
_MATHEMATICAL = re.compile(r"[-+]?[\d.,]+\s*%?|\(?[A-Ha-h]\)?|.*[\\=^].*", re.DOTALL)


def guess_task(source: str, config_of: Callable[[str], Config]) -> tuple[str, dict[str, int]]:
    """Return the task that reads a data set best, and how many of the first rows each task accepts.

    Args:
        source: As in task.train.
        config_of: Composes the configuration with a task of this name.

    Raises:
        DataError: No task accepts any row. The message has each one's reason.
    """
    first = expand(source)[0]
    with listing(_TRIED):
        schema = schema_of(first)
    accepted: dict[str, int] = {}
    reasons: dict[str, str] = {}
    solutions: list[str] = []
    for name in [schema.task] if schema.task else _TABLES:
        task = load_task(config_of(name).task, 0)
        try:
            with listing(_TRIED) as unread:
                rows = task.read_split(first, "train")[:_TRIED]
        except DataError as error:
            reasons[name] = str(error)
            continue
        refused = [reason for row in rows if (reason := _refusal(task, row)) is not None]
        if first_reason := next(iter([*unread.errors, *refused]), None):
            reasons[name] = str(first_reason)
        accepted[name] = len(rows) - len(refused)
        solutions = solutions or [row.solution for row in rows]
    if schema.task and schema.task in accepted:
        return schema.task, accepted
    readable = {name: count for name, count in accepted.items() if count}
    if not readable:
        told = "\n".join(f"  task={name}: {reason}" for name, reason in reasons.items())
        held = f" It has the columns {', '.join(schema.columns)}." if schema.columns else ""
        raise DataError(f"{source}: no task can read it: give task=….{held}\n{told}")
    if not any("<answer>" in text for text in solutions) and set(readable) & {"math", "vqa"}:
        readable.pop("classification", None)
    if not all(_MATHEMATICAL.fullmatch(text.strip()) for text in solutions) and "vqa" in readable:
        readable.pop("math", None)
    best = max(readable.values())
    return next(name for name in readable if readable[name] == best), accepted


def _refusal(task: Task, row: Row) -> UserError | None:
    """Return why a task cannot use a row. Pictures that cannot be opened do not count."""
    try:
        row = row.decoded()
    except DataError:
        return None
    try:
        task.check(row)
    except BoxError:
        return None
    except UserError as error:
        return error
    return None
