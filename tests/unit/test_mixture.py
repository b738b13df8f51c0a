"""Mixtures of tasks: what the configuration takes and refuses, the order of examples, and what is done per part."""

from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.unit.conftest import picture
from tests.unit.groups import example, group
from visurf_ray.checks import check_style, load_rewards
from visurf_ray.config.explain import CommandLine
from visurf_ray.config.load import CONFIG_DIR, load_config, searching
from visurf_ray.config.parts import resolve
from visurf_ray.config.task_schema import ScoringConfig
from visurf_ray.errors import ConfigError, DataError, UserError
from visurf_ray.feed.mixture import Mixture
from visurf_ray.feed.sampler import PartSampler
from visurf_ray.groups import Group, Prediction
from visurf_ray.method import Method, Part
from visurf_ray.monitor.charts import charts
from visurf_ray.monitor.report import write_report
from visurf_ray.monitor.teaching import why_nothing_teaches
from visurf_ray.rewards import REWARDS, load_reward
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.tasks.tasks import Tasks

SMALL = ["+task.parts.find.task=miniature", "+task.parts.find.train=6", "+task.parts.find.held_out=4"]
COUNT = ["+task.parts.count.task=miniature_vqa", "+task.parts.count.train=4", "+task.parts.count.held_out=3"]
BOTH = ["task=mixture", *SMALL, *COUNT]
SET = ["+eval.sets.sums.task=miniature_math", "+eval.sets.sums.held_out=2"]


def rewards_of(overrides: list[str]) -> dict[str, RewardSpec]:
    config = load_config(overrides)
    return load_rewards(config, Tasks.of(config))


# Configuration


def test_a_part_has_the_defaults_of_its_task_and_of_its_reward(tmp_path):
    config = load_config([*BOTH, "+task.parts.find.weight=3", "+task.parts.count.reward.options.boxed_credit=0", *SET])
    find, count = config.parts["find"], config.parts["count"]
    assert (find.name, find.train, find.prompt, find.absent_share, find.weight) == ("miniature", 6, "detailed", 0.25, 3)
    assert find.reward.options == {"credit_empty": True, "box_distance": 3.0, "point_distance": 5.0}
    assert count.weight == 1.0 and count.reward == ScoringConfig("math", {"boxed_credit": 0}, 1.0, None, 1.0)
    assert (config.reward.name, config.eval.sets["sums"].name, config.eval.sets["sums"].train) == (
        None,
        "miniature_math",
        None,
    )


def test_a_part_may_have_another_reward_and_a_function_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(
        [*BOTH, "+task.parts.find.reward=point_in_box", "+task.parts.count.reward.function=my.py:score"]
    )
    assert config.parts["find"].reward.name == "point_in_box" and config.parts["find"].reward.options == {}
    assert config.parts["count"].reward.name == "math"
    assert config.parts["count"].reward.function == f"{tmp_path}/my.py:score", "paths are the user's, as elsewhere"


def test_parts_can_be_written_as_one_section():
    config = load_config(["task=mixture", "+task.parts={a: {task: miniature, weight: 2}, b: {task: miniature_gui}}"])
    assert {name: (part.name, part.weight) for name, part in config.parts.items()} == {
        "a": ("miniature", 2.0),
        "b": ("miniature_gui", 1.0),
    }


def test_what_a_run_has_written_to_its_config_can_be_written_by_a_user():
    line = CommandLine("config", [], [CONFIG_DIR])
    config = load_config([*BOTH, *SET, "+task.parts.count.reward={name: null, function: 'a:b'}"])
    again = deepcopy(config)
    written = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config)))
    again.task.parts = OmegaConf.to_container(written.task.parts)
    again.eval.sets = OmegaConf.to_container(written.eval.sets)
    with searching(line):
        resolve(again, line)
    assert again == config and config.parts["count"].reward == ScoringConfig(None, {}, 1.0, "a:b", 1.0)


def test_a_run_of_one_task_has_one_part_without_a_name():
    config = load_config(["task=miniature_gui", "task.train=5"])
    (part,) = config.parts.values()
    assert list(config.parts) == [""] and (part.name, part.train, part.reward.name) == (
        "miniature_gui",
        5,
        "point_in_box",
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=mixture"], "task=mixture has no parts: add each with +task.parts.NAME.task=…"),
        (["+task.parts.a.task=vqa"], "task.parts has a, but task=miniature is one task"),
        (["task=mixture", "+task.parts.a.train=5"], "task.parts.a.task is not set: name its task, one of anomaly,"),
        (["task=mixture", "+task.parts.a.task=vqaa"], "task.parts.a.task: unknown task 'vqaa'. Did you mean 'vqa'?"),
        (
            [*BOTH, "+task.parts.find.promt=plain"],
            "key 'task.parts.find.promt'. Did you mean 'task.parts.find.prompt'?",
        ),
        ([*BOTH, "+task.parts.find.wieght=2"], "key 'task.parts.find.wieght'. Did you mean 'task.parts.find.weight'?"),
        ([*BOTH, "+task.parts.find.reward=mth"], "task.parts.find.reward: unknown reward 'mth'. Did you mean 'math'?"),
        ([*BOTH, "+task.parts.find.reward.nam=math"], "Did you mean 'task.parts.find.reward.name'?"),
        ([*BOTH, "+task.parts.find.reward.workers=2"], "task.parts.find.reward.workers: the reward actors serve all"),
        ([*BOTH, "+task.parts.find.weight=0"], "task.parts.find.weight=0 must be above 0"),
        ([*BOTH, "+task.parts.find.weight=much"], "task.parts.find.weight=much must be a number above 0"),
        ([*BOTH, "+task.parts.find.absent_share=2"], "task.parts.find.absent_share=2 must be at least 0 and at most 1"),
        ([*BOTH, "+task.parts.find.absent_share=x"], "task.parts.find.absent_share=x: Value 'x'"),
        ([*BOTH, "+task.parts.find=miniature"], "task.parts.find"),
        (["task=mixture", "task.parts.find.task=miniature"], "write +task.parts.find.task=miniature"),
        (["task=mixture", "task.parts={a: {task: miniature}}"], "write +task.parts={a: {task: miniature}}"),
        (["task=mixture", "+task.parts={a.b: {task: miniature}}"], "a name has letters, digits, _ and -"),
        ([*BOTH, "task.train=5"], "task.train=5: in a mixture each part has its own: set task.parts.NAME.train"),
        ([*BOTH, "task.prompt=plain"], "task.prompt=plain: in a mixture each part has its own"),
        ([*BOTH, "reward=math"], "in a mixture set task.parts.NAME.reward"),
        ([*BOTH, "+eval.sets.find.task=vqa"], "eval.sets.find: a part of the mixture has this name"),
        ([*SET, "+eval.sets.sums.reward=math"], "eval.sets.sums.reward: a held-out set is not trained on"),
        ([*SET, "+eval.sets.sums.train=5"], "eval.sets.sums.train: a held-out set is not trained on"),
        ([*SET, "+eval.sets.sums.weight=5"], "eval.sets.sums.weight: a held-out set is not trained on"),
        (["+eval.set.a.task=vqa"], "there is no configuration key 'eval.set.a.task'"),
    ],
)
def test_what_a_part_lacks_or_misspells_is_refused_with_its_key(overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config(overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+task.parts.find.prompt=long"], "task.parts.find.prompt=long: miniature has detailed, plain, or name"),
        (["+task.parts.count.segmenter=a/b"], "task.parts.count.segmenter=a/b: miniature_vqa has no masks"),
        (["+eval.sets.docs.task=vqa", "+eval.sets.docs.prompt=long"], "eval.sets.docs.prompt=long: vqa has"),
    ],
)
def test_what_a_parts_task_refuses_names_the_parts_key(overrides, message):
    with pytest.raises(UserError) as error:
        Tasks.of(load_config([*BOTH, *overrides]))
    assert str(error.value).startswith(message)


def test_what_a_parts_reward_refuses_names_the_parts_key():
    with pytest.raises(UserError, match=r"^task\.parts\.docs\.reward\.name and reward\.function are both null"):
        rewards_of([*BOTH, "+task.parts.docs.task=vqa"])
    with pytest.raises(UserError, match=r"^task\.parts\.count: the reward 'math' has no option 'credit'"):
        rewards_of([*BOTH, "+task.parts.count.reward.options.credit=1"])
    with pytest.raises(UserError, match=r"^task\.parts\.count\.reward\.function=no:score cannot be imported"):
        rewards_of([*BOTH, "+task.parts.count.reward.function=no:score"])


def test_a_style_must_be_one_of_every_part_unless_its_labels_look_the_same_in_all():
    for style in ("auto", "compact"):
        config = load_config([*BOTH, f"method.style={style}"])
        check_style(config, Tasks.of(config))
    config = load_config([*BOTH, "method.style=quoted"])
    with pytest.raises(ConfigError, match=r"task\.parts\.find\.task=miniature writes labels as spaced, compact, auto"):
        check_style(config, Tasks.of(config))
    config = load_config(["task=miniature_vqa", "method.style=compact"])
    with pytest.raises(ConfigError, match=r"method\.style=compact: task=miniature_vqa writes labels as spaced, auto"):
        check_style(config, Tasks.of(config))


# The order of examples


@pytest.mark.parametrize("weights", [[1.0], [2.0, 1.0], [0.001, 5.0, 1.0], [1e-9, 1.0]])
def test_shares_come_close_to_the_weights(weights):
    sampler = PartSampler(weights, seed=3)
    count = 20_000
    found = Counter(sampler.at(position)[0] for position in range(count))
    for part, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(found[part] - count * share) < 3 * (count / 64) ** 0.5 + 1, "far closer than independent draws"
    first = Counter(sampler.at(position)[0] for position in range(64))
    assert all(abs(first[part] - 64 * weight / sum(weights)) < 1 for part, weight in enumerate(weights))


def test_a_position_has_the_same_part_whatever_was_asked_before():
    whole = PartSampler([2.0, 1.0, 0.5], seed=7)
    order = [whole.at(position) for position in range(500)]
    for position in (499, 64, 63, 0, 300):
        assert PartSampler([2.0, 1.0, 0.5], seed=7).at(position) == order[position]
    for part in range(3):
        assert [rank for drawn, rank in order if drawn == part] == list(range(sum(drawn == part for drawn, _ in order)))
    assert [PartSampler([2.0, 1.0, 0.5], seed=8).at(position) for position in range(500)] != order


@pytest.fixture
def make_mixture():
    def make(*overrides: str, seed: int = 0, train: bool = True) -> Mixture:
        config = load_config([*BOTH, f"seed={seed}", *overrides])
        return Mixture(config, train=train, put=lambda value: value)

    return make


def names(examples) -> list[tuple[str, str]]:
    return [(each.part, each.id) for each in examples]


def test_every_row_of_a_part_is_used_once_before_any_is_used_twice(make_mixture):
    order = names(make_mixture("+task.parts.find.weight=2").train_batch(0, 90))
    for part, rows in (("find", 6), ("count", 4)):
        own = [identity for name, identity in order if name == part]
        epochs = [own[begin : begin + rows] for begin in range(0, len(own) - rows, rows)]
        assert len(epochs) > 5 and all(len(set(epoch)) == rows for epoch in epochs)
        assert epochs[0] != epochs[1], "each is shuffled anew"
    assert abs(sum(name == "find" for name, _ in order) - 60) <= 2


def test_the_order_is_the_same_for_every_batch_size_and_after_a_resume(make_mixture):
    mixture = make_mixture()
    order = names(mixture.train_batch(0, 40))
    for size in (1, 3, 16):
        batches = [names(mixture.train_batch(begin, size)) for begin in range(0, 40 - size, size)]
        assert [one for batch in batches for one in batch] == order[: len(batches) * size]
    assert names(make_mixture().train_batch(17, 23)) == order[17:]
    assert names(make_mixture(seed=1).train_batch(0, 40)) != order


def test_a_run_of_one_task_draws_as_its_loader_does():
    mixture = Mixture(load_config(["task.train=7", "task.held_out=2"]), train=True, put=lambda value: value)
    assert names(mixture.train_batch(5, 20)) == names(mixture.parts[""].train_batch(5, 20))


@pytest.mark.parametrize(("rows", "chosen"), [((0, 0, 2, 1), "2"), ((1, 0), "0"), ((0, 0), "0")])
def test_the_specimen_has_images_if_a_row_has_any(write_jsonl, rows, chosen):
    """`rows` are the numbers of their images."""
    images = [{"image": None, "images": ["picture.png"] * count, "solution": "7"} for count in rows]
    source = write_jsonl(*({"id": str(number)} | row for number, row in enumerate(images)))
    config = load_config(["task=vqa", f"task.train={source}", f"task.held_out={source}"])
    assert Mixture(config, train=True, put=lambda value: value).specimen().id == chosen


@pytest.mark.parametrize("strict", [True, False])
def test_the_tasks_that_check_rows_read_answers_as_those_that_score_them(make_mixture, strict):
    mixture = make_mixture(*SET, f"answers.strict={strict}", train=False)
    assert {loader.task.strict for loader in (*mixture.parts.values(), *mixture.sets.values())} == {strict}


def test_held_out_examples_are_of_parts_and_sets_up_to_the_limit_each(make_mixture):
    mixture = make_mixture(*SET, train=False)
    assert Counter(each.part for each in mixture.held_out_examples(None)) == {"find": 4, "count": 3, "sums": 2}
    assert Counter(each.part for each in mixture.held_out_examples(3)) == {"find": 3, "count": 3, "sums": 2}
    assert mixture.findings.longest.keys() == {"held_out"} and mixture.findings.longest_labelled == 0


def test_a_row_that_cannot_be_used_names_its_part(make_mixture, write_jsonl, data_folder):
    picture(28, 28).save(data_folder / "small.png")
    good = write_jsonl({"image": "small.png", "solution": "[]"}, name="good.jsonl")
    bad = write_jsonl({"image": "small.png", "solution": "?"}, name="bad.jsonl")
    own = ["+task.parts.own.task=non_object", f"+task.parts.own.held_out={good}"]
    with pytest.raises(DataError, match=rf"^task\.parts\.own: {bad}, row 0"):
        make_mixture(*own, f"+task.parts.own.train={bad}")
    with pytest.raises(DataError, match=r"^task\.parts\.own\.train: it is not set"):
        make_mixture(*own)
    with pytest.raises(DataError, match=r"^eval\.sets\.other\.held_out: .*no\.jsonl"):
        make_mixture("+eval.sets.other.task=vqa", "+eval.sets.other.held_out=/no.jsonl")


# What is done per part


def of(part: str, one: Group) -> Group:
    return Group(example(part=part), one.responses)


def test_metrics_are_of_the_run_and_of_each_part_and_set():
    tasks = Tasks.of(load_config([*BOTH, *SET]))

    def predict(part: str, truth: str, answer: str) -> Prediction:
        return Prediction("a", "?", truth, (84, 84), f"<answer>{answer}</answer>", part=part)

    predictions = [predict("find", "[]", "[]"), predict("count", "3", "3"), predict("count", "3", "9")]
    scores = tasks.score([*predictions, predict("sums", "3", "4")])
    assert scores["find/n_acc"] == scores["n_acc"] == 1.0
    assert scores["count/relaxed_accuracy"] == scores["relaxed_accuracy"] == 0.5
    assert scores["sums/accuracy"] == 0.0 and "accuracy" not in scores, "sets do not count in the whole"
    with pytest.raises(KeyError):
        tasks.score([predict("other", "3", "4")])


def test_a_metric_that_several_parts_have_is_their_mean():
    tasks = Tasks.of(load_config(["task=mixture", "+task.parts={a: {task: miniature_vqa}, b: {task: miniature_vqa}}"]))
    right = Prediction("a", "?", "3", (84, 84), "3", part="a")
    wrong = Prediction("a", "?", "3", (84, 84), "4", part="b")
    scores = tasks.score([right, right, right, wrong])
    assert scores["relaxed_accuracy"] == 0.5 and scores["a/relaxed_accuracy"] == 1.0


def test_labels_are_written_by_the_examples_own_task():
    tasks = Tasks.of(load_config(BOTH))
    box = '[{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]}]'
    assert '"bbox_2d"' in tasks.label(example(box, part="find"), "spaced")
    assert tasks.label(example("3", part="count"), "spaced") == "<answer>3</answer>"
    assert tasks.true_boxes(example("3", part="count")) is None and tasks.true_boxes(example(box, part="find"))


def test_a_metric_of_several_parts_has_no_bounds_and_that_of_each_part_has(predictions):
    tasks = Tasks.of(load_config(["task=mixture", "+task.parts={a: {task: miniature_vqa}, b: {task: miniature_vqa}}"]))
    scores = tasks.score(predictions("a", "b"))
    assert scores["relaxed_accuracy"] == 0.5 and "relaxed_accuracy_low" not in scores
    assert (scores["a/relaxed_accuracy_low"], scores["a/relaxed_accuracy_high"]) == (0.0, 1.0)
    alone = Tasks.of(load_config(["task=miniature_vqa"])).score(predictions(""))
    assert (alone["relaxed_accuracy_low"], alone["relaxed_accuracy_high"]) == (0.0, 1.0)


def test_several_answers_to_each_example_are_scored_by_part(predictions):
    tasks = Tasks.of(load_config(["task=mixture", "+task.parts={a: {task: miniature_vqa}, b: {task: miniature_vqa}}"]))
    scores = tasks.score(predictions("a", "b", answers=("3", "4")))
    assert scores["a/relaxed_accuracy"] == 0.5 and scores["a/pass@2"] == scores["pass@2"] == 1.0
    assert scores["b/pass@1_low"] == 0.5 and "pass@1_low" not in scores


@pytest.fixture
def predictions():
    """Returns predictions of parts: to each of two questions all `answers`, or without them one right, one wrong."""

    def make(*parts: str, answers: tuple[str, ...] = ()) -> list[Prediction]:
        given = [answers, answers] if answers else [("3",), ("4",)]
        return [
            Prediction(f"{number}", "?", "3", (84, 84), text, part=part, sample=sample if answers else None)
            for part in parts
            for number, texts in enumerate(given)
            for sample, text in enumerate(texts)
        ]

    return make


def test_coordinates_are_in_the_models_unit_in_each_part(make_mixture):
    unit = "model.coordinates=thousandths"
    mixture = make_mixture(unit, "model.resize=square", "model.square_side=112", "+eval.sets.gui.task=miniature_gui")
    config = load_config([*BOTH, unit, "+eval.sets.gui.task=miniature_gui"])
    tasks = Tasks.of(config, model=config.model)
    for part in ("find", "gui"):
        found = next(each for each in mixture.held_out_examples(4) if each.part == part and each.ground_truth != "[]")
        assert (found.answered, found.compared, found.size) == ("thousandths", "pixels", (112, 112))
        label = tasks.label(found, "spaced")
        assert label != tasks[part].render(found, "spaced")
        (shown,) = tasks.shown_boxes(label, found) or [None]
        assert shown == pytest.approx(tasks.true_boxes(found)[0], abs=0.2) or part == "gui"


def test_a_part_may_be_a_task_of_ones_own_with_its_reward(tmp_path, write_jsonl):
    source = write_jsonl({"problem": "How many?", "solution": "3"})
    (tmp_path / "mine.py").write_text(
        "from visurf_ray.tasks import Task\n\nclass Mine(Task):\n"
        "    def metrics(self, predictions):\n        return {'answers': float(len(predictions))}\n\n"
        "    @staticmethod\n    def reward(response, truth):\n        return float(response == truth)\n"
    )
    data = [f"+task.parts.own.{key}={source}" for key in ("train", "held_out")]
    own = ["task=mixture", *COUNT, "+task.parts.own.task=custom", *data]
    module = [f"+task.parts.own.module={tmp_path}/mine.py:Mine"]
    config = load_config([*own, *module])
    rewards = rewards_of([*own, *module])
    assert rewards["own"].function == f"{tmp_path}/mine.py:Mine.reward" and rewards["count"].name == "math"
    assert rewards["own"].load()("3", "3").parts == {"reward": 1.0}
    assert rewards_of([*own, *module, "+task.parts.own.reward=math"])["own"].function is None
    assert Tasks.of(config).score([Prediction("a", "?", "3", (84, 84), "3", part="own")])["own/answers"] == 1.0
    mixture = Mixture(config, train=True, put=lambda value: value)
    assert {part for part, _ in names(mixture.train_batch(0, 20))} == {"own", "count"}
    with pytest.raises(UserError, match=r"^task\.parts\.own\.module is not set"):
        Tasks.of(load_config(own))
    with pytest.raises(UserError, match=r"^task\.parts\.own\.module=.*has no 'Mien'\. Did you mean 'Mine'"):
        Tasks.of(load_config([*own, f"+task.parts.own.module={tmp_path}/mine.py:Mien"]))


@pytest.fixture
def method() -> Method:
    return Method(
        load_config([*BOTH, "method.style=auto", "method.style_every=5"]).method,
        render=lambda example, style: f"{example.part} {style}",
        encode=lambda text: [1, 2],
        parts={
            "find": Part(["spaced", "compact"], ("thinking_format",), {"accuracy": 3.0}),
            "count": Part(["spaced"], ("accuracy",)),
        },
        longest=16,
        importance=None,
    )


def test_each_part_has_its_own_style_from_the_step_at_which_it_first_appears(method):
    find, count = example(part="find"), example(part="count")
    assert method.aligns(1, [find])
    metrics = method.align([find, find], [[-2.0, -1.0], [-2.0, -0.5]])
    assert metrics == {
        "align/logprob/spaced/find": -2.0,
        "align/logprob/compact/find": -0.75,
        "align/margin/find": 1.25,
    }
    assert not method.aligns(2, [find]) and method.aligns(2, [find, count]) and method.aligns(5, [find])
    assert [len(asked.responses) for asked in method.in_each_style([find, count])] == [2, 1]
    for part, text in (("find", "find compact"), ("count", "count spaced")):
        one = Group(example(part=part), [])
        method.append_label(one, 0)
        assert one.label.text == text


def test_labels_lose_the_thinking_parts_of_their_own_reward(method):
    groups = [of(part, group([1.0, 2.0], 6.0, thinking=1.0)) for part in ("find", "count")]
    method.assign_advantages(groups)
    assert groups[0].label.reward_parts == {"thinking_format": 0.0, "accuracy": 5.0}
    assert groups[1].label.reward_parts == {"thinking_format": 1.0, "accuracy": 0.0}


def test_rewards_are_logged_as_a_whole_and_by_part(method):
    find, count = of("find", group([1.0, 3.0])), of("count", group([5.0, 5.0, 5.0, 5.0]))
    for response in count.responses:
        response.reward_parts = {"accuracy": 5.0}
    metrics = method.assign_advantages([find, count])
    assert metrics["reward/rollout/total/find"] == 2.0 and metrics["reward/rollout/total/count"] == 5.0
    assert metrics["reward/rollout/total"] == pytest.approx(4.0)
    assert metrics["reward/rollout/thinking_format"] == metrics["reward/rollout/thinking_format/find"] == 1.0
    assert "reward/rollout/thinking_format/count" not in metrics


def test_groups_that_all_or_no_rollouts_solve_are_counted_by_part(method):
    """The rollouts' accuracy is their reward less 1; a reward of 4 solves. `count` does not say what solves it."""
    solved, failed, mixed = group([4.0, 4.0]), group([2.0, 3.9]), group([4.0, 1.0])
    metrics = method.assign_advantages(
        [of("find", one) for one in (solved, failed, mixed, group([4.0]))] + [of("count", group([9.0, 9.0]))]
    )
    assert metrics["train/all_solved_share"] == metrics["train/all_solved_share/find"] == 0.5
    assert metrics["train/none_solved_share"] == metrics["train/none_solved_share/find"] == 0.25
    assert "train/all_solved_share/count" not in metrics


def test_a_single_task_has_no_metrics_by_part():
    method = Method(
        load_config([]).method,
        render=lambda example, style: "",
        encode=lambda text: [1],
        parts={"": Part(["spaced"], (), {"accuracy": 3.0})},
        longest=8,
        importance=None,
    )
    metrics = method.assign_advantages([group([4.0, 4.0]), group([1.0, 4.0])])
    assert metrics["train/all_solved_share"] == 0.5 and metrics["train/none_solved_share"] == 0.0
    assert not [name for name in metrics if name.count("/") > (2 if name.startswith("reward/") else 1)]


def test_the_report_shows_scores_by_part_and_a_reward_part_once(tmp_path):
    before = {"giou": 0.2, "find/giou": 0.2, "docs/anls": 0.9}
    after = {"giou": 0.6, "find/giou": 0.6, "docs/anls": 0.8}
    step = {"step": 1, "reward/rollout/accuracy": 1.0, "reward/rollout/accuracy/find": 1.0, "reward/rollout/total": 1.0}
    rows = [
        {"step": at, **{f"eval/{name}": value for name, value in scores.items()}}
        for at, scores in ((0, before), (1, after))
    ]
    drawn = {chart.title: chart for _, listed in charts([*rows, step]) for chart in listed}
    assert [curve.label for curve in drawn["Held-out, docs"].curves] == ["ANLS"]
    assert [curve.label for curve in drawn["Held-out evaluation"].curves] == ["gIoU"]
    assert [curve.label for curve in drawn["Reward parts"].curves] == ["accuracy"]
    write_report(tmp_path / "report.html", config={}, summary={"before": before, "after": after}, rows=rows, samples=[])
    assert "docs: ANLS" in (tmp_path / "report.html").read_text()
    assert "find" not in why_nothing_teaches(step)


RIGHT = {
    "class_name": ("cat", "cat", "dog"),
    "math": ("4", "4", "5"),
    "point_in_box": ("[0, 0, 9, 9]", '[{"point_2d": [5, 5]}]', '[{"point_2d": [50, 5]}]'),
    "vision_reasoner": ("[]", "[]", '[{"bbox_2d": [1, 2, 3, 4]}]'),
    "visual_rft_classification": ("cat", "cat", "dog"),
    "visual_rft_detection": ("No Objects", "No Objects", "[{'Position': [1, 2, 3, 4], 'Confidence': 1}]"),
    "visual_rft_grounding": ("(0,0),(99,99)", "(0,0),(99,90)", "(500,500),(900,900)"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_every_reward_declares_what_solves_it(name):
    truth, right, wrong = RIGHT[name]
    reward = load_reward(name)
    for answer, expected in ((right, True), (wrong, False)):
        parts = reward(f"<think>a</think><answer>{answer}</answer>", truth).parts
        assert all(parts[part] >= least for part, least in reward.solved.items()) is expected
    assert reward.solved and {*RIGHT, "segmentation_mask"} == set(REWARDS)


def test_weights_of_a_reward_apply_to_what_solves_it(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def score(response, truth):\n    return {'right': 1.0}\nscore.solved = {'right': 1.0}\n")
    overrides = ["reward=math", "reward.weight=0.5", f"reward.function={own}:score", "reward.function_weight=2"]
    assert rewards_of(overrides)[""].solved == {"accuracy": 0.5, "right": 2.0}
    own.write_text("def score(response, truth):\n    return 1.0\nscore.solved = ['right']\n")
    with pytest.raises(UserError, match=r"solved=\['right'\] must be a dict"):
        rewards_of(overrides)


def test_systematic_sampling_is_exact_on_average():
    """A part whose share of a block is below one example still gets its share."""
    sampler = PartSampler([1.0, 255.0], seed=0)
    counts = [sampler._count_before(block)[0] for block in (400, 800)]
    assert np.allclose(counts, [100, 200], atol=30)
