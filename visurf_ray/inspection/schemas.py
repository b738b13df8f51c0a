"""Tells which program's schema a data set has, by its files, its columns and its first row."""

from pathlib import Path
from typing import NamedTuple

from visurf_ray.aliases import Json
from visurf_ray.data.pictures import pictures_in
from visurf_ray.data.rows import json_object
from visurf_ray.data.tables import load_tables
from visurf_ray.errors import DataError


class Schema(NamedTuple):
    """What a data set looks like.

    Attributes:
        name: Whose schema it is.
        columns: The names of its columns; empty for authors' files that are no tables.
        task: The task that reads it; None if the columns do not tell.
    """

    name: str
    columns: list[str]
    task: str | None = None


def schema_of(source: str) -> Schema:
    """Return the schema of a data set. Raises DataError if it can be read neither as a table nor as authors' files."""
    if (known := _of_authors(source)) is not None:
        return known
    table = load_tables(source)[0]
    columns = table.columns
    try:
        first: dict[str, Json] = next(iter(table.records(columns)))
    except StopIteration:
        raise DataError(f"{source} has no rows that can be read") from None
    folder = Path(source.partition(":")[0]).expanduser()
    if folder.is_dir() and list(folder.glob("**/metadata.jsonl")):
        return Schema("folder of images with metadata.jsonl", columns)
    return _of_columns(columns, first)


def _of_authors(source: str) -> Schema | None:
    """Return the schema of a data set in its authors' own files; None for a table."""
    name, _, split = source.rpartition(":")
    path = Path(name if split in ("train", "test") and name else source).expanduser()
    if path.is_dir():
        pictures = pictures_in(path)
        if any(picture.name.startswith("ISIC_") for picture in pictures):
            return Schema("ISIC 2018, task 1: a folder of images", [], "lesion")
        if any(picture.with_suffix(".json").is_file() for picture in pictures):
            return Schema("ReasonSeg: a folder of images with annotations", [], "reasoning_segmentation")
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    content = next((found for file in files if (found := json_object(file)) is not None), None) or {}
    if {"meta", "train", "test"} <= content.keys():
        return Schema("Real-IAD's JSON", [], "anomaly")
    if isinstance(content.get("data"), list):
        return Schema("DocVQA's JSON", [], "vqa")
    values = list(content.values())
    if values and all(isinstance(value, dict) for value in values):
        keys = set.union(*(set(value) for value in values))
        if {"task", "image", "box"} <= keys:
            return Schema("OmniACT's index", [], "gui_grounding")
        if "question" in keys:
            return Schema("MathVista's JSON", sorted(keys), "math")
    return None


def _of_columns(columns: list[str], first: dict[str, Json]) -> Schema:
    held, several = set(columns), "images" in columns
    messages = next((column for column in ("messages", "conversations", "conversation") if column in held), None)
    if {"image", "text", "mask"} <= held and "solution" not in held:
        return Schema("VisionReasoner's evaluation sets, with masks", columns, "non_object")
    if {"imgname", "query", "label"} <= held or {"image", "query", "label"} <= held:
        return Schema("ChartQA's", columns, "vqa")
    if {"question", "answers"} <= held:
        return Schema("DocVQA's", columns, "vqa")
    if {"question", "choices"} <= held or "pid" in held:
        return Schema("MathVista's", columns, "math")
    if "reward_model" in held and "prompt" in held:
        return Schema("verl's", columns)
    if messages and "problem" not in held and "prompt" not in held:
        turns = first.get(messages) or []
        shared = isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]
        if shared and not several:
            return Schema("LLaVA's and Qwen's", columns)
        if "objects" in held or "solution" in held:
            return Schema("ms-swift's", columns)
        return Schema("LLaMA-Factory's" if shared else "ms-swift's and LLaMA-Factory's", columns)
    if "problem" in held and "solution" in held:
        return Schema("VisionReasoner's and Visual-RFT's training sets", columns)
    if "problem" in held and "answer" in held:
        return Schema("EasyR1's", columns)
    if "prompt" in held and ("solution" in held or "answer" in held):
        return Schema("TRL's", columns)
    return Schema("none that is known", columns)
