"""Monitoring of a run: the progress display, `metrics.jsonl` and W&B, sample responses, and the report at the end."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from visurf_ray.aliases import Json
from visurf_ray.cluster.supervision import Fault
from visurf_ray.config.choices import WandbMode
from visurf_ray.groups import Example, Group, Metrics, Prediction
from visurf_ray.monitor.card import write_card
from visurf_ray.monitor.files import to_json, write_text
from visurf_ray.monitor.metrics import MetricsLog, check_wandb
from visurf_ray.monitor.progress import Progress
from visurf_ray.monitor.report import write_report
from visurf_ray.monitor.samples import Sample, SampleChooser, answer_table, sample_table
from visurf_ray.monitor.teaching import SHARE, why_nothing_teaches

__all__ = ["Monitor", "SampleChooser", "check_wandb", "write_card"]

_LATEST_SAMPLES = 2  # tables of samples in the report, besides the first
_SHOWN_EVALUATIONS = 8  # the most evaluations whose answers the report shows


class Monitor:
    """Records and shows one run; its files are in `output_dir`. `summary.json` exists only if the run has finished."""

    def __init__(
        self,
        output_dir: Path,
        *,
        config: dict[str, Json],
        project: str,
        wandb: WandbMode,
        total_steps: int,
        run_id: str | None = None,
        start_step: int = 0,
        repeats: bool = False,
        samples: SampleChooser | None = None,
        warn_logprob_diff: float | None = None,
        warn_equal_rewards: int | None = None,
        faults: Sequence[Fault] = (),
    ) -> None:
        """Begin a run, or resume one.

        Args:
            config: the run's configuration, for W&B and the report.
            project: the W&B project.
            wandb: see `MetricsLog`; so for what is raised.
            total_steps: the step at which the run ends.
            run_id: the W&B run of the checkpoint to resume from; None for a new run.
            start_step: the step of that checkpoint. Later rows of `metrics.jsonl` are removed; all rows if it is 0.
            repeats: whether the rows that are removed will be written again as they were. W&B then keeps those that it
                has, and does not get them twice.
            samples: chooses the responses to show; None shows none.
            warn_logprob_diff: see `monitor.warn_logprob_diff`.
            warn_equal_rewards: see `monitor.warn_equal_rewards`.
            faults: those of the run so far; the list grows. Once there are any, each row has their number as `faults`.
        """
        self._output_dir = output_dir
        self._config = config
        self._metrics = MetricsLog(
            output_dir, config=config, project=project, mode=wandb, run_id=run_id, name=output_dir.name
        )
        self._start_step = start_step
        shown = self._metrics.rewind(start_step if start_step > 0 else -1, repeats=repeats and run_id is not None)
        for name in ("summary.json", "report.html"):
            (output_dir / name).unlink(missing_ok=True)
        self._chooser = samples
        self._warned: set[str] = set()
        self._warn_logprob_diff = warn_logprob_diff
        self._warn_equal_rewards = warn_equal_rewards
        self._faults = faults
        self._untaught = 0  # steps in a row without an advantage
        self._samples: list[tuple[int | str, list[Sample]]] = []
        self._answers: list[tuple[int, list[Sample]]] = []
        self._progress = Progress(total_steps, start_step=start_step)
        self._progress.say(f"W&B   {self._metrics.where}")
        self._tell_shown(shown)

    def rewind(self, step: int) -> None:
        """Go back to the state after so many steps, to repeat the later ones: remove their rows of `metrics.jsonl`.

        All rows are removed if it is 0.
        """
        self._tell_shown(self._metrics.rewind(step if step > 0 else -1, repeats=True))
        self._samples = [(number, samples) for number, samples in self._samples if int(number) <= step]
        self._answers = [(number, samples) for number, samples in self._answers if number <= step]
        self._progress.take_times()

    def _tell_shown(self, steps: Sequence[int]) -> None:
        """Tell of steps that W&B has, and that are repeated."""
        if steps and self._metrics.mode != WandbMode.disabled:
            self._progress.say(
                f"W&B   keeps its rows of steps {steps[0]} to {steps[-1]}, which cannot be replaced; metrics.jsonl and "
                "the report will have the repeated ones"
            )

    def faults(self) -> list[dict[str, Json]]:
        """Return the faults of the run so far, for the checkpoint and the summary."""
        return [asdict(fault) for fault in self._faults]

    @property
    def run_id(self) -> str:
        """The W&B run's id, for the checkpoint."""
        return self._metrics.run_id

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time and show a phase of a step: sample, reward, learn, sync, evaluate, … Phases do not nest."""
        return self._progress.phase(name)

    def log(self, step: int, metrics: Metrics) -> None:
        """Record a training step, with the seconds that each phase took since the last one, as `time/<phase>`."""
        times = self._progress.take_times()
        row = metrics | times | {"time/step": sum(times.values())}
        self._log(step, row)
        self._progress.step(step, row)
        self._check_mismatch(metrics.get("train/rollout_logprob_diff_p99", 0.0))
        if SHARE in metrics:
            self._check_advantages(step, metrics)

    def _check_mismatch(self, difference: float) -> None:
        """Warn, once in a run, that sampler and learner are not the same policy.

        Args:
            difference: the 99th percentile of the absolute differences of their log-probs, in nats.
        """
        if self._warn_logprob_diff is None or difference <= self._warn_logprob_diff:
            return
        self.warn_once(
            "mismatch",
            f"sampler and learner disagree: of the same tokens, 1 % differ by more than {difference:.2g} nats "
            f"(monitor.warn_logprob_diff={self._warn_logprob_diff:g}). Compare rollout.dtype with learner.dtype, set "
            "learner.head_dtype=float32, and look at the attention kernels of both sides, at whether every weight sync "
            "succeeded, and at pipeline.max_staleness. pipeline.importance=token or sequence corrects what remains. "
            "The charts train/rollout_… show how it develops; this warning is given once.",
        )

    def _check_advantages(self, step: int, metrics: Metrics) -> None:
        """Warn if no group has taught for several steps, and again only if one has taught in between."""
        if metrics[SHARE] > 0:
            self._untaught = 0
            return
        self._untaught += 1
        if self._untaught == self._warn_equal_rewards:
            self._progress.say(
                f"WARNING: step {step}: for {self._untaught} steps (monitor.warn_equal_rewards) the rewards of each "
                f"group have all been equal, so nothing is learnt. {why_nothing_teaches(metrics)}."
            )

    def log_eval(self, step: int, metrics: Metrics) -> None:
        """Record the scores of an evaluation as `eval/<name>`, with the seconds of the phase `evaluate`."""
        row = {f"eval/{name}": value for name, value in metrics.items()} | self._progress.take_times("evaluate")
        if 0 < step == self._start_step:  # the run was stopped after this evaluation, before its next checkpoint
            self._metrics.drop_evaluation(step)
        self._log(step, row)
        self._progress.evaluation(step, metrics)

    def _log(self, step: int, row: Metrics) -> None:
        """Record a row with the number of faults, and note the step at the faults since the last row."""
        for fault in self._faults:
            fault.step = step if fault.step is None else fault.step
        self._metrics.log(step, row | ({"faults": float(len(self._faults))} if self._faults else {}))

    def warn_once(self, subject: str, warning: str) -> None:
        """Show a warning, unless the run has shown one of the same subject before."""
        if subject not in self._warned:
            self._warned.add(subject)
            self._progress.say(f"WARNING: {warning}")

    def show_samples(self, step: int, groups: Sequence[Group]) -> None:
        """Show some responses of a step in W&B, if they are due; the report shows the first and the latest of them."""
        if self._chooser is None or not self._chooser.due(step):
            return
        samples = self._chooser.choose(groups)
        self._metrics.table(step, "samples", sample_table(step, samples))
        self._samples.append((step, samples))
        if len(self._samples) > 1 + _LATEST_SAMPLES:
            del self._samples[1]

    def show_answers(self, step: int, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
        """Show the answers of an evaluation to the first held-out examples, in W&B and in the report.

        The report shows those of the first evaluation, of the last, and of some between them.

        Args:
            predictions: see `SampleChooser.answered`.
        """
        if self._chooser is None or not (samples := self._chooser.answered(examples, predictions)):
            return
        self._metrics.table(step, "eval/answers", answer_table(step, samples))
        self._answers.append((step, samples))
        if len(self._answers) > _SHOWN_EVALUATIONS:
            del self._answers[1:-1:2]

    def finish(self, summary: dict[str, Json]) -> None:
        """End a run that succeeded: write `report.html`, then `summary.json`, then finish W&B's upload."""
        self._progress.close()
        write_report(
            self._output_dir / "report.html",
            config=self._config,
            summary=summary,
            rows=self._metrics.read(),
            samples=self._samples,
            answers=self._answers,
        )
        write_text(self._output_dir / "summary.json", to_json(summary, indent=2) + "\n")
        self._metrics.finish()

    def close(self) -> None:
        """End a run that failed: keep its metrics, mark it as failed in W&B, and write no summary."""
        self._progress.close()
        self._metrics.fail()
