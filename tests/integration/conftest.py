"""The real stack on the miniature: a model, examples of its task, and one Ray cluster for all tests."""

import os
from collections.abc import Callable, Iterator

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


# The files of tests that start most of what they need themselves.
_APART = {
    "test_" + name
    for name in (
        *("deaths", "disconnecting", "families", "faults", "launch", "placement", "pool", "resume_exact"),
        *("rewards", "same_policy", "slurm", "two_nodes", "waiting", "wheel"),
    )
}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Set the test's group, by which `--dist loadgroup` shares the tests out to two processes.

    The tests that share actors, see `kept`, are one group. The other process runs the groups of all other files, which
    take about as long.
    """
    name = item.path.stem
    item.add_marker(pytest.mark.xdist_group(name if name in _APART else "kept"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> Iterator[None]:
    """Checks of rows are remembered among tests alone, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISURF_RAY_CACHE", str(tmp_path_factory.mktemp("remembered")))
        yield


@pytest.fixture(scope="session")
def config():
    from visurf_ray.config.load import load_config

    return load_config(["task.train=64", "task.held_out=16", "monitor.wandb=disabled"])


@pytest.fixture(scope="session")
def processor(config):
    from visurf_ray.models import load_processor

    return load_processor(config.model)


@pytest.fixture(scope="session")
def loader(config, processor):
    """Examples whose images and features are held directly, outside a cluster."""
    from visurf_ray.feed.loader import ExampleLoader
    from visurf_ray.tasks import load_task

    loader = ExampleLoader(
        load_task(config.task, seed=0), processor, seed=0, max_prompt_tokens=500, put=lambda value: value
    )
    loader.load_train()
    return loader


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)  # with the machine's own GPUs
    yield
    from tests.integration import kept

    kept.end()
    ray.shutdown()


@pytest.fixture(scope="session")
def learner_actors(ray_cluster) -> Callable[[int], list]:
    """So many learner actors as there are ranks, see `kept.learners`."""
    from tests.integration.kept import learners

    return learners
