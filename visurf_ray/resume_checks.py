"""What a run starts from: nothing, or a checkpoint, which must fit the configuration, the folder and the data."""

from dataclasses import asdict, replace
from pathlib import Path

from visurf_ray.checkpoints.stored import State, all_checkpoints, find_resume, read_state
from visurf_ray.config.resuming import check_changes
from visurf_ray.config.schema import Config, to_dict
from visurf_ray.errors import ConfigError
from visurf_ray.feed.fingerprint import check_rows
from visurf_ray.feed.mixture import Findings
from visurf_ray.learner.config import REFERENCE_FILE
from visurf_ray.learner.trained import trained_weights


def starting_state(config: Config, output: Path) -> tuple[State, Path | None]:
    """Return the state to start from, and the checkpoint that has it, if any.

    Raises:
        UserError: there is no such checkpoint, it does not fit the configuration, the output folder holds another run,
            or no step is left to do.
    """
    resume = find_resume(config.train.resume, output / "checkpoints")
    if resume is None and (output / "metrics.jsonl").exists() and config.train.resume is None:
        raise ConfigError(
            f"output_dir={output} already holds a run: choose another folder, or set train.resume=auto to continue it"
        )
    state = _initial_state(config, resume)
    if resume:
        _check_folder(resume, state, output)
    _check_steps_left(config.train.steps, resume, state, output)
    return state, resume


def with_rows(state: State, resume: Path | None, findings: Findings, *, override: bool) -> State:
    """Return the state to start from, with the fingerprints of the training rows.

    Args:
        resume: the checkpoint that has the state, if any.
        override: the value of train.resume_override.

    Raises:
        DataError: the checkpoint was written with other rows.
    """
    now = findings.fingerprints
    if resume and (line := check_rows(state.rows, now, resume, override=override)):
        print(line, flush=True)
    return replace(state, rows={name: asdict(found) for name, found in now.items()})


def read_learnt(resume: Path, config: Config) -> State:
    """Return the state of a checkpoint whose weights the learner of a configuration can load.

    Raises:
        ConfigError: it was written with another ZeRO stage, or other trained weights.
    """
    stage, trained = config.learner.zero_stage, asdict(trained_weights(config))
    state = read_state(resume)
    if (before := state.config["learner"]["zero_stage"]) != stage:  # DeepSpeed's files are those of a stage
        raise ConfigError(f"{resume} was written with learner.zero_stage={before}: continue with it, not with {stage}")
    for name in (name for name, value in trained.items() if state.trained.get(name) != value):
        key = f"learner.{name.replace('lora_', 'lora.')}"
        raise ConfigError(f"{resume} was written with {key}={state.trained.get(name)}: continue with this value")
    return state


def _initial_state(config: Config, resume: Path | None) -> State:
    """Return the state to start from: a new one, or the checkpoint's.

    Raises:
        ConfigError: if the checkpoint was written with another ZeRO stage or other trained weights, or lacks the KL
            term's reference; or a setting has changed that alters what is learnt.
    """
    if resume is None:
        return State(trained=asdict(trained_weights(config)), config=to_dict(config))
    state = read_learnt(resume, config)
    switch = config.method.sft_steps
    if config.method.kl_coef and 0 < switch < state.step and not (resume / REFERENCE_FILE).is_file():
        raise ConfigError(
            f"{resume} has no {REFERENCE_FILE}, the policy after method.sft_steps={switch} with which the KL term "
            "compares: it was written with method.kl_coef=0 or other stages. Continue with these, or from a checkpoint "
            f"of step {switch} or before"
        )
    if changes := check_changes(state.config, config, resume):
        print(changes, flush=True)
    return replace(state, config=to_dict(config))


def _check_folder(resume: Path, state: State, output: Path) -> None:
    """Check that a checkpoint from elsewhere does not continue in another run's folder, which would replace that run.

    Raises:
        ConfigError: it does.
    """
    own = output / "checkpoints"
    if resume.resolve().parent == own or not (output / "metrics.jsonl").exists():
        return
    if all(read_state(path).run_id != state.run_id for path in all_checkpoints(own)):
        raise ConfigError(
            f"output_dir={output} already holds a run, and train.resume={resume} is no checkpoint of it: choose "
            "another folder"
        )


def _check_steps_left(steps: int, resume: Path | None, state: State, output: Path) -> None:
    """Check that a run which is resumed has something left to do.

    A run that was interrupted after its last step, before its report, may be resumed to evaluate and export its policy.

    Raises:
        ConfigError: train.steps is below the steps that the checkpoint has done, or equal to those of a finished run.
    """
    unfinished = (output / "metrics.jsonl").exists() and not (output / "summary.json").exists()
    if resume is None or state.step < steps or (state.step == steps and unfinished):
        return
    raise ConfigError(
        f"train.steps={steps}: the checkpoint {resume} has done {state.step} steps, so none is left. train.steps "
        f"counts all steps of a run: set it above {state.step} to train on, or set train.resume=null and another "
        "output_dir to start anew"
    )
