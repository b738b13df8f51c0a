"""Conversations in a row: of verl, TRL and OpenAI (role, content), or of LLaVA, Qwen and ShareGPT (from, value)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from visurf_ray.aliases import Json
from visurf_ray.data.pictures import KEYS, NO_VIDEO
from visurf_ray.errors import DataError, short

MARK = "<image>"  # stands for a picture in a text
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
_IMAGES = ("image", "image_url")


class Turn(NamedTuple):
    """A message. Its role is user or assistant, or another one that the data have, such as system."""

    role: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with a question, and perhaps its answer.

    Attributes:
        system: The system message, or None.
        turns: The messages before the question.
        question: The last message of the user.
        answer: The assistant's message after the question, or None. It is text, or a list of boxes if `data.rows` has
            filled in the boxes of ms-swift's `objects`.
        pictures: The pictures in the messages, in their order, as the data give them; see `data.pictures`.
    """

    system: str | None
    turns: tuple[Turn, ...]
    question: str
    answer: Json
    pictures: list[Json] = field(default_factory=list)


def read_conversation(messages: Json, where: str) -> Conversation:
    """Read a list of messages, whose content is text or a list of typed parts.

    Pictures in the content become `<image>` in the text.

    Raises:
        DataError: The messages do not alternate between user and assistant, after at most one system message.
    """
    pictures: list[Json] = []
    try:
        turns = [Turn(_role(message), _text(_content(message), pictures, where)) for message in messages]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: the prompt is not a conversation: {_shown(messages)}") from error
    system = turns.pop(0).text if turns and turns[0].role == "system" else None
    roles = [turn.role for turn in turns]
    expected = [("user", "assistant")[place % 2] for place in range(len(turns))]
    if not turns or roles != expected:
        raise DataError(
            f"{where}: after at most one system message, messages of user and assistant must alternate, but their "
            f"roles are {short(roles)}"
        )
    answer = turns.pop().text if turns[-1].role == "assistant" else None
    *before, question = turns
    return Conversation(system or None, tuple(before), question.text, answer, pictures)


def _role(message: dict[str, Json]) -> str:
    role: str = message.get("role") or message["from"]
    return _ROLES.get(role, role)


def _content(message: dict[str, Json]) -> Json:
    content = message.get("content")
    return message["value"] if content is None else content


def _text(content: Json, pictures: list[Json], where: str) -> str:
    """Return the text of a message, and add the pictures in it to `pictures`."""
    if isinstance(content, str):
        return str(content)
    texts = list(_parts([content] if isinstance(content, dict) else content, pictures, where))
    return "".join(
        text if place == 0 or MARK in (text, texts[place - 1]) else f"\n{text}" for place, text in enumerate(texts)
    )


def _parts(parts: Sequence[Json], pictures: list[Json], where: str) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        given = {key: value for key, value in part.items() if value is not None}
        kind = given.get("type") or next(iter(given), "text")
        if kind.startswith("video"):
            raise DataError(f"{where}: {NO_VIDEO}")
        if kind in _IMAGES:
            if picture := {key: given[key] for key in KEYS if given.get(key)}:  # else it is in a column of its own
                pictures.append(picture)
            yield MARK
        elif isinstance(given["text"], str):
            yield given["text"]
        else:
            raise TypeError(f"text is {given['text']!r}")


def _shown(messages: Json) -> str:
    return short(json.dumps(messages, ensure_ascii=False, default=str), 100)
