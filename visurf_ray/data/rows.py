"""Rows of a data set. Pictures stay undecoded until they are used."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from visurf_ray.aliases import Json
from visurf_ray.data.bad_rows import each
from visurf_ray.data.conversations import MARK, Conversation, Turn, read_conversation
from visurf_ray.data.pictures import NO_VIDEO, Picture, find_pictures, load_picture
from visurf_ray.data.remote import folder_or_address
from visurf_ray.data.tables import Table, load_tables
from visurf_ray.data.texts import read_text
from visurf_ray.errors import DataError, short

# The columns that can hold each part of a row, by the part's name. The first column that the table has is read.
Columns = Mapping[str, Sequence[str]]
COLUMNS: Columns = {
    "id": ("id",),
    "problem": ("problem", "prompt"),
    "solution": ("solution", "answer"),
    "image": ("image", "images"),
    "thinking": ("thinking",),
}
# Columns that tables of other programs have in addition, or in place of these.
_OTHERS: Columns = {
    "messages": ("messages", "conversations", "conversation"),
    "reward_model": ("reward_model",),
    "system": ("system",),
    "objects": ("objects",),
    "video": ("video", "videos"),
}
_ANY = (str, int, float, list, dict)  # the JSON types of a solution; bool is none of them
_PICTURE_COLUMN = re.compile(r".*(image|img|picture|photo)s?(_(path|file|name|bytes|url|data|base64))?", re.IGNORECASE)
_CONVERSATION = re.compile(r"""\s*\[\s*\{\s*"(role|content|from|value)"\s*:""")  # in text, as JSON
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """A question, usually about pictures, and its solution.

    Attributes:
        id: The data set's own id, or else the row's number.
        problem: The question as the data set has it.
        solution: The ground truth as text, usually JSON; its form depends on the task.
        images: The pictures: paths, addresses, encoded bytes, or decoded images. `<image>` in `turns` and `problem` is
            the place of one; pictures without such a mark come first, in front of all text.
        where: File and row, for error messages.
        thinking: Reasoning that leads to the solution, if the data have it.
        mask: A mask image from which the objects are made, in place of `solution` (see `tasks.mask_task`).
        extra: The further columns that the task reads, by name; None for a column that the table lacks.
        system: The system message, if the data have one.
        turns: The messages of user and assistant before the question.
        place: The row's place in its table.
    """

    id: str
    problem: str
    solution: str
    images: tuple[Picture, ...]
    where: str
    thinking: str | None = None
    mask: Path | None = None
    extra: dict[str, Json] = field(default_factory=dict)
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    place: int = 0

    def open_images(self) -> tuple[Image.Image, ...]:
        """Return the decoded pictures in RGB, as a person sees them (see `data.pictures`).

        Raises:
            DataError: A picture is missing or damaged, or its format is unknown.
        """
        return tuple(load_picture(image, self.where) for image in self.images)

    def open_image(self) -> Image.Image:
        """Return the row's only picture. Raises DataError like `open_images`, and if there is not exactly one."""
        if len(self.images) != 1:
            raise DataError(f"{self.where}: it has {len(self.images)} images, but must have one")
        return load_picture(self.images[0], self.where)

    def decoded(self) -> "Row":
        """Return the row with its pictures decoded, so that they are read once. Raises DataError like `open_images`."""
        return replace(self, images=self.open_images())


def read_rows(
    source: str,
    image_root: str | None = None,
    columns: Columns = COLUMNS,
    *,
    rows_in: str | None = None,
    solutions: Sequence[type] = _ANY,
    outside: bool = False,
) -> list[Row]:
    """Read the rows of a source. For the arguments see `load_tables` and `rows_of`. Raises DataError like them."""
    tables = load_tables(source, rows_in, outside=outside)
    return [
        row for table in tables for row in rows_of(table, image_root, columns, solutions=solutions, outside=outside)
    ]


def rows_of(
    table: Table,
    image_root: str | None = None,
    columns: Columns = COLUMNS,
    *,
    solutions: Sequence[type] = _ANY,
    outside: bool = False,
) -> list[Row]:
    """Return the rows of a table.

    With the default `columns` these schemas are read, each with an `id` and a `thinking` column if the table has them:

    - VisionReasoner's: problem, solution, image.
    - EasyR1's: problem, answer, images.
    - TRL's: prompt, which is text, a conversation, or its JSON as text; image or images; solution or answer.
    - verl's: prompt, images, and reward_model, whose ground_truth is the solution.
    - ms-swift's: messages, images, and solution or objects; LLaMA-Factory's: messages or conversations, images; LLaVA's
      and Qwen's: image, conversations. Without a column of solutions the last message of the assistant is the solution,
      and reasoning before it in <think> is the thinking.

    The text `<image>` marks the place of a picture. There must be none, or one for each picture. Marks at the beginning
    are removed. A solution that is not text is written as JSON.

    Args:
        table: The table.
        image_root: The folder, or its address, that relative image paths start from. None: that of the data file.
        columns: The columns to read for each part of a row. Parts other than those of COLUMNS go to `Row.extra`.
        solutions: The JSON types that a solution may have.
        outside: Whether paths may lead out of that folder, and addresses to other machines (see `find_pictures`).

    Raises:
        DataError: A column is missing, a cell is empty, or one has another type.
    """
    there = table.columns
    known = {**dict.fromkeys(COLUMNS, ()), **_OTHERS, **columns}
    held = {name: next((column for column in names if column in there), None) for name, names in known.items()}
    missing = [
        " or ".join(columns[name])
        for name, other in (("problem", "messages"), ("solution", "reward_model"))
        if held[name] is None and held[other] is None and held["messages"] is None
    ]
    check_columns(table, missing)
    pictures = [name for name in there if _PICTURE_COLUMN.fullmatch(name) and name not in known["image"]]
    read = [*held.values(), *(name for name in known["image"] if name in there), *pictures]
    reader = _Reader(
        table.source,
        held,
        known["image"],
        pictures,
        folder_or_address(image_root) if image_root else table.root,
        tuple(solutions),
        [name for name in columns if name not in COLUMNS],
        outside,
    )
    return each(
        lambda entry: replace(reader.row(table.number(entry[0]), entry[1]), place=entry[0]),
        enumerate(table.records([column for column in dict.fromkeys(read) if column])),
    )


def json_object(path: Path) -> dict[str, Json] | None:
    """Return the object in a .json file, or None if there is no such file or it holds anything else.

    Raises:
        DataError: The file is not UTF-8.
    """
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):  # for example JSON lines
        return None
    return content if isinstance(content, dict) else None


def check_columns(table: Table, columns: Sequence[str]) -> None:
    """Raise DataError if a table lacks one of these columns."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        held = short(", ".join(table.columns), 500)
        raise DataError(f"{table.source} has no column {', '.join(missing)}; it has {held}")


@dataclass(frozen=True)
class _Reader:
    """Makes rows of a table's records.

    Attributes:
        source: The table's name in messages.
        held: The column that holds each part of a row, or None.
        images: The names of columns of pictures.
        others: Columns that by their names have pictures as well, but are not read.
        root: The folder, or its address, that relative image paths start from.
        solutions: The JSON types that a solution may have.
        extra: The parts that go to `Row.extra`.
        outside: See `rows_of`.
    """

    source: str
    held: Mapping[str, str | None]
    images: Sequence[str]
    others: Sequence[str]
    root: Path | str
    solutions: tuple[type, ...]
    extra: Sequence[str]
    outside: bool

    def row(self, number: int, record: dict[str, Json]) -> Row:
        values = {name: record.get(column) if column else None for name, column in self.held.items()}
        identity = values["id"]
        where = f"{self.source}, row {number}" + (f" (id {short(identity, 80)})" if identity is not None else "")
        if values["video"]:
            raise DataError(f"{where}: {NO_VIDEO}")
        conversation = self._conversation(values, where)
        cells = self._pictures(record, conversation.pictures, where)
        images = tuple(find_pictures(cells, self.root, where, outside=self.outside))
        conversation = _with_objects(conversation, values["objects"], self.solutions, where)
        turns, problem = _placed(conversation, len(images), where)
        thinking, solution = self._solution(values, conversation.answer, where)
        return Row(
            str(identity) if identity is not None else str(number),
            problem,
            solution,
            images,
            where,
            thinking,
            extra={name: values[name] for name in self.extra},
            system=conversation.system,
            turns=turns,
        )

    def _pictures(self, record: dict[str, Json], of_messages: list[Json], where: str) -> list[Json]:
        """Return the cells of a row's pictures. A row without a key for them, or with `[]` in it, has none.

        Raises:
            DataError: The cell is empty, or the pictures are under another key.
        """
        cell = next((record[name] for name in self.images if record.get(name) is not None), None)
        if cell is not None or of_messages:
            return [*of_messages, *([] if cell is None or cell == [] else [cell])]
        if other := next((name for name in self.others if record.get(name)), None):
            raise DataError(f"{where}: its pictures must be in {' or '.join(self.images)}, not in {other}")
        if empty := next((name for name in self.images if name in record), None):
            raise DataError(f"{where}: the {empty} is empty; a row without pictures must have [] there")
        return []

    def _conversation(self, values: dict[str, Json], where: str) -> Conversation:
        column = self.held["problem"] or self.held["messages"]
        messages = values["problem"] if self.held["problem"] else values["messages"]
        if messages is None:
            raise DataError(f"{where}: the {column} is empty")
        if isinstance(messages, str) and _CONVERSATION.match(messages):
            messages = _from_json(messages)
        if isinstance(messages, str):
            return Conversation(_text(values["system"], "system", where), (), messages, None)
        if not isinstance(messages, list):
            raise DataError(f"{where}: the {column} must be text or a conversation, not {_shown(messages)}")
        found = read_conversation(messages, where)
        if found.answer is not None and self.held["problem"]:
            raise DataError(f"{where}: the {column} must end with a message of the user, not of the assistant")
        return found if found.system else replace(found, system=_text(values["system"], "system", where))

    def _solution(self, values: dict[str, Json], answer: Json, where: str) -> tuple[str | None, str]:
        """Return the reasoning, or None, and the solution."""
        thinking = _text(values["thinking"], "thinking", where)
        column, solution = self.held["solution"], values["solution"]
        if column is None and self.held["reward_model"]:
            column, solution = "reward_model", _ground_truth(values["reward_model"], where)
        elif column is None:
            column, solution = "last message of the assistant", answer
            if isinstance(answer, str) and thinking is None and (thought := _THOUGHT.fullmatch(answer)):
                thinking, solution = thought[1].strip() or None, thought[2]
        if solution is None:
            raise DataError(f"{where}: the {column} is empty")
        if isinstance(solution, bool) or not isinstance(solution, self.solutions):
            names = " or ".join(_NAMES[kind] for kind in self.solutions)
            raise DataError(f"{where}: the {column} must be {names}, not {_shown(solution)}")
        if isinstance(solution, float):
            if not math.isfinite(solution):  # NaN is an empty cell in a column of numbers
                raise DataError(f"{where}: the {column} is no number: {solution}")
            solution = int(solution) if solution.is_integer() else solution  # an integer beside others that are not
        return thinking, solution if isinstance(solution, str) else json.dumps(solution, ensure_ascii=False)


_NAMES: Mapping[type, str] = {str: "text", int: "an integer", float: "a number", list: "a list", dict: "an object"}


def _text(value: Json, name: str, where: str) -> str | None:
    """Return a text that may be missing or empty; None then. Raises DataError for anything else."""
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: the {name} must be text, not {_shown(value)}")
    return value or None


def _from_json(text: str) -> Json:
    """Return the conversation that a text of JSON holds, or else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _shown(value: Json) -> str:
    return short(json.dumps(value, ensure_ascii=False, default=str), 100)


def _ground_truth(reward_model: Json, where: str) -> Json:
    """Return the solution in a cell of verl's column `reward_model`."""
    if isinstance(reward_model, dict) and reward_model.get("ground_truth") is not None:
        return reward_model["ground_truth"]
    raise DataError(f"{where}: the reward_model must be an object with a ground_truth, not {_shown(reward_model)}")


def _with_objects(conversation: Conversation, objects: Json, solutions: tuple[type, ...], where: str) -> Conversation:
    """Fill in ms-swift's `objects`: names for <ref-object>, and boxes for the <bbox> of the answer.

    Raises:
        DataError: A question has boxes, which would not be scaled with the image; the numbers do not fit; or `objects`
            is of another type.
    """
    texts = [*(turn.text for turn in conversation.turns), conversation.question, conversation.answer or ""]
    if not isinstance(objects, dict):
        if objects is not None and any("<bbox>" in text or "<ref-object>" in text for text in texts):
            raise DataError(f"{where}: the objects must be an object with ref and bbox, not {_shown(objects)}")
        return conversation
    names, boxes = (list(objects.get(key) or ()) for key in ("ref", "bbox"))
    if any("<bbox>" in text for text in texts[:-1]):
        raise DataError(f"{where}: <bbox> may stand in the answer alone: boxes in a question are not scaled")
    if sum(text.count("<ref-object>") for text in texts) > len(names):
        raise DataError(f"{where}: it has more <ref-object> than objects.ref, which has {len(names)}")
    name = iter(names)
    *before, question, answer = (re.sub("<ref-object>", lambda _: str(next(name)), text) for text in texts)
    given: Json = answer or None
    if "<bbox>" in answer:
        if answer.count("<bbox>") != len(boxes) or list not in solutions:
            raise DataError(
                f"{where}: the answer has {answer.count('<bbox>')} <bbox> and objects.bbox has {len(boxes)}: the task "
                "must be one of boxes, and the numbers must be equal"
            )
        given = [{"bbox_2d": box} for box in boxes]
    turns = tuple(Turn(turn.role, text) for turn, text in zip(conversation.turns, before, strict=True))
    return replace(conversation, turns=turns, question=question, answer=given)


def _placed(conversation: Conversation, images: int, where: str) -> tuple[tuple[Turn, ...], str]:
    """Return turns and question without the marks of pictures at the very beginning.

    Raises:
        DataError: There are marks, but not one for each picture; or the question is empty.
    """
    turns = [*conversation.turns, Turn("user", conversation.question)]
    marks = sum(turn.text.count(MARK) for turn in turns)
    if marks not in (0, images):
        raise DataError(f"{where}: the text has {marks} times {MARK}, but the row has {images} images")
    first = turns[0].text
    while first.lstrip().startswith(MARK):
        first = first.lstrip().removeprefix(MARK)
    turns[0] = Turn("user", first.strip())
    *before, question = turns
    if not question.text.strip():
        raise DataError(f"{where}: the question is empty")
    return tuple(before), question.text.strip()
