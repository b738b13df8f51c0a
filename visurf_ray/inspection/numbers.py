"""What a survey says in numbers: lines of text by their names, for the console and the page alike."""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from visurf_ray.config.schema import Config
from visurf_ray.errors import short
from visurf_ray.inspection.survey import DROPPED, REFUSED, REPAIRED, WARNED, Survey

_VERDICTS = {
    REFUSED: "would stop a run",
    DROPPED: "would be dropped",
    REPAIRED: "would be repaired",
    WARNED: "would be warned of",
}


def lines(survey: Survey, config: Config, accepted: dict[str, int]) -> list[tuple[str, str]]:
    """Return what was found as names and texts.

    Args:
        accepted: How many of the first rows each task accepts, where the task was guessed.
    """
    found = [("data", survey.source), ("schema", _schema(survey)), ("task", _task(survey, accepted))]
    counts = [f"{count} {_VERDICTS[verdict]}" for verdict in _VERDICTS if (count := survey.count(verdict))]
    found.append(("rows", f"{survey.rows:,}: {len(survey.facts):,} can be used" + "".join(f", {c}" for c in counts)))
    found.append(("pictures per row", _pictures(survey.pictures)))
    if sizes := [size for facts in survey.facts for size in facts.sizes]:
        found.append(("picture sizes", _sizes(sizes)))
    if not survey.facts:
        return found
    found += _answers(survey)
    rollout = config.rollout
    prompts, labels = ([getattr(facts, name) for facts in survey.facts] for name in ("prompt", "label"))
    found.append(("prompt tokens", f"{_spread(prompts)}; rollout.max_model_len={rollout.max_model_len}"))
    found.append(("label tokens", f"{_spread(labels)}; rollout.max_tokens={rollout.max_tokens}"))
    return found


def problems(survey: Survey) -> list[tuple[str, str, str]]:
    """Return the problems: what a run does, the number of rows, and the first row's message; worst and most first."""
    order = list(_VERDICTS)
    listed = sorted(survey.problems.values(), key=lambda each: (order.index(each.verdict), -each.rows))
    return [(each.verdict, f"{each.rows:,}", short(each.first, 400)) for each in listed]


def _schema(survey: Survey) -> str:
    columns = f" (columns {short(', '.join(survey.schema.columns), 300)})" if survey.schema.columns else ""
    return survey.schema.name + columns


def _task(survey: Survey, accepted: dict[str, int]) -> str:
    if not accepted:
        return survey.task
    others = [name for name, count in accepted.items() if count == accepted[survey.task] and name != survey.task]
    also = f"; as many are accepted by {', '.join(others)}" if others else ""
    return f"{survey.task}, guessed: it accepts {accepted[survey.task]} of the first rows{also}"


def _pictures(counts: Sequence[int]) -> str:
    names = {0: "without one", 1: "with one"}
    of = Counter(min(count, 2) for count in counts)
    return ", ".join(f"{of[k]:,} {names.get(k, 'with more')}" for k in sorted(of)) or "no row can be read"


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    least, median, largest = (f"{w}×{h}" for w, h in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
    return f"least {least}, median {median}, largest {largest} pixels"


def _answers(survey: Survey) -> list[tuple[str, str]]:
    boxes = [facts.boxes for facts in survey.facts if facts.boxes is not None]
    if boxes:
        per_row = Counter(map(len, boxes))
        shares = [
            100 * ((x2 - x1) * (y2 - y1) / (facts.sizes[0][0] * facts.sizes[0][1])) ** 0.5
            for facts in survey.facts
            if facts.sizes
            for x1, y1, x2, y2 in facts.boxes or ()
        ]
        counts = ", ".join(f"{count} in {rows:,}" for count, rows in sorted(per_row.items())[:6])
        more = sum(rows for _, rows in sorted(per_row.items())[6:])
        found = [("objects per row", f"{counts} rows" + (f", more in {more:,}" if more else ""))]
        if shares:
            sides = f"least {min(shares):.1f}, median {np.median(shares):.1f}, largest {max(shares):.1f} %"
            found.append(("box sizes", f"{sides} of the picture's side (root of the shares of its area)"))
        return found
    answers = [_plain(facts.answer) for facts in survey.facts]
    lengths = [len(answer) for answer in answers]
    common = Counter(answers).most_common(5)
    shown = ", ".join(f"{short(answer, 24)!r} {count:,}×" for answer, count in common)
    return [
        ("answers", f"{len(set(answers)):,} distinct; characters: {_spread(lengths)}"),
        ("most common", shown),
    ]


def _plain(answer: str) -> str:
    """Return the only answer of a list, and other ground truths as they are."""
    try:
        value = json.loads(answer)
    except ValueError:
        return answer
    if isinstance(value, dict) and isinstance(value.get("answer"), str):
        return value["answer"]
    return str(value[0]) if isinstance(value, list) and len(value) == 1 else answer


def _spread(values: Sequence[int]) -> str:
    return f"median {np.median(values):.0f}, 95 % up to {np.percentile(values, 95):.0f}, most {max(values)}"
