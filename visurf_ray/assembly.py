"""Assembles a run: checks everything that can be checked, starts the actors, and trains. See `checks` and `actors`."""

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from visurf_ray.actors import reserve, start_data, start_policy, start_rewards, start_segmentation
from visurf_ray.aliases import Json, Processor
from visurf_ray.checkpoints.stored import State
from visurf_ray.checkpoints.writing import Checkpoints, written_whole
from visurf_ray.checks import check, check_budget, plan_run, versions
from visurf_ray.cluster.reservation import await_room
from visurf_ray.cluster.resources import connected
from visurf_ray.cluster.supervision import Supervisor
from visurf_ray.config.schema import Config, to_dict
from visurf_ray.driver import Driver
from visurf_ray.errors import LearnerLostError, during, phase_of, writing
from visurf_ray.feed.feed import DataFeed
from visurf_ray.feed.strictness import Dropped
from visurf_ray.groups import Group, Response, Source, TokenSpan
from visurf_ray.hub import upload
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.learner.proof import TOLERANCE, prove_packing
from visurf_ray.monitor import Monitor, SampleChooser, write_card
from visurf_ray.resume_checks import with_rows
from visurf_ray.rollout.pool import PROBE_TOKENS, RolloutPool
from visurf_ray.stages import build_stages
from visurf_ray.tasks.tasks import Tasks


def train(config: Config, overrides: Sequence[str] = ()) -> Path:
    """Run a training job; returns the output folder. Writes nothing before everything is checked and started.

    Args:
        overrides: those of the command line, for the model card.
    """
    checked = check(config)
    output, processor = checked.output, checked.processor
    with ExitStack() as stack:
        stack.enter_context(connected(config.cluster.address))
        await_room(partial(plan_run, config), patience(config, output))  # before the data are read
        supervisor = Supervisor(config.cluster.max_restarts, config.cluster.health_timeout)
        stack.callback(supervisor.close)
        data = start_data(config, supervisor=supervisor)
        check_budget(config, data.findings.longest["train"], data.findings.longest_labelled)
        state = with_rows(checked.state, checked.resume, data.findings, override=config.train.resume_override)
        supervisor.recall(state.faults)
        print(
            f"starting {config.rollout.workers} rollout worker(s), {config.learner.ranks} learner rank(s)", flush=True
        )
        stages = build_stages(config, checked.tasks, processor.tokenizer, checked.rewards)
        sampling_stages = [stage.plan for stage in stages if stage.method.has_rollouts]
        samples_now = any(plan.first <= state.step < plan.last for plan in sampling_stages)
        places = reserve(config, stack)
        rollouts, learner = start_policy(
            config,
            processor,
            stack,
            places,
            images=data.findings.most_images,
            checkpoint=checked.resume,
            engines=samples_now or state.before is None,  # which a run without a checkpoint evaluates first
            supervisor=supervisor,
        )
        print(prove(config, data, processor, rollouts, learner), flush=True)
        segmentation = start_segmentation(config, places)
        output.mkdir(parents=True, exist_ok=True)
        with writing("config.yaml", output):
            OmegaConf.save(OmegaConf.structured(config), output / "config.yaml")
        write_dropped(data.findings.dropped, output, resumed=checked.resume is not None)
        monitor = _start_monitor(config, output, state, sample_chooser(config, checked.tasks, data), supervisor)
        stack.push(lambda kind, *_: monitor.close() if kind else None)
        data.on_drop = partial(_drop, monitor, output)
        driver = Driver(
            config,
            stages=stages,
            score=checked.tasks.score,
            data=data,
            rollouts=rollouts,
            rewards=start_rewards(config, checked.rewards, places, supervisor),
            learner=learner,
            checkpoints=Checkpoints(output / "checkpoints", config.train.keep_checkpoints),
            monitor=monitor,
            segmentation=segmentation,
        )
        with exempt_from_collection():
            result = run_through(driver, state, checked.resume, supervisor)
        if config.train.export:
            with during("export"), writing("export/", output), written_whole(output / "export") as export:
                learner.export(export)
                processor.save_pretrained(export)
        run = {"steps": config.train.steps, "method": config.method.name, "seed": config.seed}
        summary = result | run | {"faults": monitor.faults(), "versions": versions()}
        if config.train.export:
            write_card(output / "export", config=to_dict(config), summary=summary, overrides=overrides)
        monitor.finish(summary)
    if config.train.push_to_hub:
        print(f"uploaded to {upload(output / 'export', config.train.push_to_hub)}", flush=True)
    return output


def patience(config: Config, output: Path) -> float:
    """Return how many seconds a run waits for resources before it is refused; a new one does not wait.

    With train.resume=auto a run goes on from the one in its output folder. If that one's driver was killed, its actors
    take a while to end; new machines take a while to join the cluster.
    """
    goes_on = config.train.resume == "auto" and (output / "config.yaml").is_file()
    return config.cluster.start_timeout if goes_on else 0.0


def run_through(driver: Driver, state: State, checkpoint: Path | None, supervisor: Supervisor) -> dict[str, Json]:
    """Run the driver from `state` to the end; if the learner is lost, start it anew and repeat the steps since then.

    The learner goes back to the newest checkpoint that the run has written, or to where the run has started.

    Args:
        checkpoint: that of `state`; None if the run starts without one.

    Raises:
        ClusterError: the learner may not be restarted again.
    """
    start = checkpoint, state
    while True:
        try:
            return driver.run(state)
        except LearnerLostError as error:
            supervisor.record("learner", str(error), phase_of(error))
        newest = driver.progress.checkpoints.newest
        folder, state = newest or start
        why = "" if newest else ": the run has written no checkpoint yet (train.checkpoint_every)"
        print(f"the learner goes back to step {state.step}{why}", file=sys.stderr, flush=True)
        with during("restart"):
            scratch = Path(driver.config.output_dir).resolve()
            supervisor.restart("learner", partial(driver.learner.restart, folder and folder.resolve(), scratch))
            driver.rollouts.reconnect()
        driver.monitor.rewind(state.step)


@during("proof")
def prove(config: Config, data: DataFeed, processor: Processor, rollouts: RolloutPool, learner: LearnerGroup) -> str:
    """Prove on a training example, one with images if there is any, that learner and sampler agree.

    While there are no engines, responses are the first tokens of the question: packing alone is proven. See
    `prove_packing`.
    """
    example = data.specimen()
    if rollouts.actors:
        group = rollouts.probe(example)
    else:
        ids = processor.tokenizer(example.question or "?", add_special_tokens=False).input_ids[:PROBE_TOKENS]
        responses = [Response(Source.LABEL, "", TokenSpan.of(tokens)) for tokens in (ids, ids[:1])]
        group = Group(example, responses)
    dtypes = {config.learner.dtype, *([config.rollout.dtype] if rollouts.actors else [])}
    return prove_packing(learner, group, config.learner.packing, max(TOLERANCE[dtype] for dtype in dtypes))


def write_dropped(dropped: Sequence[Dropped], output: Path, *, resumed: bool = False) -> None:
    """Write the rows that are left out, and why, to dropped.jsonl in the output folder, if there are any.

    Args:
        dropped: The rows.
        output: The folder.
        resumed: Whether to keep the rows that are in the file already.
    """
    file = output / "dropped.jsonl"
    before = file.read_text(encoding="utf-8").splitlines(keepends=True) if resumed and file.is_file() else []
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in dropped]
    if lines or before:
        with writing(file.name, output):
            file.write_text("".join(dict.fromkeys([*before, *lines])), encoding="utf-8")


def _drop(monitor: Monitor, output: Path, row: Dropped) -> None:
    """Tell of a row that has turned out to be bad during the run."""
    write_dropped([row], output, resumed=True)
    monitor.warn_once(
        "dropped row", f"a row is dropped during the run: {row.reason}. Further ones are named in dropped.jsonl alone"
    )


def sample_chooser(config: Config, tasks: Tasks, data: DataFeed) -> SampleChooser:
    """Choose the responses that a run shows, by `config.monitor` and `config.eval`."""
    return SampleChooser(
        count=config.monitor.samples,
        every=config.monitor.samples_every,
        images=data.images,
        boxes=tasks.shown_boxes,
        true_boxes=tasks.true_boxes,
        answers=config.eval.samples,
    )


def _start_monitor(
    config: Config, output: Path, state: State, samples: SampleChooser, supervisor: Supervisor
) -> Monitor:
    return Monitor(
        output,
        config=to_dict(config),
        project=config.monitor.project,
        wandb=config.monitor.wandb,
        total_steps=config.train.steps,
        run_id=state.run_id,
        start_step=state.step,
        repeats=config.train.resume == "auto" and not config.train.resume_override,
        samples=samples,
        warn_logprob_diff=config.monitor.warn_logprob_diff,
        warn_equal_rewards=config.monitor.warn_equal_rewards,
        faults=supervisor.faults,
    )


@contextmanager
def exempt_from_collection() -> Iterator[None]:
    """Exempt the objects that exist now from garbage collection inside the context.

    They are about a million, mostly of libraries, and live as long as the run. Each step's collection would walk over
    them. Afterwards they are collected as usual: Triton's binding reports objects that are never freed as leaked.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
