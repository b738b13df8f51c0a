"""A task of the user's own: the printed example, what a class may leave out, and its errors."""

import json
import pickle

import pytest

from tests.counting import write_example
from tests.integration.runs import run_here
from tests.unit.conftest import composed, task_config
from visurf_ray.checks import reward_of
from visurf_ray.config.load import load_config
from visurf_ray.errors import ConfigError, DataError, UserError
from visurf_ray.feed.loader import ExampleLoader
from visurf_ray.groups import Example, Prediction, Prompt
from visurf_ray.tasks import load_task
from visurf_ray.tasks.task import Task

LEAST = """
from visurf_ray.tasks import Task

class Least(Task):
    def metrics(self, predictions):
        return {"answers": len(predictions)}
"""


@pytest.fixture
def write_task(tmp_path):
    """Writes a task; returns the value of task.module. `body` is the body of a subclass of Least."""

    def write(body: str = "pass", name: str = "my_task.py", bases: str = "Least") -> str:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (tmp_path / name).write_text(f"{LEAST}\nclass Mine({bases}):\n{lines}\n")
        return f"{tmp_path / name}:Mine"

    return write


@pytest.fixture
def load(write_task, write_jsonl):
    """The task of such a body on a data file of one row whose solution is a text."""

    def make(body: str = "pass", *overrides: str, **row: object) -> Task:
        source = write_jsonl({"problem": "How many?", "solution": "3"} | row)
        config = task_config("custom", source, f"task.module='{write_task(body)}'", *overrides)
        return load_task(config, 0)

    return make


def loader_of(task: Task, processor) -> ExampleLoader:
    loader = ExampleLoader(task, processor, seed=0, max_prompt_tokens=500, put=lambda value: value)
    loader.load_train()
    loader.check()
    return loader


def test_the_printed_example_passes_a_dry_run(tmp_path, monkeypatch):
    commands = write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    check, dry_run, train = ([argument for argument in command[3:]] for command in commands)
    assert [command[:3] for command in commands] == [
        ["python", "-m", "visurf_ray.data"],
        *[["python", "-m", "visurf_ray.train"]] * 2,
    ]
    done = run_here("check_data", *check)
    assert (done.returncode, "A run would use every row." in done.stdout) == (0, True), done.stderr
    done = run_here("train", *dry_run)
    assert done.returncode == 0, done.stderr
    assert "4 training rows, 2 held-out rows" in done.stdout
    assert {*train} - {*dry_run} == {"train.batch_size=2"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        *("data_check.html", "held_out.jsonl", "my_task.py", "pictures", "train.jsonl"),
    ]


def test_the_printed_example_brings_its_reward_and_its_metrics(tmp_path, monkeypatch):
    write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    module = "task.module=my_task.py:Counting"
    config = load_config(["task=custom", module, "task.train=train.jsonl", "task.held_out=held_out.jsonl"])
    task = load_task(config.task, 0)
    spec = reward_of(config.parts[""], task)
    monkeypatch.chdir("/")  # actors work in another folder
    reward = pickle.loads(pickle.dumps(spec)).load()
    assert reward("<answer>3</answer>", "3").parts == {"number": 0.5, "right": 1.0}
    assert reward("many", "3").parts == {"number": 0.0, "right": 0.0}
    row = task.train_rows()[0]
    assert task.question(row) == ("How many discs are there? Answer with a number between <answer> and </answer>.")
    answers = [Prediction("a", "", "3", (84, 84), text) for text in ("<answer>3</answer>", "<answer>4</answer>")]
    assert task.metrics(answers) == {"accuracy": 0.5}
    chosen = load_config(["task=custom", module, "reward=math"])
    spec = reward_of(chosen.parts[""], task)
    assert (spec.function, spec.name) == (None, "math")


def test_a_task_needs_metrics_alone(load, processor):
    task = load()
    example = loader_of(task, processor).train_batch(0, 1)[0]
    assert (example.question, example.ground_truth) == ("How many?", "3")
    assert task.render(example, "spaced") == "<answer>3</answer>"
    assert task.render(Example("a", "", "3", Prompt([], []), (1, 1), thinking="one, two"), "spaced") == (
        "<think>one, two</think><answer>3</answer>"
    )
    assert (task.boxes("", (1, 1)), task.true_boxes(example), task.styles) == ([], None, ("spaced",))
    with pytest.raises(ConfigError, match=r"reward\.name and reward\.function are both null"):
        reward_of(composed("task=custom").parts[""], task)


def test_an_own_task_may_inherit_from_ours(load, write_task, write_jsonl):
    write_task()
    path = write_task(bases="Least").rpartition(":")[0]
    with open(path, "a") as file:
        file.write("\nfrom visurf_ray.tasks.box_task import BoxTask\n\nclass Boxes(BoxTask):\n    pass\n")
    task = load_task(task_config("custom", write_jsonl({}), f"task.module='{path}:Boxes'"), 0)
    task.check(task.train_rows()[0])
    assert task.prompt == "detailed" and task.styles == ("spaced", "compact")


def test_an_own_task_may_be_in_a_module(write_task, tmp_path, monkeypatch):
    write_task(name="my_counting_module.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = task_config("custom", "a.jsonl", "task.module=my_counting_module:Mine")
    assert config.module == "my_counting_module:Mine"
    assert load_task(config, 0).metrics([]) == {"answers": 0.0}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("null", r"task\.module is not set: name your own task, task\.module=path/to/my_task\.py:MyTask"),
        ("FOLDER/none.py:Mine", r"there is no file .*/none\.py"),
        ("FILE:Mien", r"has no 'Mien'\. Did you mean 'Mine'\?"),
        ("FILE", r"must be module:Class or path/to/file\.py:Class"),
        ("FILE:number", "must be a class, and a subclass of visurf_ray.tasks.Task, but is 3"),
        ("FILE:Other", "must be a class, and a subclass of visurf_ray.tasks.Task, but is <class"),
        ("FILE:Task", "lacks the method metrics"),
        ("no_such_module:Mine", "cannot be imported .*No module named 'no_such_module'"),
    ],
)
def test_a_module_that_is_no_task_is_refused(write_task, tmp_path, module, message):
    path = write_task("pass").rpartition(":")[0]
    with open(path, "a") as file:
        file.write("\nnumber = 3\n\nclass Other:\n    pass\n")
    named = module.replace("FOLDER", str(tmp_path)).replace("FILE", path)
    with pytest.raises(UserError, match=message):
        load_task(task_config("custom", "a.jsonl", f"task.module={named if module == 'null' else repr(named)}"), 0)


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("1 / 0", r"ZeroDivisionError: .* at .*broken\.py, line 1"),
        ("x = (", r"SyntaxError: .* at .*broken\.py, line 1"),
    ],
)
def test_a_file_that_breaks_names_its_line(tmp_path, code, place):
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(UserError, match=rf"task\.module=.*broken\.py:Mine cannot be imported \({place}"):
        load_task(task_config("custom", "a.jsonl", f"task.module='{tmp_path}/broken.py:Mine'"), 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("prompts = {}", "prompts must be a dict of names to texts"),
        ("prompts = 'count'", "prompts must be a dict of names to texts"),
        ("prompts = {'json': 'Answer as {\"n\": 3}'}", r"the prompt 'json' cannot be filled in .*must be doubled"),
        ("styles = 'spaced'", r"styles must be a tuple, such as \('spaced',\)"),
        ("solutions = str", "solutions must be a tuple"),
        ("def reward(self, response, ground_truth):\n    return 1", "write @staticmethod above its reward"),
        ("def __init__(self, config):\n    pass", r"TypeError: .*takes 2 positional arguments but 3 were given"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused(load, body, message):
    with pytest.raises(UserError, match=message):
        load(body)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("def question(self, row):", "question"),
        ("def check(self, row):", "check"),
        ("def ground_truth(self, row, scale_x, scale_y):", "ground_truth"),
        ("def render(self, example, style):", "render"),
        ("def metrics(self, predictions):", "metrics"),
        ("def read(self, source):", "read"),
    ],
)
def test_an_error_in_a_method_names_file_and_line_before_a_run(load, processor, method, name):
    task = load(f"{method}\n    return {{}}['count']")
    with pytest.raises(DataError, match=rf"KeyError: 'count' \(.*my_task\.py, line 10, in {name}\)"):
        loader_of(task, processor)


def test_a_lack_of_memory_in_a_method_is_no_error_of_the_row(load, processor):
    with pytest.raises(MemoryError):
        loader_of(load("def check(self, row):\n    raise MemoryError"), processor)


def test_an_error_in_check_refuses_the_row(load, processor):
    task = load("def check(self, row):\n    int(row.solution)", solution="three")
    with pytest.raises(DataError, match=r"data\.jsonl, row 0: ValueError: invalid literal .*line 10, in check"):
        loader_of(task, processor)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def render(self, example, style):\n    return 3", "render must return text, not 3"),
        ("def ground_truth(self, row, x, y):\n    return None", "ground_truth must return text, not None"),
        ("def metrics(self, predictions):\n    return 0.5", "metrics must return a dict of names to finite numbers"),
        ("def metrics(self, predictions):\n    return {'a': float('nan')}", "metrics must return a dict"),
        ("def read(self, source):\n    return [1]", "read must return a list of Row"),
    ],
)
def test_a_result_of_the_wrong_kind_is_refused(load, processor, body, message):
    with pytest.raises(UserError, match=message):
        loader_of(load(body), processor)


def test_boxes_of_the_wrong_kind_are_refused(load):
    task = load("def boxes(self, text, size):\n    return json_boxes\njson_boxes = [1, 2, 3, 4]")
    with pytest.raises(UserError, match="NameError"):
        task.shown_boxes("", Example("a", "", "3", Prompt([], []), (1, 1)))
    task = load("def boxes(self, text, size):\n    return [1, 2, 3, 4]")
    with pytest.raises(UserError, match=r"boxes must return a list of \(x1, y1, x2, y2\), not \[1, 2, 3, 4\]"):
        task.shown_boxes("", Example("a", "", "3", Prompt([], []), (1, 1)))


def test_an_error_in_a_reward_names_its_line(tmp_path):
    (tmp_path / "mine.py").write_text("def score(response, ground_truth):\n    return int(response)\n")
    from visurf_ray.rewards.function import load_function

    with pytest.raises(UserError, match=r"ValueError: invalid literal .*mine\.py, line 2, in score"):
        load_function(f"{tmp_path}/mine.py:score")("many", "3")


def test_the_file_starts_from_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(["task=custom", "task.module=my_task.py:Mine"]).task.module == f"{tmp_path}/my_task.py:Mine"
    assert load_config(["task=custom", "task.module=package.my_task:Mine"]).task.module == "package.my_task:Mine"


def test_prompts_are_chosen_by_name(load):
    body = "prompts = {'short': '{query} Shortly.', 'long': '{query} At length, as {{\"n\": 3}}.'}"
    row = load(body).train_rows()[0]
    assert load(body).question(row) == "How many? Shortly."
    assert load(body, "task.prompt=long").question(row) == 'How many? At length, as {"n": 3}.'
    with pytest.raises(DataError, match=r"task\.prompt=lon: custom has short, long, or .*Did you mean 'long'\?"):
        load(body, "task.prompt=lon")


def test_solutions_of_other_types_arrive_as_json(load):
    body = "solutions = (int, list)"
    assert load(body, solution=[1, "a"]).train_rows()[0].solution == json.dumps([1, "a"])
    with pytest.raises(DataError, match=r"the solution must be an integer or a list, not \"3\""):
        load(body).train_rows()


@pytest.mark.parametrize("name", ["values", "correct", "answer_key"])
def test_an_error_in_what_is_scored_for_each_answer_names_its_line(load, processor, name):
    with pytest.raises(DataError, match=rf"KeyError: 'count' \(.*my_task\.py, line \d+, in {name}\)"):
        getattr(load(f"def {name}(self, prediction):\n    return {{}}['count']"), name)(None)
