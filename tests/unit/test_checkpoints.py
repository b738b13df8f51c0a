"""Checkpoints are complete or absent, the newest are kept, and runs resume from them."""

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from visurf_ray.checkpoints.stored import (
    Best,
    CheckpointError,
    State,
    all_checkpoints,
    find_resume,
    folder_name,
    read_state,
)
from visurf_ray.checkpoints.writing import Checkpoints
from visurf_ray.config.load import load_config
from visurf_ray.errors import ConfigError, DiskFullError, LearnerLostError, StalledError, UserError, WriteError
from visurf_ray.resume_checks import _check_folder, _check_steps_left, _initial_state


def saver(text: str = "weights") -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "weights.bin").write_text(text)

    return save


def save_whole(checkpoints: Checkpoints, state: State, save: Callable[[Path], None]) -> Path:
    checkpoints.begin(state, save, lambda wait: True)
    checkpoints.finish(wait=False)
    return checkpoints.folder / folder_name(state.step)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "run" / "checkpoints"


def names(folder: Path) -> list[str]:
    """Everything that a reader of the folder sees, hidden leftovers aside."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_checkpoint_holds_the_learners_files_and_the_state(folder):
    state = State(40, 640, run_id="run-1", before={"giou": 0.5}, train_seconds=12.5)
    seen = []

    def save(target: Path) -> None:
        assert target.is_absolute() and target.is_dir(), "Ray's actors work in folders of their own"
        seen.append(target)
        saver()(target)

    path = save_whole(Checkpoints(folder, keep=2), state, save)
    assert (path.name, path.parent) == ("step_000040", folder)
    assert (path / "weights.bin").read_text() == "weights"
    assert read_state(path) == state
    assert seen[0] != path and names(folder) == ["step_000040"]
    assert list(folder.iterdir()) == [path], "nothing is left beside it"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("position"), "position is missing"),
        (lambda state: state.update(more=1), "nothing is missing; more is unknown"),
        (lambda state: state.update(dict.fromkeys(map(str, range(10**5)), 0)), "is unknown"),
        (lambda state: state.clear(), "best, config, dropped, faults, position"),
    ],
)
def test_a_state_of_another_version_is_refused_by_its_keys(folder, change, told):
    path = save_whole(Checkpoints(folder, keep=2), State(40, 640), saver())
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=rf"step_000040/state.json is of another version.*{told}") as caught:
        read_state(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"text"', "\xff"])
def test_a_state_that_is_none_is_refused(folder, content):
    path = save_whole(Checkpoints(folder, keep=2), State(40, 640), saver())
    (path / "state.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"step_000040/state.json is (damaged|of another version)"):
        read_state(path)


@pytest.mark.parametrize(
    "state",
    [
        State(),
        State(3),
        State(7, 112, {"a": [[1, 2]]}, {"a": [4]}, {"": "compact"}, "x", {"a": 0.1, "b": -1e-9}, 1e6),
        State(9, trained={"lora": ["q"]}, best=Best("n_acc", 0.5, 2, "step_000002")),
    ],
)
def test_states_are_read_as_they_were_written(folder, state):
    assert read_state(save_whole(Checkpoints(folder, keep=1), state, saver())) == state


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 6])
def test_the_newest_are_kept(folder, keep):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in (10, 20, 30, 40):
        save_whole(checkpoints, State(step), saver())
        assert all_checkpoints(folder)[-1].name == f"step_{step:06d}"
    assert names(folder) == [f"step_{step:06d}" for step in (10, 20, 30, 40)[-keep:]]


def test_steps_are_ordered_as_numbers(folder):
    """Beyond six digits the names are longer: 1,000,000 comes after 999,999."""
    checkpoints = Checkpoints(folder, keep=2)
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save_whole(checkpoints, State(step), saver())
    assert [read_state(path).step for path in all_checkpoints(folder)] == [1_000_000, 1_000_001]
    newest = find_resume("auto", folder)
    assert newest is not None and read_state(newest).step == 1_000_001


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_checkpoints_of_an_abandoned_branch_are_removed(folder, keep):
    """A run that went on from an older checkpoint by its path saves steps below the newest."""
    save_whole(Checkpoints(folder, keep=3), State(80), saver())
    path = save_whole(Checkpoints(folder, keep=keep), State(40), saver("new"))
    assert (path / "weights.bin").read_text() == "new"
    newest = find_resume("auto", folder)
    assert newest is not None and read_state(newest).step == 40


def failing(folder: Path) -> None:
    (folder / "weights.bin").write_text("half of it")
    raise ValueError("a defect")


@pytest.mark.parametrize("step", [20, 30], ids=["again", "next"])
def test_a_saver_that_raises_leaves_no_step_and_the_old_ones_whole(folder, step):
    checkpoints = Checkpoints(folder, keep=1)
    save_whole(checkpoints, State(20), saver())
    with pytest.raises(ValueError, match="a defect"):
        save_whole(checkpoints, State(step), failing)
    assert names(folder) == ["step_000020"]
    assert (folder / "step_000020" / "weights.bin").read_text() == "weights"
    assert find_resume("auto", folder) == folder / "step_000020"


def test_saving_goes_on_after_a_failure_and_takes_nothing_of_it(folder):
    def half(folder: Path) -> None:
        (folder / "leftover.bin").write_text("x")
        raise OSError

    checkpoints = Checkpoints(folder, keep=1)
    with pytest.raises(OSError):
        save_whole(checkpoints, State(20), half)
    path = save_whole(checkpoints, State(20), saver())
    assert sorted(file.name for file in path.iterdir()) == ["files.json", "state.json", "weights.bin"]


def test_saving_a_step_again_replaces_it(folder):
    checkpoints = Checkpoints(folder, keep=2)
    save_whole(checkpoints, State(20), saver("old"))
    path = save_whole(checkpoints, State(20, run_id="again"), saver("new"))
    assert (path / "weights.bin").read_text() == "new" and read_state(path).run_id == "again"
    assert names(folder) == ["step_000020"]


def test_while_a_step_is_replaced_its_older_checkpoint_is_whole_until_the_new_one_is(folder, monkeypatch):
    checkpoints, remove, found = Checkpoints(folder, keep=1), shutil.rmtree, []
    path = save_whole(checkpoints, State(20), saver("old"))

    def look(*arguments, **options):
        found.append((path / "weights.bin").read_text())
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", look)
    save_whole(checkpoints, State(20), saver("new"))
    assert found and found[-1] == "new" and set(found) == {"old", "new"}


def test_a_partial_folder_is_never_chosen(folder):
    """Torn while writing, or copied without its end."""
    save_whole(Checkpoints(folder, keep=1), State(10), saver())
    for name in (".step_000020.partial", "step_000030"):
        (folder / name).mkdir()
        (folder / name / "weights.bin").write_text("half")
    (folder / ".step_000020.partial" / "state.json").write_text('{"step": 20}')
    assert find_resume("auto", folder) == folder / "step_000010"
    with pytest.raises(CheckpointError):
        find_resume(str(folder / "step_000030"), folder)


def test_folders_with_other_names_are_neither_chosen_nor_removed(folder):
    """Copies that a user has made, and what other programs leave."""
    checkpoints = Checkpoints(folder, keep=1)
    path = save_whole(checkpoints, State(10), saver())
    others = [
        "step_000010 copy",
        "step_000099.bak",
        "step_final",
        "step_",
        "step_20",
        "step_-00005",
        "best",
        "step_٠٠٠٠٩٩",
    ]
    for name in others:
        shutil.copytree(path, folder / name)
    (folder / "step_000099").write_text("a file")
    assert find_resume("auto", folder) == path
    save_whole(checkpoints, State(20), saver())
    assert names(folder) == sorted([*others, "step_000020", "step_000099"])


def test_an_incomplete_checkpoint_is_never_removed(folder):
    checkpoints = Checkpoints(folder, keep=1)
    (folder / "step_000001").mkdir(parents=True)
    (folder / "step_000001" / "weights.bin").write_text("a copy that is under way")
    for step in (2, 3):
        save_whole(checkpoints, State(step), saver())
    assert names(folder) == ["step_000001", "step_000003"]


def test_a_renamed_checkpoint_is_not_taken_for_that_of_another_step(folder, capsys):
    checkpoints = Checkpoints(folder, keep=3)
    older, newer = (save_whole(checkpoints, State(step), saver()) for step in (10, 20))
    newer.rename(folder / "step_000090")
    assert find_resume("auto", folder) == older
    assert "step_000090 is of step 20; the run resumes from an older one" in capsys.readouterr().out
    assert find_resume(str(folder / "step_000090"), folder) == folder / "step_000090"


@pytest.mark.parametrize("content", ["", "{}", '{"metric": "n_acc"}', "[1]"])
def test_a_damaged_best_json_ends_a_resume_before_its_checkpoint_is_removed(folder, content):
    checkpoints = Checkpoints(folder, keep=1)
    path = save_whole(checkpoints, State(10), saver())
    checkpoints.keep_best(Best("n_acc", 0.5, 10, path.name))
    (folder / "best.json").write_text(content)
    for resume in ("auto", str(path)):
        with pytest.raises(CheckpointError, match=r"best\.json is (damaged|of another version)"):
            find_resume(resume, folder)
    assert path.is_dir()


def test_a_checkpoint_on_another_disk_is_not_removed_with_its_link(folder, tmp_path):
    checkpoints = Checkpoints(folder, keep=1)
    path = save_whole(checkpoints, State(10), saver())
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert find_resume("auto", folder) == path
    save_whole(checkpoints, State(20), saver())
    assert names(folder) == ["step_000010", "step_000020"] and (tmp_path / "elsewhere" / "weights.bin").is_file()


# Resuming


def test_nothing_is_resumed_unless_asked_for(folder):
    save_whole(Checkpoints(folder, keep=1), State(10), saver())
    assert find_resume(None, folder) is None


def test_auto_takes_the_newest_or_starts_anew(folder):
    assert find_resume("auto", folder) is None
    folder.mkdir(parents=True)
    assert find_resume("auto", folder) is None
    checkpoints = Checkpoints(folder, keep=3)
    for step in (20, 100):
        save_whole(checkpoints, State(step), saver())
    assert find_resume("auto", folder) == folder / "step_000100"


def test_a_path_may_lead_to_another_run(folder, tmp_path):
    path = save_whole(Checkpoints(tmp_path / "other", keep=1), State(10), saver())
    assert find_resume(str(path), folder) == path


@pytest.mark.parametrize("where", ["nowhere", "run", "run/checkpoints", "run/checkpoints/step_000099"])
def test_a_path_that_is_no_checkpoint_is_named_beside_those_that_are(folder, tmp_path, where):
    save_whole(Checkpoints(folder, keep=1), State(10), saver())
    with pytest.raises(CheckpointError) as error:
        find_resume(str(tmp_path / where), folder)
    assert f"train.resume={tmp_path / where}: this is no checkpoint" in str(error.value)
    assert "step_000010" in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 15449664 vs 15449552"),
        RuntimeError("ray::LearnerActor.save() … I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_and_no_part_of_a_checkpoint_is_left(folder, error):
    checkpoints = Checkpoints(folder, keep=1)
    save_whole(checkpoints, State(1), saver())

    def fill(target: Path) -> None:
        saver()(target)
        raise error

    with pytest.raises(DiskFullError) as told:
        save_whole(checkpoints, State(2), fill)
    for part in ("checkpoint of step 2", str(folder), "MB free", "train.resume=auto"):
        assert part in str(told.value)
    assert [path.name for path in folder.iterdir()] == ["step_000001"]
    assert find_resume("auto", folder) == folder / "step_000001"


def test_another_error_is_raised_as_it_is_and_leaves_no_part_either(folder):
    def fail(target: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_whole(Checkpoints(folder, keep=1), State(2), fail)
    assert list(folder.iterdir()) == []


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path):
    """A limit of the system on the size of files, in a process of its own."""
    code = """
import resource, sys
from pathlib import Path
from visurf_ray.errors import DiskFullError
from visurf_ray.monitor.files import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(Path(sys.argv[1]) / "report.html", "x" * 2000)
except DiskFullError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert f"cannot write report.html: File too large. {tmp_path} has" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_part_of_best_json(folder, monkeypatch):
    checkpoints = Checkpoints(folder, keep=1)
    path = save_whole(checkpoints, State(1), saver())

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", fill)
    with pytest.raises(DiskFullError, match=r"cannot write best\.json"):
        checkpoints.keep_best(Best("n_acc", 0.5, 1, path.name))
    assert [each.name for each in folder.iterdir()] == [path.name]


def test_parts_of_a_run_that_was_killed_are_removed(folder):
    (folder / ".step_000001.partial").mkdir(parents=True)
    save_whole(Checkpoints(folder, keep=1), State(2), saver())
    assert [path.name for path in folder.iterdir()] == ["step_000002"]


def test_a_run_with_no_steps_left_is_refused(folder):
    def steps_left(steps: int) -> None:
        _check_steps_left(steps, folder / "step_000004", State(4), folder.parent)

    steps_left(5)
    for steps in (2, 4):
        with pytest.raises(ConfigError, match=rf"train.steps={steps}: .* has done 4 steps, .* set it above 4"):
            steps_left(steps)
    folder.mkdir(parents=True)
    (folder.parent / "metrics.jsonl").touch()
    steps_left(4)  # it was interrupted before its report
    (folder.parent / "summary.json").touch()
    with pytest.raises(ConfigError, match=r"train.steps=4"):
        steps_left(4)


def test_a_checkpoint_of_another_run_does_not_replace_the_run_in_a_folder(folder, tmp_path):
    """Its rows in metrics.jsonl and its later checkpoints would be removed."""
    other = save_whole(Checkpoints(tmp_path / "other", keep=1), State(10, run_id="other"), saver())
    _check_folder(other, read_state(other), folder.parent)
    own = save_whole(Checkpoints(folder, keep=9), State(20, run_id="own"), saver())
    (folder.parent / "metrics.jsonl").touch()
    for path, run in ((own, "own"), (shutil.copytree(own, tmp_path / "saved"), "own")):
        _check_folder(path, State(20, run_id=run), folder.parent)
    with pytest.raises(
        ConfigError, match=r"already holds a run, and train\.resume=.*/other/step_000010 is no checkpoint"
    ):
        _check_folder(other, read_state(other), folder.parent)
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match="already holds a run"):
        _check_folder(other, read_state(other), folder.parent)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no command `mount`")
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_weights_that_torch_writes_to_a_full_disk_are_told_of(small_disk):
    import torch

    def save(folder: Path) -> None:
        torch.save(torch.zeros(numbers), folder / "weights.pt")

    checkpoints, numbers = Checkpoints(small_disk / "checkpoints", keep=1), 1000
    save_whole(checkpoints, State(1), save)
    numbers = 2**20
    with pytest.raises(DiskFullError, match=r"checkpoint of step 2: No space left on device\. .* 1 MB free"):
        save_whole(checkpoints, State(2), save)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_000001"]


def damaged(checkpoint: Path, how: str) -> None:
    weights = checkpoint / "weights.bin"
    match how:
        case "missing":
            weights.unlink()
        case "torn":
            weights.write_text("weig")
        case "no list":
            (checkpoint / "files.json").unlink()
        case "torn list":
            (checkpoint / "files.json").write_text('{"weig')


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "is damaged: its file weights.bin is missing"),
        ("torn", "is damaged: its file weights.bin has 4 bytes instead of 7"),
        ("no list", "has no files.json, .*: an older version of visurf_ray wrote it, or it is an unfinished copy"),
        ("torn list", "is damaged: its files.json is not JSON"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_its_path_and_passed_over_by_auto(folder, capsys, how, message):
    checkpoints = Checkpoints(folder, keep=3)
    older, newer = (save_whole(checkpoints, State(step), saver()) for step in (1, 2))
    damaged(newer, how)
    with pytest.raises(CheckpointError, match=f"step_000002: this checkpoint {message}"):
        find_resume(str(newer), folder)
    assert find_resume("auto", folder) == older
    assert re.search(f"step_000002 {message}; the run resumes from an older one", capsys.readouterr().out)
    damaged(older, how)
    with pytest.raises(CheckpointError, match=f"no whole checkpoint: step_000002 {message}; step_000001"):
        find_resume("auto", folder)
    assert newer.is_dir() and older.is_dir()


class Slow:
    """A learner that writes its files when `done` is set, or when it is waited for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.done = False
        self.waits = []

    def save(self, folder: Path) -> None:
        self.folder = folder

    def written(self, wait: bool) -> bool:
        self.waits.append(wait)
        if not (wait or self.done):
            return False
        if self.error:
            raise self.error
        saver()(self.folder)
        return True


def test_a_checkpoint_appears_with_its_list_of_files_when_all_are_written(folder):
    checkpoints, learner = Checkpoints(folder, keep=1), Slow()
    save_whole(checkpoints, State(1), saver())
    checkpoints.begin(State(2), learner.save, learner.written, Best("n_acc", 0.5, 2, "step_000002"))
    for _ in range(2):
        checkpoints.finish(wait=False)
        assert checkpoints.unfinished and names(folder) == ["step_000001"], "nothing is pruned or named before"
        assert not (learner.folder / "files.json").exists() and not (learner.folder / "state.json").exists()
    learner.done = True
    checkpoints.finish(wait=False)
    assert not checkpoints.unfinished and names(folder) == ["best.json", "step_000002"]
    assert json.loads((folder / "step_000002" / "files.json").read_text()).keys() == {"state.json", "weights.bin"}
    assert read_state(folder / "step_000002") == State(2)
    assert checkpoints.best("n_acc", State(2)) == Best("n_acc", 0.5, 2, "step_000002")
    assert learner.waits == [False, False, False]


def test_one_checkpoint_is_written_at_a_time(folder):
    checkpoints, first, second = Checkpoints(folder, keep=2), Slow(), Slow()
    checkpoints.begin(State(1), first.save, first.written)

    def save(target: Path) -> None:
        assert names(folder) == ["step_000001"] and first.waits == [True]
        second.save(target)

    checkpoints.begin(State(2), save, second.written)
    with checkpoints.finishing():
        assert names(folder) == ["step_000001"]
    assert names(folder) == ["step_000001", "step_000002"] and second.waits == [True]


def test_the_best_is_named_when_its_checkpoint_is_whole(folder):
    checkpoints, learner = Checkpoints(folder, keep=1), Slow()
    checkpoints.begin(State(1), learner.save, learner.written)
    checkpoints.keep_best(Best("n_acc", 0.5, 1, "step_000001"))
    assert names(folder) == ["best.json", "step_000001"] and learner.waits == [True]


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFullError, "checkpoint of step 2: No space left"),
        (
            OSError(errno.EROFS, "Read-only file system"),
            WriteError,
            "cannot write the checkpoint of step 2 to .*Read-only",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), WriteError, "writable on all machines.*output_dir"),
        (ValueError("a defect"), ValueError, "a defect"),
    ],
)
def test_files_that_cannot_be_written_are_told_of_and_the_last_checkpoint_stays(folder, error, kind, told, wait):
    checkpoints, learner = Checkpoints(folder, keep=1), Slow(error)
    save_whole(checkpoints, State(1), saver())
    checkpoints.begin(State(2), learner.save, learner.written)
    learner.done = True
    with pytest.raises(kind, match=told) as failure:
        checkpoints.finish(wait=wait)
    assert not isinstance(failure.value, UserError) or str(folder) in str(failure.value)
    assert [path.name for path in folder.iterdir()] == ["step_000001"]
    assert find_resume("auto", folder) == folder / "step_000001"
    checkpoints.finish(wait=True)  # there is nothing to finish


def test_a_folder_that_nobody_can_make_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(WriteError, match=rf"checkpoint of step 1 to {tmp_path}/run/checkpoints: .*Not a directory"):
        save_whole(Checkpoints(tmp_path / "run" / "checkpoints", keep=1), State(1), saver())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_run_that_is_interrupted_or_fails_finishes_what_it_writes(folder, error, capsys):
    checkpoints, learner = Checkpoints(folder, keep=1), Slow()
    with pytest.raises(error), checkpoints.finishing():
        checkpoints.begin(State(2), learner.save, learner.written)
        raise error
    assert names(folder) == ["step_000002"]
    assert "the run ends when the checkpoint of step 2 is written" in capsys.readouterr().err


def test_ctrl_c_while_it_is_asked_whether_a_checkpoint_is_written_loses_nothing(folder):
    checkpoints, learner = Checkpoints(folder, keep=1), Slow()

    def written(wait: bool) -> bool:
        if not wait:
            raise KeyboardInterrupt
        return learner.written(wait)

    with pytest.raises(KeyboardInterrupt), checkpoints.finishing():
        checkpoints.begin(State(2), learner.save, written)
        checkpoints.finish(wait=False)
    assert names(folder) == ["step_000002"]


def test_the_error_of_a_run_stays_its_error_if_its_checkpoint_cannot_be_finished(folder, capsys):
    checkpoints, learner = Checkpoints(folder, keep=1), Slow(OSError(errno.EROFS, "Read-only file system"))
    with pytest.raises(ValueError, match="first"), checkpoints.finishing():
        checkpoints.begin(State(2), learner.save, learner.written)
        raise ValueError("first")
    assert names(folder) == []
    assert "the checkpoint of step 2 is not written: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [StalledError, LearnerLostError])
def test_a_learner_that_does_not_answer_is_not_waited_for_again(folder, kind):
    """What it has not written whole is never taken for a checkpoint, also after the learner is replaced."""
    checkpoints, learner = Checkpoints(folder, keep=1), Slow()
    save_whole(checkpoints, State(1), saver())
    with pytest.raises(kind), checkpoints.finishing():
        checkpoints.begin(State(2), learner.save, learner.written)
        raise kind("no answer")
    assert learner.waits == [] and not checkpoints.unfinished
    assert names(folder) == ["step_000001"] and checkpoints.newest == (folder / "step_000001", State(1))
    save_whole(checkpoints, State(3), saver())
    assert names(folder) == ["step_000003"]


def test_a_checkpoint_of_another_zero_stage_is_refused_and_other_ranks_are_not(tmp_path):
    written = load_config(["learner.ranks=2", "learner.zero_stage=3"])
    folder = tmp_path / "step_000001"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps(asdict(replace(_initial_state(written, None), step=1))))
    assert _initial_state(written, folder).step == 1
    assert _initial_state(load_config(["learner.ranks=1", "learner.zero_stage=3"]), folder).step == 1
    with pytest.raises(ConfigError, match=r"learner\.zero_stage=3: continue with it, not with 1"):
        _initial_state(load_config(["learner.ranks=2"]), folder)
