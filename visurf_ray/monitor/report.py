"""The report of a run: `report.html`, one page that needs no other file."""

import base64
import io
import json
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from visurf_ray.aliases import Json
from visurf_ray.groups import Source, bounds_of, without_bounds
from visurf_ray.monitor.charts import LABEL, RATES, ROLLOUT, SCORES, Chart, charts
from visurf_ray.monitor.figures import Curve, figure, smooth
from visurf_ray.monitor.files import Row, write_text
from visurf_ray.monitor.progress import clock, compact
from visurf_ray.monitor.samples import Sample, SampleResponse, draw
from visurf_ray.paper_rows import PaperRow, find_row

_REPEATED = ("pass@", "majority@")  # of evaluations with eval.n > 1
_PICTURE = 252  # pixels of a picture's side: three times a miniature scene
_SOURCE_COLOURS = {Source.ROLLOUT: ROLLOUT, Source.LABEL: LABEL}


def write_report(
    path: Path,
    *,
    config: dict[str, Json],
    summary: dict[str, Json],
    rows: list[Row],
    samples: list[tuple[int | str, list[Sample]]],
    answers: list[tuple[int, list[Sample]]] | None = None,
) -> None:
    """Write the report of a run. What a run does not have (rollouts, labels, an evaluation) is omitted.

    The numbers of the paper's row that monitor.paper_row names are shown beside the run's.

    Args:
        summary: the content of `summary.json`.
        rows: the rows of `metrics.jsonl`.
        samples: responses to show, with their step or a name.
        answers: of evaluations after so many steps, to the same examples in the same order.
    """
    method = str(summary.get("method", _lookup(config, "method", "name")))
    task, model = _lookup(config, "task", "name"), _lookup(config, "model", "path")
    seed = summary.get("seed", config.get("seed"))
    title = f"{method} on {task}"
    paper_row = config.get("monitor", {}).get("paper_row")
    paper = None if paper_row is None else find_row(paper_row, "monitor.paper_row")
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="quiet">{escape(f"model {model} · seed {seed}")}</div>',
        f'<div class="overview">{_before_after(summary, paper)}{_facts(summary, rows, paper)}</div>',
        *_chart_sections(rows),
        *_answer_section(answers or []),
        *_sample_sections(samples),
        "<h2>Configuration</h2>",
        f'<details class="card"><summary>Every key of this run</summary><pre>{escape(to_yaml(config))}</pre></details>',
    ]
    css = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · seed {escape(str(seed))}</title><style>\n{css}</style>"
    )
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
    write_text(path, page)


def to_yaml(config: dict[str, Json], indent: str = "") -> str:
    """Return nested dictionaries as YAML. Values are JSON, which is valid YAML, and plain words without quotes."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:\n{to_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {_yaml_value(value)}\n")
    return "".join(lines)


def _yaml_value(value: Json) -> str:
    words = isinstance(value, str) and re.fullmatch(r"[A-Za-z_/][\w./-]*", value)
    reserved = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
    return str(value) if words and value.lower() not in reserved else json.dumps(value, ensure_ascii=False, default=str)


def _lookup(config: dict[str, Json], section: str, key: str) -> str:
    found = config.get(section)
    return str(found.get(key, "–")) if isinstance(found, dict) else "–"


def _before_after(summary: dict[str, Json], paper: PaperRow | None) -> str:
    before, after = summary.get("before", {}), summary.get("after", {})
    scores = list(without_bounds(after))
    names = _described(scores)
    for part in dict.fromkeys(key.partition("/")[0] for key in scores if "/" in key):  # of a mixture, or a held-out set
        own = [key.removeprefix(f"{part}/") for key in scores if key.startswith(f"{part}/")]
        for key, (name, meaning) in _described(own).items():
            names[f"{part}/{key}"] = (f"{escape(part)}: {name}", meaning)
    shown = [key for key in names if key in after]
    published = paper if paper and any(paper.values(key) for key in shown) else None
    lines = [
        _metric_line(
            *names[key],
            before.get(key),
            after.get(key),
            _paper_cell(key, published) if published else "",
            bounds_of(key, after),
            judged=_higher_is_better(key),
        )
        for key in shown
    ]
    head = (
        '<tr><th>Held-out evaluation</th><th class="way"></th><th class="number">before</th>'
        '<th class="number">after</th>'
        + ('<th class="number">paper</th>' if published else "")
        + '<th class="number">change</th></tr>'
    )
    bounded = any(bounds_of(key, after) for key in shown)
    notes = ["The range below a score is its 95 % bootstrap interval."] if bounded else []
    notes += [f"Paper: {paper.name}.", *paper.notes] if paper else []
    note = f'<p class="quiet">{escape(" ".join(notes))}</p>' if notes else ""
    return f'<div class="card"><table>{head}{"".join(lines)}</table>{note}</div>'


def _described(metrics: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return name and meaning of the metrics that we know, and of those in `metrics`, which may be a user's own."""
    others = {
        key: (escape(key), "of answers sampled to each question" if key.startswith(_REPEATED) else "")
        for key in metrics
        if key not in SCORES | RATES and "/" not in key
    }
    return SCORES | others | RATES


def _higher_is_better(metric: str) -> bool:
    """Return whether we know that a metric, maybe of a part, is better where it is higher."""
    name = metric.rpartition("/")[2]
    return name in SCORES | RATES or name.startswith(_REPEATED)


def _paper_cell(metric: str, paper: PaperRow) -> str:
    """The paper's percentages as fractions, each with its data set and split."""
    numbers = "".join(f"{value / 100:.3f}<small>{escape(split)}</small>" for split, value in paper.values(metric))
    return f'<td class="number">{numbers or "–"}</td>'


def _metric_line(
    name: str,
    meaning: str,
    before: float | None,
    after: float | None,
    paper: str,
    bounds: tuple[float, float] | None,
    *,
    judged: bool,
) -> str:
    """Return a row of the table.

    Args:
        paper: the HTML of the paper's cell, or nothing.
        bounds: of the interval of `after`.
        judged: whether a change is shown as good or bad.
    """
    interval = f"<small>{bounds[0]:.3f} – {bounds[1]:.3f}</small>" if bounds else ""
    numbers = [value if value is not None and np.isfinite(value) else None for value in (before, after)]
    shown = ["–" if value is None else f"{value:.3f}" for value in numbers]
    change, track = "–", ""
    first, last = numbers
    if first is not None and last is not None:
        difference = round(last - first, 3)
        direction = ("up" if difference > 0 else "down") if judged else "quiet"
        change = f'<span class="{direction}">{difference:+.3f}</span>'.replace("-", "−") if difference else "0.000"
        if min(first, last) >= 0 and max(first, last) <= 1:
            track = _track(first, last)
    return (
        f'<tr><td>{name}<small>{meaning}</small></td><td class="way">{track}</td><td class="number">{shown[0]}</td>'
        f'<td class="number after">{shown[1]}{interval}</td>{paper}<td class="number">{change}</td></tr>'
    )


def _track(first: float, last: float) -> str:
    """Return a line from 0 to 1 with the two values on it."""
    left, width = 100 * min(first, last), 100 * abs(last - first)
    return (
        f'<span class="track"><i class="rail"></i><i class="span" style="left:{left:.1f}%;width:{width:.1f}%"></i>'
        f'<i class="dot from" style="left:{100 * first:.1f}%"></i>'
        f'<i class="dot to" style="left:{100 * last:.1f}%"></i></span>'
    )


def _facts(summary: dict[str, Json], rows: list[Row], paper: PaperRow | None) -> str:
    facts: dict[str, str] = {}
    if "steps" in summary:
        facts["Steps"] = str(summary["steps"])
    if "train_seconds" in summary:
        facts["Training time"] = clock(summary["train_seconds"])
    if best := summary.get("best"):
        facts[f"Best {best['metric']}"] = f"{best['value']:.3f} at step {best['step']}"
    if seconds := _mean(rows, "time/step"):
        facts["Seconds per step"] = f"{seconds:.2f}"
        for _, value in paper.values("time/step") if paper else ():
            facts["Seconds per step, paper"] = f"{value:.2f}"
    if speed := _mean(rows, "train/tokens_per_second"):
        facts["Tokens per second"] = compact(speed)
    lines = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()]
    if versions := summary.get("versions"):
        lines.append("<hr>")
        lines += [f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in versions.items()]
    return f'<div class="card"><dl>{"".join(lines)}</dl></div>'


def _mean(rows: list[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None


def _chart_sections(rows: list[Row]) -> list[str]:
    last_step = max((row["step"] for row in rows), default=0)
    return [
        f'<h2>{title}</h2><div class="charts">{"".join(_chart(chart, last_step) for chart in listed)}</div>'
        for title, listed in charts(rows)
    ]


def _chart(chart: Chart, last_step: float) -> str:
    key = "".join(
        f'<span><i class="swatch" style="background:var(--{curve.colour})"></i>{escape(curve.label)} '
        f"<b>{_latest(curve, chart.kind)}</b></span>"
        for curve in chart.curves
    )
    svg = figure(chart.curves, chart.kind, last_step=last_step, low=chart.low, high=chart.high)
    return (
        f'<figure class="card"><div class="heading"><h3>{chart.title}</h3><span class="quiet">{chart.note}</span></div>'
        f'<div class="key">{key}</div>{svg}</figure>'
    )


def _latest(curve: Curve, kind: str) -> str:
    """Return the last value of a curve as it is drawn, for the chart's key."""
    values = smooth(curve.values) if kind in ("line", "stack") else curve.values
    last = float(values[np.isfinite(values)][-1])
    return (f"{last:.3g}" if abs(last) < 1000 else compact(last)).replace("-", "−")


def _answer_section(answers: list[tuple[int, list[Sample]]]) -> list[str]:
    """Show each example with its answers, evaluation by evaluation."""
    if not answers:
        return []
    cards = []
    for place, first in enumerate(answers[0][1]):
        shown = [(f"step {step}", samples[place]) for step, samples in answers]
        cards.append(_card(first, [_response(sample, sample.responses[0], said) for said, sample in shown]))
    return ["<h2>Answers to held-out questions</h2>", *cards]


def _sample_sections(samples: list[tuple[int | str, list[Sample]]]) -> list[str]:
    return [
        f"<h2>Responses, {f'step {step}' if isinstance(step, int) else escape(step)}</h2>"
        + "".join(_sample(sample) for sample in listed)
        for step, listed in samples
        if listed
    ]


def _sample(sample: Sample) -> str:
    return _card(sample, [_response(sample, response, response.source) for response in sample.responses])


def _card(sample: Sample, responses: list[str]) -> str:
    legend = "" if sample.truth is None else _legend(len(sample.truth))
    return (
        f'<div class="card sample"><h3>{escape(sample.question)}</h3>{legend}'
        f'<div class="responses">{"".join(responses)}</div></div>'
    )


def _legend(boxes: int) -> str:
    truth = {0: "no box", 1: "one box"}.get(boxes, f"{boxes} boxes")
    return (
        f'<p class="quiet"><i class="swatch" style="background:var(--truth)"></i>truth: {truth} '
        f'<i class="swatch" style="background:var(--answer);margin-left:12px"></i>answer</p>'
    )


def _response(sample: Sample, response: SampleResponse, said: str) -> str:
    """The picture and the text of a response. said: what the coloured mark says."""
    file = io.BytesIO()
    draw(sample, response, _PICTURE).save(file, format="PNG", optimize=True)
    picture = base64.b64encode(file.getvalue()).decode("ascii")
    parts = "".join(
        f"<span>{escape(name.replace('_', ' '))} {value:.2g}</span>" for name, value in response.parts.items()
    )
    smoothed = "" if response.smoothed_from is None else f", smoothed from {response.smoothed_from:.2f}"
    advantage = ""
    if response.advantage is not None:
        direction = "up" if response.advantage > 0 else "down" if response.advantage < 0 else "quiet"
        advantage = f'<span>advantage <b class="{direction}">{response.advantage:+.2f}</b></span>'.replace("-", "−")
    reward = "" if response.reward is None else f"<span>reward <b>{response.reward:.2f}</b>{smoothed}</span>"
    text = re.sub(r"(&lt;/?(?:think|answer)&gt;)", r"<em>\1</em>", escape(response.text))
    return (
        f'<div class="response"><img alt="" src="data:image/png;base64,{picture}"><div><div class="scores">'
        f'<span class="source" style="background:var(--{_SOURCE_COLOURS[response.source]})">{said}</span>'
        f"{reward}{advantage}</div>"
        f'<div class="parts">{parts}</div><pre>{text}</pre></div></div>'
    )
