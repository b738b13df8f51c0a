"""Writes a survey as one page that needs no other file."""

import base64
import io
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from visurf_ray.config.schema import Config
from visurf_ray.errors import short
from visurf_ray.groups import Source
from visurf_ray.inspection.numbers import lines, problems
from visurf_ray.inspection.survey import Shown, Survey
from visurf_ray.monitor.files import write_text
from visurf_ray.monitor.samples import Sample, SampleResponse, draw

_SIDE = 336  # pixels of a picture's longer side
_TEXT = 4000  # characters of a prompt or a label
_STYLE = """
.reasons :is(td, th):last-child { overflow-wrap: anywhere; padding-left: 18px; }
.facts dd { text-align: left; }
.row { display: grid; grid-template-columns: 350px minmax(0, 1fr); gap: 20px; margin-bottom: 16px; }
.row img { max-width: 100%; border-radius: 4px; }
.row pre { max-height: 300px; padding: 8px 10px; overflow: auto; border-radius: 8px; background: var(--soft);
  white-space: pre-wrap; overflow-wrap: anywhere; }
.row h3 { margin: 8px 0 4px; overflow-wrap: anywhere; }
@media (max-width: 720px) { .row { grid-template-columns: minmax(0, 1fr); } }
"""


def write_page(path: Path, survey: Survey, config: Config) -> None:
    """Write the page. Raises DiskFullError if there is no space."""
    css = files("visurf_ray.monitor").joinpath("report.css").read_text(encoding="utf-8")
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines(survey, config, {}))
    reasons = "".join(
        f'<tr><td>{escape(verdict)}</td><td class="number">{count}</td><td>{escape(message)}</td></tr>'
        for verdict, count, message in problems(survey)
    )
    head = '<tr><th>verdict</th><th class="number">rows</th><th>the first one</th></tr>'
    body = [
        "<h1>A look at the data</h1>",
        f'<div class="quiet">task {escape(survey.task)} · model {escape(config.model.path)}</div>',
        f'<div class="card" style="margin-top:26px"><dl class="facts">{facts}</dl></div>',
        "<h2>Rows that are not used as they are</h2>",
        f'<div class="card reasons"><table>{head}{reasons}</table></div>' if reasons else "<p>None.</p>",
        "<h2>Samples, as the model sees them</h2>" if survey.shown else "",
        *map(_row, survey.shown),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(short(survey.source))}</title><style>\n{css}{_STYLE}</style></head>\n<body>\n"
    )
    write_text(path, page + "\n".join(body) + "\n</body></html>\n")


def _row(shown: Shown) -> str:
    # Boxes are those of a task's only picture.
    pictures = "".join(_picture(image, shown.boxes if len(shown.images) == 1 else None) for image in shown.images)
    texts = "".join(
        f"<h3>{name}</h3><pre>{escape(short(text, _TEXT))}</pre>"
        for name, text in (("Prompt", shown.prompt), ("Label", shown.label))
    )
    return (
        f'<div class="card row"><div>{pictures or "<p>no picture</p>"}</div>'
        f'<div><span class="quiet">{escape(shown.where)}</span>{texts}</div></div>'
    )


def _picture(image: Image.Image, boxes: list[tuple[float, float, float, float]] | None) -> str:
    nothing = SampleResponse(Source.LABEL, "", 0.0, {}, None, [])
    file = io.BytesIO()
    draw(Sample(image, "", boxes, []), nothing, _SIDE).save(file, format="PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode("ascii")}">'
