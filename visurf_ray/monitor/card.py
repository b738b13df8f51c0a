"""The model card of an export: `README.md`, as the Hugging Face hub shows it."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from visurf_ray.aliases import Json
from visurf_ray.errors import writing
from visurf_ray.groups import Metrics, bounds_of, without_bounds
from visurf_ray.monitor.report import to_yaml

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# The settings that a reader needs to judge a run; the section `method` is shown whole.
_SHOWN = {
    "train": ("steps", "batch_size"),
    "learner": ("learning_rate", "schedule", "weight_decay", "max_grad_norm", "minibatches", "epochs", "lora"),
    "rollout": ("n", "temperature", "max_tokens"),
    "task": ("prompt", "absent_share"),
    "model": ("max_pixels",),
    "reward": ("name", "options", "function"),
    "eval": ("examples", "n", "temperature"),
}


def write_card(folder: Path, *, config: dict[str, Json], summary: dict[str, Json], overrides: Sequence[str]) -> None:
    """Write the model card of a run's export.

    Args:
        folder: the export.
        config: the run's configuration.
        summary: the content of `summary.json`.
        overrides: those of the run's command line.
    """
    method, task, model = config["method"]["name"], config["task"], config["model"]["path"]
    tasks = task.get("parts") or {"": task}  # of a mixture
    data = ModelCardData(
        base_model=model if _on_hub(model) else None,
        datasets=list(dict.fromkeys(_data_sets(tasks.values()))) or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=list(dict.fromkeys(["visurf", method])),
    )
    settings: dict[str, Json] = {"seed": config["seed"]}
    for section, keys in _SHOWN.items():
        settings[section] = {key: config[section][key] for key in keys if key in config[section]}
    if task.get("parts"):
        settings["task"] = {"parts": task["parts"]}
    settings["method"] = config["method"]
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {method} on {task['name']}",
        f"`{model}` after {summary.get('steps')} steps of `method={method}` with visurf_ray, an implementation of "
        "[ViSurf](https://arxiv.org/abs/2510.10606).",
        "## Data",
        "\n\n".join(_data(name, each) for name, each in tasks.items()),
        "## Scores",
        _scores(summary.get("before") or {}, summary.get("after") or {}),
        "## Settings",
        f"```yaml\n{to_yaml(settings)}```",
        "## Command",
        f"```bash\npython -m visurf_ray.train {shlex.join(overrides)}".rstrip() + "\n```",
        f"Versions: {versions}." if versions else "",
    ]
    with writing("README.md", folder):
        ModelCard("\n\n".join(part for part in parts if part) + "\n").save(folder / "README.md")


def _data(part: str, task: dict[str, Json]) -> str:
    """A list of a task and its data; of a mixture's part with its name and weight."""
    lines = [
        f"- task: `{task['name']}`",
        f"- training: {_code(task['train'])}",
        f"- held out: {_code(task['held_out'])}",
    ]
    if part:
        lines = [f"Part `{part}`, weight {task['weight']:g}:", "", *lines]
    return "\n".join(lines)


def _scores(before: Metrics, after: Metrics) -> str:
    """A table in Markdown; a metric that has no interval has an empty cell."""
    lines = ["| held-out metric | before | after | 95 % interval of after |", "|---|---|---|---|"]
    for name, value in without_bounds(after).items():
        first = f"{before[name]:.3f}" if name in before else ""
        bounds = bounds_of(name, after)
        interval = f"{bounds[0]:.3f} – {bounds[1]:.3f}" if bounds else ""
        lines.append(f"| `{name}` | {first} | {value:.3f} | {interval} |")
    return "\n".join(lines)


def _sources(value: Json) -> list[str]:
    """Return the names in task.train or task.held_out."""
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def _data_sets(tasks: Iterable[dict[str, Json]]) -> Iterator[str]:
    """Yield the training data sets of the hub, as owner/name: without a configuration and a split."""
    for source in (source for task in tasks for source in _sources(task["train"])):
        name = "/".join(source.partition(":")[0].split("/")[:2])
        if _on_hub(name) and not Path(source).exists():
            yield name


def _code(value: Json) -> str:
    return ", ".join(f"`{name}`" for name in _sources(value))


def _on_hub(name: str) -> bool:
    """Return whether a name can be one of the hub: the hub refuses a card with others."""
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()
