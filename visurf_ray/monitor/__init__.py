"""Watching a run: the progress display, `metrics.jsonl` and W&B, sample responses, and the report at the end."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from visurf_ray.config.schema import WandbMode
from visurf_ray.groups import Metrics
from visurf_ray.monitor.files import to_json, write_text
from visurf_ray.monitor.metrics import MetricsLog
from visurf_ray.monitor.progress import Progress
from visurf_ray.monitor.report import write_report
from visurf_ray.monitor.samples import Sample, SampleResponse

__all__ = ["Monitor", "Sample", "SampleResponse"]

_LATEST_SAMPLES = 2  # tables of samples that the report shows besides the first


class Monitor:
    """Everything that is watched in one run; its files lie in `output_dir`.

    `wandb` is auto, online, offline or disabled. A run that resumes gives the `run_id` and the step of its checkpoint;
    later rows of `metrics.jsonl` are dropped, all of them when `start_step` is 0. `summary.json` exists when, and only
    when, the run has finished. Raises as `MetricsLog` does.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        config: dict[str, Any],
        project: str,
        wandb: WandbMode,
        total_steps: int,
        run_id: str | None = None,
        start_step: int = 0,
    ) -> None:
        self._output_dir = output_dir
        self._config = config
        self._metrics = MetricsLog(
            output_dir, config=config, project=project, mode=wandb, run_id=run_id, name=output_dir.name
        )
        self._metrics.rewind(start_step if start_step > 0 else -1)
        for name in ("summary.json", "report.html"):
            (output_dir / name).unlink(missing_ok=True)
        self._samples: list[tuple[int | str, list[Sample]]] = []
        self._progress = Progress(total_steps, start_step=start_step)
        self._progress.say(f"W&B   {self._metrics.where}")

    @property
    def run_id(self) -> str:
        """The W&B run's id, for the checkpoint."""
        return self._metrics.run_id

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time and show a phase of the step: sample, reward, learn, sync, evaluate, … Phases do not nest."""
        return self._progress.phase(name)

    def log(self, step: int, metrics: Metrics) -> None:
        """Record a training step, with the seconds of each phase since the last one (`time/<phase>`, `time/step`)."""
        times = self._progress.take_times()
        row = metrics | times | {"time/step": sum(times.values())}
        self._metrics.log(step, row)
        self._progress.step(step, row)

    def log_eval(self, step: int, metrics: Metrics) -> None:
        """Record an evaluation, `{"giou": …}`, as `eval/giou`, with the seconds of the phase `evaluate`."""
        row = {f"eval/{name}": value for name, value in metrics.items()} | self._progress.take_times("evaluate")
        self._metrics.log(step, row)
        self._progress.evaluation(step, metrics)

    def show_samples(self, step: int, samples: list[Sample]) -> None:
        """A W&B table of `samples`; the first table and the latest ones come into the report too."""
        self._metrics.table(step, "samples", samples)
        self._samples.append((step, samples))
        if len(self._samples) > 1 + _LATEST_SAMPLES:
            del self._samples[1]

    def finish(self, summary: dict[str, Any]) -> None:
        """End a run that succeeded: `report.html`, then `summary.json`, then W&B's upload."""
        self._progress.close()
        write_report(
            self._output_dir / "report.html",
            config=self._config,
            summary=summary,
            rows=self._metrics.read(),
            samples=self._samples,
        )
        write_text(self._output_dir / "summary.json", to_json(summary, indent=2) + "\n")
        self._metrics.finish()

    def close(self) -> None:
        """End a run that failed: its metrics stay, W&B marks it as failed, and there is no summary."""
        self._progress.close()
        self._metrics.finish(exit_code=1)
