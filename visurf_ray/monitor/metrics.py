"""A run's numbers: one JSON object a line in `metrics.jsonl`, and the same names in W&B."""

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.sdk.lib import wbauth

from visurf_ray.config.schema import WandbMode
from visurf_ray.groups import Metrics
from visurf_ray.monitor.files import to_json, write_text
from visurf_ray.monitor.samples import Sample, sample_table

Row = dict[str, Any]


class MetricsLog:
    """Writes the metrics of one run to `output_dir/metrics.jsonl` and to W&B (its files: `output_dir/wandb`).

    `mode` is auto (online when there is an API key, offline otherwise), online, offline or disabled. `run_id` is
    the W&B run to continue; None begins one. Raises RuntimeError when W&B does not answer.
    """

    def __init__(
        self, output_dir: Path, *, config: dict[str, Any], project: str, mode: WandbMode, run_id: str | None, name: str
    ) -> None:
        self.path = output_dir / "metrics.jsonl"
        self.mode = _resolve(mode)
        output_dir.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # advertises itself where vLLM has imported openai
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                id=run_id,
                resume="allow",
                mode=_WANDB_MODES[self.mode],
                dir=output_dir,
                config=config,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.CommError as error:
            raise RuntimeError(
                f"W&B does not answer: {error}. Set monitor.wandb=offline to log to disk alone"
            ) from error
        # W&B's own step only grows. Ours goes back when a run resumes, and is shared by training and evaluation.
        self._run.define_metric("*", step_metric="step")

    @property
    def run_id(self) -> str:
        """What a checkpoint keeps, so that a resumed run continues the same W&B run."""
        return self._run.id

    @property
    def where(self) -> str:
        """Where W&B shows the run, or how to get it there."""
        if self.mode is WandbMode.offline:
            return f"offline; upload with: wandb sync {Path(self._run.dir).parent}"
        return self._run.url or self.mode

    def log(self, step: int, metrics: Metrics) -> None:
        """Append one row. Numbers that are not finite are null in the file; W&B takes them as they are."""
        row = {"step": step} | {name: float(value) for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json({"step": step, "time": time.time()} | row) + "\n")
        self._run.log(row)

    def table(self, step: int, key: str, samples: list[Sample]) -> None:
        """Show `samples` in W&B as a table under `key`."""
        self._run.log({"step": step, key: sample_table(step, samples)})

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, as a run that resumes there writes them again."""
        kept = [to_json(row) + "\n" for row in self.read() if row["step"] <= step]
        write_text(self.path, "".join(kept))

    def read(self) -> list[Row]:
        """The rows written so far, in order. Raises ValueError, naming the line, for one that is not JSON."""
        if not self.path.exists():
            return []
        rows = []
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    break  # a process was killed while it wrote its last line
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{self.path}:{number} is not JSON: {error}") from error
        return rows

    def finish(self, exit_code: int = 0) -> None:
        """Close the W&B run; another exit code than 0 marks it as failed."""
        self._run.finish(exit_code=exit_code)


_WANDB_MODES: dict[WandbMode, Literal["online", "offline", "disabled"]] = {
    WandbMode.online: "online",
    WandbMode.offline: "offline",
    WandbMode.disabled: "disabled",
}


def _resolve(mode: WandbMode) -> WandbMode:
    if mode is WandbMode.auto:
        return WandbMode.online if _has_key() else WandbMode.offline
    return mode


def _has_key() -> bool:
    """Whether W&B finds credentials (environment, stored login); never asks for any."""
    host = wandb.setup().settings.base_url
    return wbauth.authenticate_session(host=host, source="visurf_ray", prompt=False, update_session=False) is not None
