"""The loop itself, around parts that record what it asks of them: stages, data, refills, evaluations, resuming."""

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from tests.unit.conftest import composed
from tests.unit.groups import example
from visurf_ray.checkpoints.stored import State, read_state
from visurf_ray.checkpoints.writing import Checkpoints
from visurf_ray.driver import Driver
from visurf_ray.dumps import find_start, read_dump
from visurf_ray.errors import ConfigError, LostError, UserError, WriteError
from visurf_ray.groups import Group, Response, Source, TokenSpan
from visurf_ray.learner.cost import TOKENS
from visurf_ray.stages import build_stages

TEACHES = "teaches"  # the ground truth of examples whose rollouts earn unequal rewards


class Data:
    """Examples named after their position; every `period`-th teaches."""

    left_out = 0
    dropped = ()

    def __init__(self, period: int) -> None:
        self.position = 0
        self.period = period

    def seek(self, position, solved, dropped):
        self.position = position

    def note_solved(self, examples):
        pass

    def solved_state(self):
        return {}

    def dropped_state(self):
        return {}

    def take(self, count):
        taken = range(self.position, self.position + count)
        self.position += count
        return [example("" if here % self.period else TEACHES, identity=str(here)) for here in taken]

    def held_out(self, limit):
        return SimpleNamespace(taken=[])


class Rollouts:
    def __init__(self, oversample: int) -> None:
        self.oversample = oversample
        self.stays = []
        self.asked = []

    def prompts(self, size):
        return size + self.oversample

    def sample(self, examples, enough):
        for index in range(min(enough, len(examples))):
            responses = [Response(Source.ROLLOUT, "", TokenSpan.of([1])) for _ in range(2)]
            yield {index: Group(examples[index], responses)}

    def answer(self, examples, *, stay, **sampling):
        self.stays.append(stay)
        self.asked.append(sampling)
        return []

    def sync(self, phase):
        pass

    def wake(self, phase):
        pass


class Rewards:
    def __init__(self, interrupted: int | None) -> None:
        """Scoring the batch of this number is interrupted."""
        self.left = interrupted

    def submit(self, groups):
        for group in groups:
            for number, response in enumerate(group.rollouts):
                response.reward = float(number) if group.example.ground_truth == TEACHES else 1.0
                response.reward_parts = {"accuracy": response.reward}

    def wait(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return []

    def drop(self):
        pass


class Learner:
    """Records the examples and the learning rate of each update, and when the reference is taken."""

    least_groups = 1
    cost = TOKENS

    def __init__(
        self, slow: int = 0, raises: Sequence[BaseException | None] = (), not_finite: Sequence[int] = ()
    ) -> None:
        """A checkpoint is written when that has been asked for `slow` times, or is waited for."""
        self.raises = list(raises)
        self.not_finite = not_finite
        self.log = []
        self.label_scales = []
        self.steps = []
        self.asked = []  # for which examples the styles of labels are compared
        self.slow = self.left = slow
        self.waits = []

    def update(self, groups, loss, learning_rate, *, step):
        if self.raises and (error := self.raises.pop(0)):
            raise error
        self.steps.append(step)
        self.log.append(([int(group.example.id) for group in groups], learning_rate))
        self.label_scales.append(loss.label_scale)
        return {"train/skipped_steps": 1.0} if step + 1 in self.not_finite else {}

    def write_groups(self, groups, folder):
        (folder / "groups").write_text(" ".join(group.example.id for group in groups))

    def mean_logprobs(self, groups):
        self.asked.append([group.example.id for group in groups])
        return [[-1.0, -0.5][: len(group.responses)] for group in groups]

    def take_reference(self):
        self.log.append("reference")

    def save(self, folder):
        self.left = self.slow

    def written(self, wait):
        self.waits.append(wait)
        self.left -= 1
        return wait or self.left < 0


class Monitor:
    run_id = "run"

    def __init__(self) -> None:
        self.rows = {}
        self.evaluated = []
        self.shown = []
        self.warnings = []

    def phase(self, name):
        return nullcontext()

    def log(self, step, metrics):
        self.rows[step] = metrics

    def log_eval(self, step, metrics):
        self.evaluated.append(step)

    def show_answers(self, step, examples, predictions):
        self.shown.append(step)

    def warn_once(self, subject, warning):
        self.warnings.append(warning)

    def show_samples(self, step, groups):
        pass

    def faults(self):
        return [{"role": "engine"}]


TASKS = SimpleNamespace(label=lambda example, style: "label", parts={"": SimpleNamespace(styles=("spaced",))})


class Tokenizer:
    eos_token_id = 0

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[1, 2])


def drive(
    folder,
    *overrides: str,
    state: State | None = None,
    oversample: int = 0,
    period: int = 1,
    scores=None,
    slow: int = 0,
    raises: Sequence[BaseException | None] = (),
    interrupted: int | None = None,
    not_finite: Sequence[int] = (),
) -> Driver:
    """Run from `state`, with a checkpoint of each step unless overrides say otherwise.

    Args:
        scores: what the evaluations score, one after the other; without it 1.0 each time.
        slow: as for `Learner`.
        raises: what the first updates raise, None: nothing. What the run raises itself is the driver's `result`.
        interrupted: as for `Rewards`.
        not_finite: the steps that the learner does not take, from 1.
    """
    config = composed("train.batch_size=4", "train.checkpoint_every=1", "train.keep_checkpoints=99", *overrides)
    scores = iter(scores) if scores else None
    driver = Driver(
        config,
        stages=build_stages(config, TASKS, Tokenizer(), rewards={}),
        score=lambda predictions: {"score": next(scores) if scores else 1.0, "score_low": 0.0},
        data=Data(period),
        rollouts=Rollouts(oversample),
        rewards=Rewards(interrupted),
        learner=Learner(slow, raises, not_finite),
        checkpoints=Checkpoints(folder, config.train.keep_checkpoints),
        monitor=Monitor(),
    )
    try:
        driver.result = driver.run(state or State())
    except BaseException as error:
        if not raises and interrupted is None and not not_finite:
            raise
        driver.result = error
    return driver


def examples_of(driver: Driver) -> list[list[int]]:
    return [entry[0] for entry in driver.learner.log if entry != "reference"]


STAGES = ("method=sft_then_rlvr", "train.steps=5", "method.sft_steps=2", "method.sft_batch_size=6", "eval.every=1")
AHEAD = ("pipeline=one_step_off",)


@pytest.mark.parametrize("ahead", [(), AHEAD])
def test_no_example_is_skipped_or_used_twice_where_the_stages_meet(tmp_path, ahead):
    driver = drive(tmp_path, *STAGES, *ahead)
    assert examples_of(driver) == [
        list(range(0, 6)),
        list(range(6, 12)),
        *([b, b + 1, b + 2, b + 3] for b in (12, 16, 20)),
    ]
    assert read_state(tmp_path / "step_000002").position == 12


def test_oversampling_moves_the_position_by_all_that_it_draws_in_the_stage_that_samples(tmp_path):
    driver = drive(tmp_path, *STAGES, oversample=2)
    assert examples_of(driver)[1:4] == [list(range(6, 12)), [12, 13, 14, 15], [18, 19, 20, 21]]
    assert read_state(tmp_path / "step_000003").position == 18


def test_each_stage_has_its_own_rates_and_the_reference_is_taken_where_the_second_begins(tmp_path):
    rates = ["learner.schedule=linear", "learner.learning_rate=0.1", "method.sft_learning_rate=1.0"]
    driver = drive(tmp_path, *STAGES, *rates)
    log = [entry if entry == "reference" else pytest.approx(entry[1]) for entry in driver.learner.log]
    assert log == [1.0, 0.5, "reference", 0.1, 0.2 / 3, 0.1 / 3]


def test_the_label_decays_over_the_steps_of_the_methods_own_stage(tmp_path):
    settings = ["method=visurf", "method.sft_steps=2", "method.label_decay=4", "train.steps=5"]
    assert drive(tmp_path, *settings).learner.label_scales == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.5])


def test_engines_stay_after_an_evaluation_only_if_the_next_step_samples(tmp_path):
    driver = drive(tmp_path / "a", *STAGES)
    assert driver.monitor.evaluated == [0, 1, 2, 3, 4, 5]
    assert driver.rollouts.stays == [False, False, True, True, True, True]
    assert drive(tmp_path / "b", "method=sft", "train.steps=1", "eval.every=0").rollouts.stays == [False, False]
    assert drive(tmp_path / "c", "method=rlvr", "train.steps=1", "eval.every=0").rollouts.stays == [True, True]


DAPO = ("method=dapo", "train.steps=4", "method.max_refills=5", "eval.every=0")
RESUMED = {
    "stages": (STAGES, 0, 1),
    "stages with oversampling": ((*STAGES, "learner.schedule=cosine", "learner.warmup_steps=1"), 2, 1),
    "refills": (DAPO, 1, 3),
    "refills that do not suffice": ((*DAPO, "method.max_refills=1"), 0, 5),
}


@pytest.mark.parametrize("ahead", [(), AHEAD])
@pytest.mark.parametrize("case", RESUMED)
def test_a_run_that_is_resumed_anywhere_goes_on_with_the_same_examples_and_rates(tmp_path, case, ahead):
    """Also where the sampler was a batch ahead of the checkpoint."""
    overrides, oversample, period = RESUMED[case]
    whole = drive(tmp_path / "whole", *overrides, *ahead, oversample=oversample, period=period)
    for checkpoint in sorted((tmp_path / "whole").iterdir())[:-1]:
        state = read_state(checkpoint)
        rest = drive(tmp_path / checkpoint.name, *overrides, *ahead, state=state, oversample=oversample, period=period)
        done = [entry for entry in whole.learner.log if entry != "reference"][: state.step]
        expected = whole.learner.log[len(done) :]
        if "reference" in whole.learner.log[: len(done)]:
            expected = expected[1:]
        assert rest.learner.log == expected, json.loads((checkpoint / "state.json").read_text())


@pytest.mark.parametrize("ahead", [(), AHEAD])
def test_a_resumed_run_keeps_the_style_of_labels_until_it_is_due(tmp_path, monkeypatch, ahead):
    """Also of a batch that was sampled ahead of the checkpoint, with a style that was chosen after it."""
    monkeypatch.setitem(TASKS.parts, "", SimpleNamespace(styles=("spaced", "compact")))
    overrides = ("method.style=auto", "train.steps=6", "method.style_every=3", "eval.every=0", *ahead)
    whole = drive(tmp_path / "whole", *overrides)
    assert whole.learner.asked == [["0", "1", "2", "3"], ["12", "13", "14", "15"]]
    for checkpoint in sorted((tmp_path / "whole").iterdir())[:-1]:
        state = read_state(checkpoint)
        assert state.styles == {"": "compact"}
        rest = drive(tmp_path / checkpoint.name, *overrides, state=state)
        assert rest.learner.asked == whole.learner.asked[-1 if state.step <= 3 else 2 :], state.step
        assert rest.learner.steps == list(range(state.step, 6)), "from which dropout is drawn"


def test_a_stage_begins_with_styles_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS.parts, "", SimpleNamespace(styles=("spaced", "compact")))
    whole = drive(tmp_path / "whole", *STAGES, "method.label=true", "method.style=auto")
    resumed = drive(tmp_path / "b", *STAGES, "method.label=true", "method.style=auto", state=State(2, 12))
    assert len(whole.learner.asked) == 2 and len(resumed.learner.asked) == 1


def test_batches_are_refilled_until_they_are_full(tmp_path):
    """A third of the examples teach, so 4 of them are among 12. A refill draws what that share makes likely."""
    driver = drive(tmp_path, *DAPO, period=3)
    assert all(len(batch) == 4 and not any(here % 3 for here in batch) for batch in examples_of(driver))
    drawn = [read_state(tmp_path / f"step_{step:06d}").position for step in (1, 2)]
    assert examples_of(driver)[0] == [0, 3, 6, 9] and drawn[0] >= 10
    assert examples_of(driver)[1][0] >= drawn[0], "what a batch has drawn, none draws again"
    assert driver.monitor.rows[1]["train/refills"] == 2.0, "4 prompts gave 2 groups, 4 more 1, 3 more the last"
    assert driver.monitor.rows[1]["train/kept_share"] == 4 / drawn[0] == 4 / 11
    assert not driver.monitor.warnings


def test_after_the_last_refill_a_warning_comes_and_training_goes_on(tmp_path):
    driver = drive(tmp_path, *DAPO, "method.max_refills=1", "train.steps=1", period=5)
    assert examples_of(driver) == [[0, 5]]
    assert driver.monitor.rows[1] | {"train/refills": 1.0, "train/kept_share": 2 / 8} == driver.monitor.rows[1]
    (warning,) = driver.monitor.warnings
    assert "step 1: after method.max_refills=1 refills the batch has 2 groups with an advantage" in warning


def test_a_batch_without_any_group_that_teaches_still_reaches_the_learner(tmp_path):
    state = State(position=1)  # the only example that teaches is the one before
    driver = drive(tmp_path, *DAPO, "train.steps=1", state=state, period=10**9)
    assert examples_of(driver) == [[1]], "as many as the learner needs"
    assert driver.monitor.rows[1]["train/refills"] == 5.0 and driver.monitor.rows[1]["train/kept_share"] == 0.0


BEST = (
    "train.keep_best=score",
    "eval.every=2",
    "train.steps=8",
    "train.checkpoint_every=3",
    "train.keep_checkpoints=1",
)


def kept(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("metric", "scores", "step"),
    [
        ("score", [9.0, 0.1, 0.7, 0.7, 0.2], 4),  # the first of two that are as good; not the one before the training
        ("score", [0.0, 0.1, 0.2, 0.3, 0.4], 8),
        ("score", [0.0, 0.5, math.nan, 0.3, 0.4], 2),
        ("-score", [0.0, 0.5, 0.4, 0.1, 0.4], 6),
    ],
)
def test_the_checkpoint_of_the_best_evaluation_is_kept_beside_the_newest(tmp_path, metric, scores, step):
    driver = drive(tmp_path, *BEST, f"train.keep_best={metric}", scores=scores)
    name = f"step_{step:06d}"
    assert kept(tmp_path) == sorted({"best.json", name, "step_000008"})
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == driver.result["best"]
    assert best == {"metric": metric, "value": scores[step // 2], "step": step, "checkpoint": name}
    assert read_state(tmp_path / name).step == step


def test_the_best_is_kept_without_other_checkpoints_too(tmp_path):
    drive(tmp_path, *BEST, "train.checkpoint_every=0", scores=[0.0, 0.1, 0.5, 0.2, 0.3])
    assert kept(tmp_path) == ["best.json", "step_000004"]
    drive(tmp_path / "last", *BEST, "train.checkpoint_every=0", scores=[0.0, 0.1, 0.5, 0.2, 0.9])
    assert kept(tmp_path / "last") == ["best.json", "step_000008"]


def test_without_a_metric_no_checkpoint_is_the_best(tmp_path):
    driver = drive(tmp_path, *BEST, "train.keep_best=null")
    assert "best" not in driver.result and kept(tmp_path) == ["step_000008"]


def test_a_resumed_run_knows_the_best_before_it(tmp_path):
    drive(tmp_path, *BEST, "train.steps=6", scores=[0.0, 0.8, 0.1, 0.2])
    resumed = read_state(tmp_path / "step_000006")
    driver = drive(tmp_path, *BEST, "train.steps=10", state=resumed, scores=[0.3, 0.4])
    assert driver.result["best"]["step"] == 2 and kept(tmp_path) == ["best.json", "step_000002", "step_000010"]


def test_the_best_of_an_abandoned_branch_is_no_longer_the_best(tmp_path):
    """The run goes on from step 3, before the evaluation that was the best."""
    drive(tmp_path, *BEST, "train.keep_checkpoints=9", scores=[0.0, 0.1, 0.9, 0.2, 0.3])
    older = read_state(tmp_path / "step_000003")
    driver = drive(tmp_path, *BEST, "train.steps=4", state=older, scores=[0.5])
    assert driver.result["best"] == {"metric": "score", "value": 0.5, "step": 4, "checkpoint": "step_000004"}
    assert kept(tmp_path) == ["best.json", "step_000004"]


def test_a_checkpoint_of_another_branch_is_not_taken_for_the_best_of_the_same_step(tmp_path):
    """The branch that was left had its best at step 6; the new one does not evaluate there. Before, step 2 was it."""
    drive(tmp_path, *BEST, "train.steps=7", "train.keep_checkpoints=9", scores=[0.0, 0.1, 0.2, 0.9, 0.3])
    older = read_state(tmp_path / "step_000003")
    driver = drive(tmp_path, *BEST, "train.steps=6", "eval.every=9", state=older, scores=[math.nan])
    assert driver.result["best"]["step"] == 2 and kept(tmp_path) == ["best.json", "step_000002", "step_000006"]


def test_a_run_that_was_killed_before_it_named_the_best_names_it_when_it_is_resumed(tmp_path):
    drive(tmp_path, *BEST, "train.steps=4", scores=[0.0, 0.8, 0.1])
    state = read_state(tmp_path / "step_000004")
    assert state.best is not None and state.best.step == 2
    (tmp_path / "best.json").unlink()
    driver = drive(tmp_path, *BEST, "train.steps=6", state=state, scores=[0.2])
    assert driver.result["best"]["step"] == 2 and kept(tmp_path) == ["best.json", "step_000002", "step_000006"]


def test_another_metric_begins_anew(tmp_path):
    drive(tmp_path, *BEST, "train.steps=6", scores=[0.0, 0.8, 0.1, 0.2])
    resumed = read_state(tmp_path / "step_000006")
    driver = drive(tmp_path, *BEST, "train.keep_best=-score", "train.steps=8", state=resumed, scores=[0.9])
    assert driver.result["best"]["step"] == 8 and kept(tmp_path) == ["best.json", "step_000008"]


def test_a_metric_that_does_not_exist_is_refused_at_the_first_evaluation(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.keep_best=-scor: .* have score\. Did you mean 'score'\?"):
        drive(tmp_path, *BEST, "train.keep_best=-scor")
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_refuses_a_metric_that_does_not_exist_before_its_first_step(tmp_path):
    resumed = State(step=6, position=24, before={"score": 0.0})
    with pytest.raises(ConfigError, match=r"train\.keep_best=scor: .* have score\."):
        drive(tmp_path, *BEST, "train.keep_best=scor", "eval.every=100", state=resumed)
    assert not list(tmp_path.iterdir()), "no step was done and no checkpoint written"


def test_a_resumed_run_may_keep_the_best_by_a_metric_that_the_first_evaluation_did_not_have(tmp_path):
    """As that of a held-out set which was added since."""
    resumed = State(step=6, position=24, before={"other": 0.5})
    driver = drive(tmp_path, *BEST, "train.steps=8", state=resumed, scores=[0.3, 0.4])
    assert driver.result["before"] == {"other": 0.5} and driver.result["best"]["value"] == 0.4


def test_answers_are_sampled_and_shown_at_each_evaluation(tmp_path):
    settings = ["eval.n=4", "eval.temperature=0.5", "eval.max_tokens=9", "train.steps=2", "eval.every=1"]
    driver = drive(tmp_path, *settings)
    assert driver.monitor.shown == [0, 1, 2]
    assert driver.rollouts.asked == [{"max_tokens": 9, "n": 4, "temperature": 0.5}] * 3


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    """It is asked for after each step, and waited for when the next one is due and at the end."""
    settings = ["method=rlvr", "train.steps=5", "train.checkpoint_every=3", "eval.every=0"]
    driver = drive(tmp_path, *settings, slow=9)
    assert driver.learner.waits == [False, False, False, True, False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003", "step_000005"]
    driver = drive(tmp_path / "fast", *settings, slow=1)
    assert driver.learner.waits == [False, False, False, True]


def test_the_best_evaluations_checkpoint_is_named_when_it_is_written(tmp_path):
    settings = [*BEST, "train.keep_best=score", "train.steps=3", "eval.every=1"]
    driver = drive(tmp_path, *settings, scores=[0.0, 0.1, 0.9, 0.2], slow=9)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2 == driver.progress.best.step
    assert (tmp_path / "step_000002" / "state.json").is_file()


# What is lost, and signals


@pytest.mark.parametrize("ahead", [(), AHEAD])
def test_a_batch_that_is_lost_is_collected_again_and_no_example_is_used_twice(tmp_path, ahead):
    lost = [None, LostError("an image"), LostError("again"), None, LostError("another")]
    driver = drive(tmp_path, "method=rlvr", "train.steps=4", "eval.every=0", *ahead, raises=lost)
    assert examples_of(driver) == [[b, b + 1, b + 2, b + 3] for b in (0, 4, 8, 12)]
    assert read_state(tmp_path / "step_000004").position == 16


def test_a_batch_that_is_lost_again_and_again_ends_the_run(tmp_path):
    driver = drive(tmp_path, "method=rlvr", "train.steps=4", "eval.every=0", raises=[None, *[LostError("gone")] * 3])
    assert isinstance(driver.result, LostError) and driver.progress.state.step == 1


@pytest.mark.parametrize("ahead", [(), AHEAD])
def test_an_interrupted_run_saves_its_last_step(tmp_path, ahead):
    settings = ["method=rlvr", "train.steps=9", "eval.every=0", "train.checkpoint_every=9", *ahead]
    driver = drive(tmp_path, *settings, interrupted=2)
    assert isinstance(driver.result, KeyboardInterrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]
    assert read_state(tmp_path / "step_000002").position == 8


def test_a_run_that_is_interrupted_after_a_batch_was_lost_saves_its_last_step(tmp_path):
    settings = ["method=rlvr", "train.steps=9", "eval.every=0", "train.checkpoint_every=9"]
    driver = drive(tmp_path, *settings, raises=[None, None, LostError("an image")], interrupted=3)
    assert isinstance(driver.result, KeyboardInterrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


def test_an_interrupted_run_saves_nothing_twice_nor_without_checkpoints(tmp_path):
    settings = ["method=rlvr", "train.steps=9", "eval.every=0"]
    for every, names in (("1", ["step_000001"]), ("0", [])):
        folder = tmp_path / every
        folder.mkdir()
        driver = drive(folder, *settings, f"train.checkpoint_every={every}", interrupted=1)
        assert isinstance(driver.result, KeyboardInterrupt)
        assert [path.name for path in folder.iterdir()] == names
    drive(tmp_path / "1", *settings, state=read_state(tmp_path / "1" / "step_000001"), interrupted=0)
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["step_000001"]


def test_a_learner_that_may_be_ahead_of_the_state_is_not_saved(tmp_path, capsys):
    """An update that is interrupted goes on in the ranks."""
    settings = ["method=rlvr", "train.steps=9", "eval.every=0", "train.checkpoint_every=9"]
    driver = drive(tmp_path, *settings, raises=[None, None, KeyboardInterrupt()])
    assert isinstance(driver.result, KeyboardInterrupt) and not list(tmp_path.iterdir())
    assert "step 3 is not finished" in capsys.readouterr().err


# Dumps of steps


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_step_is_dumped_on_purpose_and_its_checkpoint_is_kept_with_it(tmp_path):
    checkpoints, dumps = tmp_path / "checkpoints", tmp_path / "dumps"
    settings = ["method=rlvr", "train.steps=6", "eval.every=0", "train.checkpoint_every=3", "train.dump_steps=[1,3]"]
    driver = drive(checkpoints, *settings, "train.keep_checkpoints=1")
    assert names(dumps) == ["step_000001", "step_000003"] and names(checkpoints) == ["step_000002", "step_000006"]
    assert read_state(checkpoints / "step_000002").faults == [{"role": "engine"}]
    assert (dumps / "step_000003" / "groups").read_text() == "8 9 10 11"
    dump = read_dump(dumps / "step_000003")
    assert (dump.step, dump.loss, dump.learning_rate) == (3, driver.stages[0].method.loss(2), driver.learner.log[2][1])
    assert find_start(dump, dumps / "step_000003") == (checkpoints / "step_000002", 2)
    assert find_start(read_dump(dumps / "step_000001"), dumps / "step_000001") == (None, 0)


@pytest.mark.parametrize("every", [2, 0])
def test_a_step_that_is_not_taken_ends_the_run_with_its_dump_and_the_last_state(tmp_path, every):
    settings = ["method=rlvr", "train.steps=6", "eval.every=0", f"train.checkpoint_every={every}"]
    driver = drive(tmp_path / "checkpoints", *settings, not_finite=[4])
    folder = tmp_path / "dumps" / "step_000004"
    assert isinstance(driver.result, UserError) and driver.progress.state.step == 3
    for told in ("step 4: ", f"python -m visurf_ray.replay dump={folder}", "train.on_nan=skip"):
        assert told in str(driver.result)
    assert names(tmp_path / "checkpoints") == (["step_000002", "step_000003"] if every else [])
    assert find_start(read_dump(folder), folder)[1] == (3 if every else 0)


def test_skipped_steps_are_told_of_once_and_the_first_is_dumped(tmp_path):
    settings = ["method=rlvr", "train.steps=6", "eval.every=0", "train.checkpoint_every=0", "train.on_nan=skip"]
    driver = drive(tmp_path / "checkpoints", *settings, not_finite=[2, 4])
    assert driver.progress.state.step == 6 and names(tmp_path / "dumps") == ["step_000002"]
    (warning,) = driver.monitor.warnings
    assert warning.startswith("step 2: the loss or its gradient is not finite")
    assert [step for step, row in driver.monitor.rows.items() if "train/skipped_steps" in row] == [2, 4]


def test_the_state_is_not_saved_with_a_dump_if_a_part_of_the_step_was_taken(tmp_path):
    settings = ["method=rlvr", "train.steps=6", "eval.every=0", "train.checkpoint_every=2", "learner.minibatches=2"]
    drive(tmp_path / "checkpoints", *settings, not_finite=[4])
    folder = tmp_path / "dumps" / "step_000004"
    assert names(tmp_path / "checkpoints") == ["step_000002"]
    assert find_start(read_dump(folder), folder) == (tmp_path / "checkpoints" / "step_000002", 2)


def test_the_error_of_a_step_stays_its_error_if_it_cannot_be_dumped(tmp_path, monkeypatch):
    def full(*_):
        raise WriteError("no space")

    monkeypatch.setattr("visurf_ray.dumps.write_dump", full)
    driver = drive(tmp_path / "checkpoints", "method=rlvr", "train.steps=6", "eval.every=0", not_finite=[2])
    assert "step 2: the loss" in str(driver.result) and "its groups are not saved: no space" in str(driver.result)


def test_a_resumed_run_that_dumps_its_first_step_keeps_its_best(tmp_path):
    folder = tmp_path / "checkpoints"
    settings = [*BEST, "train.keep_best=score", "eval.every=1"]
    drive(folder, *settings, "train.steps=2", scores=[0.0, 0.1, 0.9])
    state = read_state(folder / "step_000002")
    drive(folder, *settings, "train.steps=3", "train.dump_steps=[3]", state=state, scores=[0.2])
    assert json.loads((folder / "best.json").read_text())["step"] == 2
