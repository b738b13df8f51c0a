"""The data feed and its actor, below a driver: what a curriculum leaves out is the same after a resume."""

import pytest

from tests.unit.test_curriculum import MIXED
from tests.unit.test_driver import Learner, Monitor, Rollouts, Tokenizer
from visurf_ray.checkpoints.stored import State, read_state
from visurf_ray.checkpoints.writing import Checkpoints
from visurf_ray.checks import load_rewards
from visurf_ray.config.load import load_config
from visurf_ray.driver import Driver
from visurf_ray.feed.feed import DataFeed
from visurf_ray.stages import build_stages
from visurf_ray.tasks.tasks import Tasks

SETTINGS = ["train.batch_size=3", "train.steps=10", "eval.every=0", "train.checkpoint_every=1", "method=rlvr"]


@pytest.fixture(scope="module")
def data(ray_cluster) -> DataFeed:
    return DataFeed(load_config([*MIXED, "feed.curriculum=1"]), train=True)


class Rewards:
    """Every rollout solves the rows with even numbers."""

    def submit(self, groups):
        for one in groups:
            for number, response in enumerate(one.rollouts):
                right = one.example.row % 2 == 0 or number == 0
                response.reward_parts = {"accuracy": (3.0 if one.example.part == "find" else 1.0) * right}
                response.reward = sum(response.reward_parts.values())

    def wait(self):
        return []

    def drop(self):
        pass


class Recorder(Learner):
    """Records the examples of each update."""

    def update(self, groups, loss, learning_rate, *, step):
        self.log.append([(group.example.part, group.example.id) for group in groups])
        return {}


@pytest.mark.parametrize("ahead", [(), ("pipeline=one_step_off",)])
def test_a_run_that_is_resumed_leaves_out_the_same_rows(tmp_path, data, ahead):
    def drive(folder, state: State):
        config = load_config([*MIXED, *SETTINGS, "feed.curriculum=1", *ahead])
        tasks = Tasks.of(config)
        driver = Driver(
            config,
            stages=build_stages(config, tasks, Tokenizer(), load_rewards(config, tasks)),
            score=lambda predictions: {},
            data=data,
            rollouts=Rollouts(0),
            rewards=Rewards(),
            learner=Recorder(),
            checkpoints=Checkpoints(folder, 99),
            monitor=Monitor(),
        )
        driver.run(state)
        return driver.learner.log, {step: row["train/left_out"] for step, row in driver.monitor.rows.items()}

    whole, left_out = drive(tmp_path / "whole", State())
    assert sum(left_out.values()) > 4
    for checkpoint in sorted((tmp_path / "whole").iterdir())[:-1]:
        state = read_state(checkpoint)
        rest, again = drive(tmp_path / checkpoint.name, state)
        assert rest == whole[state.step :]
        assert again == {step: count for step, count in left_out.items() if step > state.step}
