"""The charts of the report: which curves they show, with titles and notes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visurf_ray.groups import without_bounds
from visurf_ray.monitor.figures import Curve
from visurf_ray.monitor.files import Row

_Line = tuple[str, str, str]  # label, metric, colour

# Each source has the same colour in all charts.
ROLLOUT, LABEL = "blue", "orange"
_OTHERS = ("teal", "pink", "purple", "blue", "orange", "grey")

# The metrics of tasks, all between 0 and 1, higher is better: name and meaning. The most important come first.
SCORES = {
    "giou": ("gIoU", "mean overlap of answer and truth"),
    "accuracy": ("Accuracy", "right answers"),
    "relaxed_accuracy": ("Relaxed accuracy", "right answers, numbers within 5 %"),
    "map": ("mAP", "average precision at IoU 0.50 to 0.95"),
    "iou": ("IoU", "mean overlap of the two boxes"),
    "roc_auc": ("ROC AUC", "of the area that an answer marks"),
    "bbox_acc": ("Box accuracy", "boxes found, of objects that are present"),
    "map50": ("mAP 50", "average precision at IoU 0.50"),
    "acc50": ("Box accuracy", "boxes with an IoU above 0.5"),
    "anls": ("ANLS", "similarity of answers as text"),
    "n_acc": ("N-Acc", "empty answers to questions without a target"),
    "ciou": ("cIoU", "overlap of all areas, summed"),
    "accuracy_one": ("Accuracy of one", "right answers with a single item"),
    "ap50_agnostic": ("AP 50", "of all boxes, as one category"),
    "roc_auc_binarised": ("ROC AUC, binarised", "of whether an answer marks anything"),
    "t_acc": ("T-Acc", "answers with an object, of questions with a target"),
    "pr@0.7": ("Pr@0.7", "overlap of at least 0.7, of questions with a target"),
    "pr@0.8": ("Pr@0.8", "overlap of at least 0.8, of questions with a target"),
    "pr@0.9": ("Pr@0.9", "overlap of at least 0.9, of questions with a target"),
    "bbox_acc_any": ("Any box", "any box, or all together, has an IoU above 0.5"),
}
RATES = {
    "format_rate": ("Format rate", "answers that can be read"),
    "thinking_rate": ("Thinking rate", "answers that begin with reasoning"),
}
_SCORE_COLOURS = ("blue", "teal", "orange", "pink")  # the first so many scores are drawn
_RATE_COLOURS = ("grey", "purple")
_PHASES = {
    "sample": "blue",
    "reward": "teal",
    "learn": "orange",
    "sync": "pink",
    "checkpoint": "purple",
}


@dataclass(frozen=True)
class Chart:
    """One chart of the report; `kind`, `low` and `high` are arguments of `figures.figure`."""

    title: str
    note: str
    curves: list[Curve]
    kind: Literal["line", "points", "log", "stack"] = "line"
    low: float | None = None
    high: float | None = None


def charts(rows: list[Row]) -> list[tuple[str, list[Chart]]]:
    """Return the charts by section; a chart without values and a section without charts are omitted."""
    sections = [
        ("What it learned", _outcome(rows)),
        ("What taught it", _guidance(rows)),
        ("How the policy moved", _policy(rows)),
        ("How the machine ran", _machine(rows)),
    ]
    drawn = [(title, [chart for chart in listed if chart.curves]) for title, listed in sections]
    return [(title, listed) for title, listed in drawn if listed]


def _outcome(rows: list[Row]) -> list[Chart]:
    # The loss is shown without rollouts only: at ratio 1 the loss of rollouts is their mean advantage, about 0.
    sampled = any("reward/rollout/total" in row for row in rows)
    loss: list[_Line] = [] if sampled else [("loss", "train/loss", "teal")]
    return [
        *[
            Chart(
                f"Held-out, {part}" if part else "Held-out evaluation",
                "mean over answers",
                _curves(rows, _evaluation(rows, part)),
                "points",
                low=0,
                high=1,
            )
            for part in dict.fromkeys(["", *(name.partition("/")[0] for name in _names(rows, "eval/") if "/" in name)])
        ],
        Chart("Loss", "mean over the batch", _curves(rows, loss)),
        Chart("Reward", "mean over the batch", _by_source(rows, "reward/{}/total")),
        Chart("Reward parts", "of rollouts", _curves(rows, _reward_parts(rows)), low=0),
    ]


def _evaluation(rows: list[Row], part: str = "") -> list[_Line]:
    """Return the lines of a run's scores, or those of a part of a mixture or a held-out set.

    A task of the user's own may have none of the scores that we know: its first ones are drawn.
    """
    prefix = f"eval/{part}/" if part else "eval/"
    measured = [name for name in without_bounds(dict.fromkeys(_names(rows, prefix), 0.0)) if "/" not in name]
    shown = [name for name in SCORES if name in measured] or [name for name in measured if name not in RATES]
    lines = [*zip(shown, _SCORE_COLOURS, strict=False), *zip(RATES, _RATE_COLOURS, strict=True)]
    titles = {name: title for name, (title, _) in (SCORES | RATES).items()}
    return [(titles.get(name, name), prefix + name, colour) for name, colour in lines]


def _guidance(rows: list[Row]) -> list[Chart]:
    active: list[_Line] = [("active", "train/label_active", LABEL)]
    margin: list[_Line] = [("margin", "reward/margin", ROLLOUT)]
    return [
        Chart("Label active", "share of groups where it beats all rollouts", _curves(rows, active), low=0, high=1),
        Chart("Advantage", "mean, where the label is active", _by_source(rows, "advantage/{}")),
        Chart("Reward margin", "best rollout − label", _curves(rows, margin)),
    ]


def _policy(rows: list[Row]) -> list[Chart]:
    norm: list[_Line] = [("norm", "train/grad_norm", "teal")]
    length: list[_Line] = [("tokens", "train/response_length", ROLLOUT)]
    instructive: list[_Line] = [("instructive", "train/instructive_share", ROLLOUT)]
    kept: list[_Line] = [("kept", "train/kept_share", ROLLOUT)]
    rate: list[_Line] = [("rate", "train/learning_rate", "teal")]
    return [
        Chart("Entropy", "nats per token", _by_source(rows, "train/entropy/{}"), low=0),
        Chart("Log-probability", "mean per token", _by_source(rows, "train/logprob/{}")),
        Chart("Response length", "tokens", _curves(rows, length), low=0),
        Chart("Instructive groups", "share with an advantage", _curves(rows, instructive), low=0, high=1),
        Chart("Groups kept", "share of those sampled", _curves(rows, kept), low=0, high=1),
        Chart("Learning rate", "of the optimizer steps", _curves(rows, rate), low=0),
        Chart("Gradient norm", "before clipping", _curves(rows, norm), low=0),
        Chart("Probability ratio", "new / old policy", _by_source(rows, "train/ratio/{}")),
        Chart("Clip share", "of tokens", _by_source(rows, "train/clip_share/{}"), low=0),
    ]


def _machine(rows: list[Row]) -> list[Chart]:
    difference = "train/rollout_logprob_diff"
    diff: list[_Line] = [("mean", difference, "pink"), ("99 %", f"{difference}_p99", "purple")]
    speed: list[_Line] = [("tokens/s", "train/tokens_per_second", "teal")]
    return [
        Chart("Seconds per step", "by phase", _phases(rows), "stack", low=0),
        Chart("Throughput", "tokens per second", _curves(rows, speed), low=0),
        Chart("Sampler − learner", "log-probs of the same tokens, in nats", _curves(rows, diff), "log"),
    ]


def _by_source(rows: list[Row], key: str) -> list[Curve]:
    return _curves(rows, [("rollout", key.format("rollout"), ROLLOUT), ("label", key.format("label"), LABEL)])


def _reward_parts(rows: list[Row]) -> list[_Line]:
    prefix = "reward/rollout/"
    parts = [name for name in _names(rows, prefix) if name != "total" and "/" not in name]  # not by a mixture's part
    return [(name.replace("_", " "), prefix + name, _OTHERS[i % len(_OTHERS)]) for i, name in enumerate(parts)]


def _phases(rows: list[Row]) -> list[Curve]:
    """Return the seconds of each phase in every training step, 0 for a step without the phase."""
    steps = [row for row in rows if "time/step" in row]
    found = [name for name in _names(steps, "time/") if name != "step"]
    names = [name for name in _PHASES if name in found] + [name for name in found if name not in _PHASES]
    full = [row | {f"time/{name}": row.get(f"time/{name}", 0.0) for name in names} for row in steps]
    return _curves(full, [(name, f"time/{name}", _PHASES.get(name, "grey")) for name in names])


def _names(rows: list[Row], prefix: str) -> list[str]:
    """Return the names of metrics that begin with `prefix`, without it, in order of appearance."""
    return list(dict.fromkeys(key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix)))


def _curves(rows: list[Row], lines: Iterable[_Line]) -> list[Curve]:
    """Return a curve for each line that has a finite value. Of several rows for one step, the last counts."""
    curves = []
    for label, key, colour in lines:
        points = {row["step"]: row[key] for row in rows if key in row}
        values = np.array([np.nan if value is None else value for value in points.values()], dtype=float)
        if np.isfinite(values).any():
            curves.append(Curve(label, np.array(list(points), dtype=float), values, colour))
    return curves
