"""OmniACT's files, the element that a script points at, and accuracy as VisionReasoner computes it."""

import json
import re

import pytest

from tests.unit.conftest import picture, prediction
from visurf_ray.errors import DataError
from visurf_ray.rewards import load_reward

ELEMENTS = {
    "window": {"top_left": [0, 0], "bottom_right": [120, 60], "label": "window"},
    "stop_button": {"top_left": [40, 10], "bottom_right": [60, 20], "label": "stop_button"},
    "bar": {"top_left": [-5, 50], "bottom_right": [100, 60], "label": "bar"},
}


@pytest.fixture
def omniact(tmp_path):
    """Writes a data set of one desktop screen of 100×60; each script becomes an example."""

    def write(*scripts: str, elements=ELEMENTS) -> str:
        for folder in ("tasks", "data", "metadata"):
            (tmp_path / "data" / folder / "desktop" / "clock").mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / "data/data/desktop/clock/screen_1.png")
        (tmp_path / "data/metadata/desktop/clock/screen_1.json").write_text(json.dumps(elements))
        index = {}
        for number, script in enumerate(scripts):
            task = f"data/tasks/desktop/clock/task_1.{number}.txt"
            (tmp_path / task).write_text(f"Task: Stop the clock\nOutput Script:\n{script}\n")
            index[str(2849 + number)] = {
                "task": task,
                "image": "data/data/desktop/clock/screen_1.png",
                "ocr": "ocr/desktop/clock/screen_1.json",
                "color": "detact_color/desktop/clock/screen_1.json",
                "icon": "detact_icon/desktop/clock/screen_1.json",
                "box": "data/metadata/desktop/clock/screen_1.json",
            }
        (tmp_path / "train.json").write_text(json.dumps(index))
        return str(tmp_path / "train.json")

    return write


def test_the_target_is_the_smallest_element_around_the_click(omniact, open_task):
    (row,) = open_task("gui_grounding", omniact("pyautogui.click(50.5,15.0)")).train_rows()
    assert (row.id, row.problem) == ("2849", "Stop the clock")
    assert json.loads(row.solution) == [{"bbox_2d": [40, 10, 60, 20], "point_2d": [51, 15]}]
    assert row.open_image().size == (100, 60)


@pytest.mark.parametrize(
    ("script", "box"),
    [
        ("pyautogui.doubleClick(40, 10)", [40, 10, 60, 20]),  # edges included
        ("pyautogui.rightClick(20,20)", [0, 0, 100, 60]),  # cut off at the screen's edges
        ("pyautogui.moveTo(20.0,55.0)", [0, 50, 100, 60]),
        ('pyautogui.click(50,15)\npyautogui.write("noon")', [40, 10, 60, 20]),
    ],
)
def test_clicks_and_moves_are_read_from_scripts(omniact, open_task, script, box):
    (row,) = open_task("gui_grounding", omniact(script)).train_rows()
    assert json.loads(row.solution)[0]["bbox_2d"] == box


def test_scripts_that_point_at_no_element_or_several_places_are_left_out_and_counted(omniact, open_task, capfd):
    scripts = [
        "pyautogui.click(50,15)",
        "pyautogui.scroll(-10)",
        'pyautogui.hotkey("ctrl", "c")',
        "pyautogui.click(50,15)\npyautogui.click(20,55)",
        "pyautogui.click(150,150)",
    ]
    source = omniact(*scripts)
    assert [row.id for row in open_task("gui_grounding", source).train_rows()] == ["2849"]
    assert "4 of 5 examples point at no element or at several places, and are left out" in capfd.readouterr().err
    with pytest.raises(DataError, match=rf"{re.escape(source)}: 1 of 1 examples point at no element"):
        open_task("gui_grounding", omniact("pyautogui.scroll(-10)")).train_rows()


def test_web_screens_have_other_names_on_the_disk(omniact, open_task, tmp_path):
    source = omniact("pyautogui.click(50,15)")
    screen, boxes = "data/data/desktop/clock/screen_1.png", "data/metadata/desktop/clock/screen_1.json"
    (tmp_path / screen).rename(tmp_path / "data/data/desktop/clock/screen1.png")
    (tmp_path / boxes).rename(tmp_path / "data/metadata/desktop/clock/screen1_boxes.json")
    (row,) = open_task("gui_grounding", source).train_rows()
    assert row.open_image().size == (100, 60)
    assert json.loads(row.solution)[0]["bbox_2d"] == [40, 10, 60, 20]


def test_the_paths_may_start_from_another_folder(omniact, open_task, tmp_path):
    omniact("pyautogui.click(50,15)")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "train.json").rename(tmp_path / "elsewhere" / "train.json")
    with pytest.raises(DataError, match=r"task_1\.0\.txt cannot be read"):
        open_task("gui_grounding", moved).train_rows()
    assert len(open_task("gui_grounding", moved, f"task.image_root='{tmp_path}'").train_rows()) == 1


def test_bad_files_are_named(omniact, open_task, tmp_path):
    source = omniact("pyautogui.click(50,15)", elements={"button": {"top_left": [1, 2]}})
    with pytest.raises(DataError, match=r"clock/screen_1\.json must hold elements with top_left and bottom_right"):
        open_task("gui_grounding", source).train_rows()
    source = omniact("pyautogui.click(50,15)")
    (tmp_path / "data/tasks/desktop/clock/task_1.0.txt").write_text("Stop the clock")
    with pytest.raises(DataError, match=rf"{re.escape(source)}, row 2849: .*but it begins 'Stop the clock'"):
        open_task("gui_grounding", source).train_rows()


def test_the_ground_truth_is_scaled_with_the_screen_and_its_label_earns_full_rewards(omniact, open_task, open_loader):
    task = open_task("gui_grounding", omniact("pyautogui.click(50,15)"))
    (example,) = open_loader(task).held_out_examples(None)
    assert example.size == (112, 56)  # 100×60 by 1.12 and 0.9333
    assert json.loads(example.ground_truth) == [{"bbox_2d": [45, 9, 67, 19], "point_2d": [56, 14]}]
    label = f"<think>It stops.</think>{task.render(example, 'compact')}"
    assert load_reward("point_in_box")(label, example.ground_truth).total == 3.0
    assert load_reward("vision_reasoner")(label, example.ground_truth).total == 7.0
    assert task.metrics([prediction(example.ground_truth, label)])["accuracy"] == 1.0
    assert '"Stop the clock"' in task.question(task.train_rows()[0])


def test_the_six_columns_are_read_as_well(write_parquet, open_task, open_loader):
    source = write_parquet({})
    assert len(open_loader(open_task("gui_grounding", source)).held_out_examples(None)) == 1
    source = write_parquet({"solution": "[]"})
    with pytest.raises(DataError, match=r"row 0 \(id row-0\): the solution must be one element, not \[\]"):
        open_loader(open_task("gui_grounding", source))


TRUTH = json.dumps([{"bbox_2d": [40, 10, 60, 20], "point_2d": [50, 15]}])


def answer(*items) -> str:
    return f"<think>a</think><answer>{json.dumps(items)}</answer>"


@pytest.mark.parametrize(
    ("response", "accuracy", "accuracy_one"),
    [
        (answer({"bbox_2d": [0, 0, 10, 10], "point_2d": [60, 20]}), 1, 1),  # the edge; the box does not matter
        (answer({"point_2d": [61, 20]}), 0, 0),
        (answer({"bbox_2d": [45, 12, 55, 18]}), 1, 1),  # its centre
        (answer({"bbox_2d": [45, 12, 55, 18], "point_2d": [0, 0]}), 0, 0),  # a point is there, and counts
        (answer({"point_2d": [0, 0]}, {"point_2d": [50, 15]}), 1, 0),  # a shower
        (answer({"point_2d": [0, 0]}, {"bbox_2d": [45, 12, 55, 18]}), 0, 0),
        (answer({"bbox_2d": [0, 0, 10, 10]}, {"point_2d": [50, 15]}), 1, 0),
        (answer(), 0, 0),
        ("<answer>there</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_accuracy_by_hand(omniact, open_task, response, accuracy, accuracy_one):
    scores = open_task("gui_grounding", "a.jsonl").metrics([prediction(TRUTH, response)])
    assert (scores["accuracy"], scores["accuracy_one"]) == (accuracy, accuracy_one)
    assert scores["accuracy"] == load_reward("point_in_box")(response, TRUTH).parts["accuracy"]


def test_scores_are_means_and_without_examples_there_are_none(open_task):
    task = open_task("gui_grounding", "a.jsonl")
    right = answer({"bbox_2d": [40, 10, 60, 20], "point_2d": [50, 15]})
    assert task.metrics([prediction(TRUTH, right), prediction(TRUTH, "?")]) == {
        "accuracy": 0.5,
        "accuracy_one": 0.5,
        "format_rate": 0.5,
        "thinking_rate": 0.5,
    }
    assert task.metrics([]) == {}


POINTS = [[50, 15], [[50, 15]], {"point_2d": [50, 15]}, [{"point_2d": [50.0, 15.0]}], "<answer>[50, 15]</answer>"]


@pytest.mark.parametrize("solution", POINTS)
def test_a_solution_may_be_a_point_alone(write_jsonl, open_task, open_loader, solution):
    """The label is the point, scaled with the screen, and earns full rewards; the prompt asks for no box."""
    task = open_task("gui_grounding", write_jsonl({"solution": solution}))
    (example,) = open_loader(task).held_out_examples(None)
    assert json.loads(example.ground_truth) == {"objects": [{"point_2d": [56, 14]}], "within": 30.0}
    label = f"<think>It stops.</think>{task.label(example, 'compact')}"
    assert label.endswith('<answer>[{"point_2d":[56,14]}]</answer>')
    assert load_reward("point_in_box")(label, example.ground_truth).total == 3.0
    assert load_reward("vision_reasoner")(label, example.ground_truth).total == 7.0
    assert set(task.metrics([prediction(example.ground_truth, label)]).values()) == {1.0}
    assert task.true_boxes(example) is None and "box" not in task.question(task.train_rows()[0])


CLICK = json.dumps({"objects": [{"point_2d": [50, 15]}], "within": 30.0})


@pytest.mark.parametrize(
    ("response", "accuracy", "accuracy_one", "of_points"),
    [
        (answer({"point_2d": [50, 44.9]}), 1, 1, 3.0),
        (answer({"point_2d": [50, 45]}), 0, 0, 0.0),
        (answer({"point_2d": [0, 0]}, {"point_2d": [50, 15]}), 1, 0, 1.5),
        (answer({"bbox_2d": [40, 10, 60, 20]}), 1, 1, 0.0),  # its centre, which is no point for vision_reasoner
        (answer({"bbox_2d": [40, 10, 60, 20], "point_2d": [90, 50]}), 0, 0, 0.0),
        (answer(), 0, 0, 0.0),
        ("there", 0, 0, 0.0),
    ],
)
def test_an_answer_is_right_near_a_point_alone(open_task, response, accuracy, accuracy_one, of_points):
    scores = open_task("gui_grounding", "a.jsonl").metrics([prediction(CLICK, response)])
    assert (scores["accuracy"], scores["accuracy_one"]) == (accuracy, accuracy_one)
    assert load_reward("point_in_box")(response, CLICK).parts["accuracy"] == accuracy
    assert load_reward("vision_reasoner")(response, CLICK).parts["accuracy"] == of_points


@pytest.mark.parametrize(
    ("solution", "overrides", "message"),
    [
        ([101, 15], (), r"the point \[101, 15\] lies outside the image of 100×60"),
        ([0.5, 0.25], (), "has coordinates between 0 and 1"),
        ([[1, 2], [3, 4]], (), "item 0 needs bbox_2d"),
        ([1, 2, 3], (), "."),
        ([50, 15], ("task.point_distance=null",), r"set task\.point_distance"),
    ],
)
def test_points_that_cannot_be_used_are_refused_by_row(
    write_jsonl, open_task, open_loader, solution, overrides, message
):
    with pytest.raises(DataError, match=f"row 0: .*{message}"):
        open_loader(open_task("gui_grounding", write_jsonl({"solution": solution}), *overrides))


def test_a_point_outside_the_screen_can_be_moved_inside(write_jsonl, open_task):
    task = open_task("gui_grounding", write_jsonl({"solution": [101, -2]}))
    assert json.loads(task.repaired(task.train_rows()[0]).solution) == [{"point_2d": [100, 0]}]


def test_points_and_boxes_may_be_mixed(write_jsonl, open_task, open_loader):
    loader = open_loader(open_task("gui_grounding", write_jsonl({}, {"solution": [50, 15]})))
    assert [("within" in each.ground_truth) for each in loader.held_out_examples(None)] == [False, True]
