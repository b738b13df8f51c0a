"""A run's metrics: one JSON object per line in `metrics.jsonl`, and under the same names in W&B."""

import atexit
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import wandb

from visurf_ray.aliases import Json
from visurf_ray.config.choices import WandbMode
from visurf_ray.errors import UserError, writing
from visurf_ray.groups import Metrics
from visurf_ray.monitor.files import Row, to_json, write_text

_PATIENCE = 30.0  # seconds for W&B to answer


class MetricsLog:
    """Writes the metrics of one run to `output_dir/metrics.jsonl` and to W&B (its files: `output_dir/wandb`)."""

    def __init__(
        self,
        output_dir: Path,
        *,
        config: dict[str, Json],
        project: str,
        mode: WandbMode,
        run_id: str | None,
        name: str,
    ) -> None:
        """Begin the W&B run, or continue it.

        Args:
            mode: `auto` takes the mode that WANDB_MODE or WANDB_DISABLED names. If neither is set, it is online if
                W&B finds credentials, else offline. If W&B does not answer, the mode becomes offline.
            run_id: the W&B run to continue; None begins one.

        Raises:
            UserError: WANDB_MODE is unknown, or the API key cannot be one.
        """
        self.path = output_dir / "metrics.jsonl"
        self.mode = _resolve(mode)
        if os.environ.get("WANDB_MODE", self.mode) not in _WANDB_MODES:  # empty, or in other capitals: W&B refuses it
            os.environ["WANDB_MODE"] = self.mode
        output_dir.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # it prints an advertisement once vLLM has imported openai
        begin = partial(
            wandb.init,
            project=project,
            name=name,
            id=run_id,
            resume="allow",
            dir=output_dir,
            config=config,
            settings=wandb.Settings(silent=True, console="off", init_timeout=_PATIENCE),
        )
        self._silent = ""  # why W&B does not answer
        self._in_wandb: set[tuple[int, bool]] = set()  # rows that W&B has already, by step and whether they are scores
        try:
            self._run = begin(mode=_WANDB_MODES[self.mode])
        except wandb.errors.CommError as error:
            self.mode, self._silent = WandbMode.offline, " ".join(str(error).split())
            self._run = begin(mode="offline")
        atexit.unregister(_end_wandb)
        atexit.register(_end_wandb)  # after W&B's own, and so called before it
        # Not W&B's own step, which can only grow: ours goes back when a run resumes from an older checkpoint.
        self._run.define_metric("*", step_metric="step")

    @property
    def run_id(self) -> str:
        """The id of the W&B run, with which a resumed run continues it."""
        return self._run.id

    @property
    def where(self) -> str:
        """The address of the run in W&B, or how to upload it."""
        if self.mode == WandbMode.offline:
            why = f", because W&B does not answer ({self._silent:.200})" if self._silent else ""
            return f"offline{why}; upload with: wandb sync {Path(self._run.dir).parent}"
        return self._run.url or self.mode

    def log(self, step: int, metrics: Metrics) -> None:
        """Append one row. Numbers that are not finite are null in the file; W&B receives them as they are.

        W&B does not receive a row that repeats one which `rewind` has removed: it cannot take the first one back.
        """
        row = {"step": step} | {name: float(value) for name, value in metrics.items()}
        with writing(self.path.name, self.path.parent):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_json({"step": step, "time": time.time()} | row) + "\n")
            if (step, _has_scores(row)) not in self._in_wandb:
                self._run.log(row)

    def table(self, step: int, key: str, table: wandb.Table) -> None:
        """Show a table in W&B under `key`, unless it repeats one, like a row; see `log`."""
        if (step, key.startswith(_SCORE)) in self._in_wandb:
            return
        with writing("W&B's table of samples", self.path.parent):
            self._run.log({"step": step, key: table})

    def rewind(self, step: int, *, repeats: bool = False) -> list[int]:
        """Remove the rows after `step`; a run that goes on there writes them again.

        Args:
            repeats: whether it takes the same steps again, and no others. W&B then keeps the rows that it has.

        Returns:
            The steps of these rows; none without `repeats`.
        """
        if repeats:
            self._in_wandb |= {(row["step"], _has_scores(row)) for row in self.read() if row["step"] > step}
        self._keep(lambda row: row["step"] <= step)
        return sorted({shown for shown, _ in self._in_wandb if shown > step}) if repeats else []

    def drop_evaluation(self, step: int) -> None:
        """Remove the scores of the evaluation after so many steps, which is made again."""
        self._keep(lambda row: row["step"] != step or not _has_scores(row))

    def _keep(self, wanted: Callable[[Row], bool]) -> None:
        write_text(self.path, "".join(to_json(row) + "\n" for row in self.read() if wanted(row)))

    def read(self) -> list[Row]:
        """Return the rows written so far, in order.

        Raises:
            ValueError: a line is not JSON.
        """
        if not self.path.exists():
            return []
        rows = []
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    break  # the process was killed while it wrote its last line
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{self.path}:{number} is not JSON: {error}") from error
        return rows

    def finish(self) -> None:
        """Close the W&B run."""
        self._run.finish()

    def fail(self) -> None:
        """Close the W&B run, and mark it as failed."""
        with suppress(ConnectionError):  # `ray job stop` stops W&B's own process together with this one
            self._run.finish(exit_code=1)


def _end_wandb() -> None:
    """End W&B's own process when this one exits. W&B does so as well, with a traceback if its process has ended."""
    with suppress(ConnectionError):
        wandb.teardown()


_SCORE = "eval/"  # the beginning of the names of an evaluation's scores


def _has_scores(row: Row) -> bool:
    return any(name.startswith(_SCORE) for name in row)


_WANDB_MODES: dict[WandbMode, Literal["online", "offline", "disabled"]] = {
    WandbMode.online: "online",
    WandbMode.offline: "offline",
    WandbMode.disabled: "disabled",
}


_OTHER_NAMES = {"dryrun": "offline", "run": "online"}  # W&B's own, of old


def check_wandb(mode: WandbMode) -> None:
    """Check before a run whether it can log to W&B as `monitor.wandb` and W&B's variables say.

    Raises:
        UserError: WANDB_MODE is unknown; or the mode is online without an API key.
    """
    if _resolve(mode) == WandbMode.online and not _has_key():
        key = "monitor.wandb=online" if mode == WandbMode.online else f"WANDB_MODE={os.environ['WANDB_MODE']}"
        raise UserError(
            f"{key}, but W&B has no API key: set WANDB_API_KEY, run `wandb login`, or set monitor.wandb=offline"
        )


def _resolve(mode: WandbMode) -> WandbMode:
    """Return the mode that `auto` stands for; another mode is returned as it is."""
    if mode != WandbMode.auto:
        return mode
    if os.environ.get("WANDB_DISABLED", "").casefold() in ("true", "1", "yes", "on"):
        return WandbMode.disabled
    if named := os.environ.get("WANDB_MODE"):
        chosen = _OTHER_NAMES.get(named.casefold(), named.casefold())
        if chosen not in _WANDB_MODES:
            raise UserError(f"WANDB_MODE={named} is unknown: set it to {', '.join(_WANDB_MODES)}, or unset it")
        return WandbMode(chosen)
    return WandbMode.online if _has_key() else WandbMode.offline


def _has_key() -> bool:
    """Look for credentials in the environment and the stored login, without asking the server.

    Raises:
        UserError: W&B refuses the key, or one of its variables.
    """
    if not os.environ.get("WANDB_MODE"):
        os.environ.pop("WANDB_MODE", None)  # W&B itself refuses an empty one
    try:
        wandb.setup(settings=wandb.Settings(silent=True))
        return wandb.login(prompt=False, verify=False)
    except (wandb.errors.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"W&B cannot be set up: {reason}. Correct this, or set monitor.wandb=offline") from error
