"""What a resumed run may change."""

import json
from pathlib import Path

import pytest

from visurf_ray.config.load import load_config
from visurf_ray.config.resuming import check_changes
from visurf_ray.config.schema import to_dict
from visurf_ray.errors import ConfigError


def compare(before: list[str], now: list[str]) -> str | None:
    written = json.loads(json.dumps(to_dict(load_config(before))))  # as a checkpoint holds it
    return check_changes(written, load_config(now), Path("runs/a/checkpoints/step_000004"))


@pytest.mark.parametrize(
    "overrides",
    [[], ["method=sft_then_rlvr", "learner.lora.rank=4"], ["task=mixture", "+task.parts={a:{task:miniature}}"]],
)
def test_the_same_command_resumes_without_a_word(overrides: list[str]) -> None:
    assert compare(overrides, [*overrides, "train.resume=auto"]) is None


@pytest.mark.parametrize(
    "changes",
    [
        ["train.steps=200"],
        ["rollout.workers=2", "learner.max_tokens_per_micro_batch=9000"],
        ["eval.every=7", "monitor.project=other"],
        ["task.held_out=100"],
    ],
)
def test_what_alters_nothing_passes_with_a_line(changes: list[str]) -> None:
    line = compare([], changes)
    assert line is not None and line.startswith("resumed with other settings: ")
    for change in changes:
        assert f"{change} (before: " in line


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([], ["seed=3"], "seed=3 (before: 0)"),
        ([], ["method=rlvr"], "method.label=False (before: True)"),
        ([], ["train.batch_size=4"], "train.batch_size=4 (before: 16)"),
        ([], ["task=miniature_gui"], "task.name=miniature_gui (before: miniature)"),
        (["learner.schedule=cosine"], ["learner.schedule=cosine", "train.steps=99"], "train.steps=99 (before: 80)"),
        (["method.dual_clip=3"], [], "method.dual_clip=null (before: 3.0)"),
    ],
)
def test_what_alters_the_result_is_refused_with_both_values(before: list[str], now: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compare(before, now)
    assert expected in str(caught.value)
    assert "step_000004" in str(caught.value) and "train.resume_override=true" in str(caught.value)
    line = compare(before, [*now, "train.resume_override=true"])
    assert line is not None and expected in line


def test_a_setting_of_a_part_is_named() -> None:
    parts = ["task=mixture", "+task.parts={a:{task:miniature,weight:1},b:{task:miniature_gui,weight:1}}"]
    with pytest.raises(ConfigError, match=r"task\.parts\.b\.weight=2\.0 \(before: 1\.0\)"):
        compare(parts, [*parts, "task.parts.b.weight=2"])


SET = ["+eval.sets.docs.task=vqa", "+eval.sets.docs.held_out=docs.jsonl"]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([], SET),
        (SET, []),
        (SET, [*SET, "+eval.sets.docs.prompt=plain"]),
        (SET, [text.replace("docs", "charts") for text in SET]),
    ],
    ids=["added", "removed", "changed", "renamed"],
)
def test_held_out_sets_may_change(before: list[str], now: list[str]) -> None:
    line = compare(before, now)
    assert line is not None and line.startswith("resumed with other settings: eval.sets")


@pytest.mark.parametrize("swapped", [False, True], ids=["added", "removed"])
def test_parts_of_a_mixture_may_not(swapped: bool) -> None:
    one = ["task=mixture", "+task.parts.a.task=miniature"]
    before, now = (one, [*one, "+task.parts.b.task=miniature_gui"])[:: -1 if swapped else 1]
    with pytest.raises(ConfigError, match=r"task\.parts\.b\.name="):
        compare(before, now)


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(ConfigError) as caught:
        compare([f"task.train=[{','.join(f'data/{number}.jsonl' for number in range(500))}]"], [])
    assert len(str(caught.value)) < 1000
