"""Dumps of steps: what is read is what was written, and what cannot be replayed is refused in one line."""

import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tests.unit.conftest import composed
from tests.unit.groups import group, held
from visurf_ray.checkpoints.stored import State, list_files
from visurf_ray.config.choices import ImportanceLevel, OnExcess, Packing, RatioLevel
from visurf_ray.config.schema import to_dict
from visurf_ray.config.stored import learner_config
from visurf_ray.dumps import Dump, DumpError, find_start, read_dump, write_dump
from visurf_ray.errors import ConfigError, DiskFullError
from visurf_ray.groups import Prompt, Tokens, TokenSpan
from visurf_ray.learner.stored import read_groups, write_groups
from visurf_ray.method import Importance, LossConfig

LOSS = LossConfig(
    ratio=RatioLevel.sequence,
    dual_clip=3.0,
    importance=Importance(ImportanceLevel.token, 0.1, 2.0, OnExcess.mask),
)
DUMP = Dump(57, LOSS, 1e-6, Packing.rows, "step_000056", {"seed": 0})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "dumps" / "step_000057"


def write(dump, folder):
    write_dump(dump, folder, lambda partial: (partial / "groups.json").write_text("[]"))
    return folder


def checkpoint(run, step, files=True):
    path = run / "checkpoints" / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps(asdict(State(step=step))))
    if files:
        list_files(path)
    return path


def test_a_dump_is_read_as_it_was_written(folder):
    for dump in (DUMP, replace(DUMP, loss=LossConfig(), checkpoint=None)):
        assert read_dump(write(dump, folder)) == dump


def test_a_dump_appears_when_it_is_whole(folder):
    def full(partial):
        (partial / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError, match="cannot write the groups of step 57"):
        write_dump(DUMP, folder, full)
    assert list(folder.parent.iterdir()) == []


def test_a_dump_that_cannot_be_replayed_is_refused(folder):
    with pytest.raises(DumpError, match=r"no dump of a step: it has no dump\.json"):
        read_dump(folder)
    write(DUMP, folder)
    (folder / "groups.json").write_text("[")
    with pytest.raises(DumpError, match=r"is damaged: its file groups\.json has 1 bytes instead of 2"):
        read_dump(folder)
    (folder / "groups.json").unlink()
    with pytest.raises(DumpError, match=r"is damaged: its file groups\.json is missing"):
        read_dump(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"new": 1}, "new is unknown"),
        ({"packing": "folded"}, "packing"),
        ({"loss": {"clip_higher": 1.0}}, "which differs in loss"),
        ({"loss": {}}, "which differs in loss"),
        ({"loss": {"ratio": "word"}}, r"loss\.ratio"),
    ],
)
def test_a_dump_of_another_version_is_refused(folder, change, told):
    write(DUMP, folder)
    (folder / "dump.json").write_text(json.dumps(asdict(DUMP) | change))
    list_files(folder)
    with pytest.raises(DumpError, match=rf"(?s)of another version of visurf_ray.*{told}"):
        read_dump(folder)


def test_the_policy_is_that_of_the_checkpoint_before_the_step(tmp_path, folder):
    with pytest.raises(DumpError, match=r"the checkpoint before the step, .*step_000056, is not there"):
        find_start(DUMP, folder)
    older, before, later = (checkpoint(tmp_path, step) for step in (40, 56, 57))
    assert find_start(DUMP, folder) == (before, 56)
    assert find_start(DUMP, folder, str(older)) == (older, 40)
    with pytest.raises(DumpError, match=r"checkpoint=.* is of step 57\. Name one of a step before 57"):
        find_start(DUMP, folder, str(later))
    (before / "state.json").write_text("")
    with pytest.raises(DumpError, match=r"step_000056, is damaged"):
        find_start(DUMP, folder)


def test_without_a_checkpoint_of_its_own_a_dump_takes_the_newest_one_before_or_the_initial_policy(tmp_path, folder):
    dump = replace(DUMP, checkpoint=None)
    assert find_start(dump, folder) == (None, 0)
    older, *_ = (checkpoint(tmp_path, step, files) for step, files in ((40, True), (50, False), (57, True)))
    assert find_start(dump, folder) == (older, 40)
    shutil.rmtree(older)
    assert find_start(dump, folder) == (None, 0)


def test_groups_are_read_as_they_were_written(tmp_path):
    """Their tokens, in one store for all rollouts, their features, and what is not finite."""
    features = {"pixel_values": torch.randn(8, 6)[:, ::2], "image_grid_thw": torch.tensor([[1, 2, 4]])}
    store = Tokens(np.arange(6, dtype=np.int32), np.array([-1, math.nan, -3, -4, -5, -math.inf], np.float32))
    first = group([1.0, 0.5], label=2.0)
    for response, (begin, end) in zip(first.rollouts, ((0, 2), (3, 6)), strict=True):
        response.tokens = TokenSpan(store, begin, end)
    first.responses[0].advantage, first.responses[1].reward = math.nan, math.inf
    first.label.smoothed_from = 0.1 + 0.2
    blank = Prompt([1], [1, 1], features={"pixel_values": torch.zeros(2, 3)})
    second = group([0.0])
    first.example = replace(first.example, prompt=replace(first.example.prompt, features=features), thinking="so")
    second.example = replace(second.example, prompt=Prompt([4], [4], features={}, stand_in=blank))
    write_groups([first, second], tmp_path, held)
    found = read_groups(tmp_path, held)
    for one, other in zip((first, second), found, strict=True):
        nothing = Prompt([], [])
        assert replace(other.example, prompt=nothing) == replace(one.example, prompt=nothing)
        asked, read = one.example.prompt, other.example.prompt
        assert asked.token_ids == read.token_ids and asked.expanded_ids == read.expanded_ids
        for response, again in zip(one.responses, other.responses, strict=True):
            tokens, read = response.tokens.resolve(held), again.tokens.resolve(held)
            np.testing.assert_array_equal(tokens.ids, read.ids)
            np.testing.assert_array_equal(tokens.sampler_logprobs, read.sampler_logprobs)
            assert repr(replace(again, tokens=None)) == repr(replace(response, tokens=None))  # NaN is not equal to NaN
    for name, value in features.items():
        assert torch.equal(found[0].example.prompt.features[name], value)
    assert torch.equal(found[1].example.prompt.stand_in.features["pixel_values"], torch.zeros(2, 3))
    assert found[0].example.prompt.stand_in is None


# The configuration of a replay


def test_a_replay_has_the_runs_settings_but_for_those_that_are_given():
    of_run = composed("learner.minibatches=2", "seed=5", "method=gspo", "train.batch_size=8")
    given = composed("learner.max_tokens_per_micro_batch=700", "cluster.address=local")
    overrides = ["learner.max_tokens_per_micro_batch=700", "cluster.address=local"]
    found = learner_config(to_dict(of_run), given, overrides)
    assert (found.seed, found.learner.minibatches, found.method.name) == (5, 2, "gspo")
    assert (found.learner.max_tokens_per_micro_batch, found.cluster.address) == (700, "local")
    assert found.learner.packing is of_run.learner.packing


def test_a_dump_does_not_say_whether_code_is_trusted_nor_which_ray_is_used():
    stored = to_dict(composed("model.trust_remote_code=true", "cluster.address=10.0.0.1:6379"))
    found = learner_config(stored, given := composed(), [])
    assert not found.model.trust_remote_code and found.cluster.address == given.cluster.address
    trusting = composed("model.trust_remote_code=true")
    assert learner_config(stored, trusting, ["model.trust_remote_code=true"]).model.trust_remote_code


def test_settings_that_a_replay_cannot_have_are_refused():
    stored = to_dict(composed())
    with pytest.raises(ConfigError, match=r"\+experiment=one_gpu: settings are those of the run"):
        learner_config(stored, composed(), ["+experiment=one_gpu"])
    for other in (stored | {"colour": 1}, {key: stored[key] for key in stored if key != "seed"}, {}):
        with pytest.raises(ConfigError, match="the run's configuration is of another version"):
            learner_config(other, composed(), [])
