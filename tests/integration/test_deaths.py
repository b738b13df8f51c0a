"""Actors that die: the error tells which one, where, when in the run, and how its log ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from visurf_ray.cluster.deaths import _deaths, _unexpected, deaths_explained
from visurf_ray.errors import ClusterError, during
from visurf_ray.groups import Example, Group, Prompt, Response, Source, TokenSpan
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rewards.spec import RewardSpec

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0)
class Mortal:
    def ready(self) -> int:
        return os.getpid()

    def die(self) -> None:
        print("out", flush=True)
        for number in range(30):
            print(f"line {number}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self) -> None:
        raise RuntimeError("a fault of ours")

    def wait_for(self, others: list) -> None:
        ray.get(others[0].die.remote())

    def lose(self, process: int) -> None:
        """End another actor, and fail as a rank does whose neighbour has gone."""
        os.kill(process, signal.SIGKILL)
        raise RuntimeError("Connection closed by peer")


@pytest.fixture
def no_recent_death():
    """Waits until the deaths that earlier tests have caused are too long ago to be behind an error."""
    while any(map(_unexpected, _deaths())):
        time.sleep(0.2)


def test_an_error_without_a_death_stays_what_it_is(no_recent_death):
    with pytest.raises(RuntimeError, match="a fault of ours") as failure, deaths_explained(), during("learn"):
        ray.get(Mortal.remote().fail.remote())
    assert not isinstance(failure.value, ClusterError)


def test_the_message_has_the_actor_its_node_the_phase_and_the_end_of_its_log():
    actor = Mortal.remote()
    process = ray.get(actor.ready.remote())
    with pytest.raises(ClusterError) as failure, deaths_explained(), during("evaluate"), during("sample"):
        ray.get(actor.die.remote())
    message = str(failure.value)
    node = ray.nodes()[0]
    assert f"Mortal (process {process}) died in the phase 'sample'" in message
    assert f"on the node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})" in message
    lines = message.partition("The last 20 lines of its log:\n")[2].splitlines()
    assert lines == [f"  line {number}" for number in range(10, 30)]


def test_the_message_of_a_failed_start_has_the_log_before_the_error():
    """As that of an engine, whose own process writes why it ends."""

    @ray.remote(num_cpus=0)
    class Stillborn:
        def __init__(self) -> None:
            print("the root cause", file=sys.stderr, flush=True)
            self.fail(50)

        def fail(self, depth: int) -> None:
            if not depth:
                raise RuntimeError("see the root cause above")
            self.fail(depth - 1)

        def ready(self) -> None: ...

    with pytest.raises(ClusterError) as failure, deaths_explained():
        ray.get(Stillborn.remote().ready.remote())
    expected = "The last 2 lines of its log:\n  the root cause\n  RuntimeError: see the root cause above"
    assert str(failure.value).endswith(expected)


def test_the_log_of_an_actor_on_another_node():
    folder = Path("/tmp") / f"vst.{os.getpid()}"  # a node of its own with a folder of its own
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    command += [f"--address={ray.get_runtime_context().gcs_address}", f"--temp-dir={folder}", "--num-cpus=0"]
    command += ['--resources={"elsewhere": 1}', "--object-store-memory=100000000", "--dashboard-agent-listen-port=0"]
    node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        actor = Mortal.options(resources={"elsewhere": 1}).remote()
        ray.get(actor.ready.remote(), timeout=120)
        assert list(folder.glob("session_2*/logs/worker-*.err"))
        with pytest.raises(ClusterError, match=r"in the phase 'sync'") as failure, deaths_explained(), during("sync"):
            ray.get(actor.die.remote())
        assert str(failure.value).endswith("  line 29")
    finally:
        node.terminate()
        node.wait(timeout=60)
        subprocess.run(["rm", "-rf", folder], check=True)


def test_a_death_that_another_actor_has_noticed():
    dying, waiting = Mortal.remote(), Mortal.remote()
    with pytest.raises(ClusterError, match="died in the phase 'learn'") as failure, deaths_explained(), during("learn"):
        ray.get(waiting.wait_for.remote([dying]))
    assert "  line 29" in str(failure.value)


def test_a_death_behind_the_error_of_a_neighbour():
    dying, losing = Mortal.remote(), Mortal.remote()
    process = ray.get(dying.ready.remote())
    with pytest.raises(ClusterError) as failure, deaths_explained(), during("learn"):
        ray.get(losing.lose.remote(process))
    message = str(failure.value)
    assert f"Mortal (process {process}) died in the phase 'learn'" in message and "Connection closed by peer" in message


def test_a_reward_that_kills_its_process_names_the_example_and_shows_its_log(config, tmp_path):
    (tmp_path / "deadly.py").write_text(
        "import os, sys\n\ndef score(response, truth):\n"
        "    print('before the end', file=sys.stderr, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    example = Example("example-17", "the 7", "[]", Prompt([], [], (None,)), (84, 84))
    group = Group(example, [Response(Source.ROLLOUT, "a", TokenSpan.of([0]))])
    pool = RewardPool(config.reward, {"": RewardSpec(None, function=f"{tmp_path}/deadly.py:score")}, cluster_timeout=60)
    with pytest.raises(RewardError) as failure, deaths_explained(), during("reward"):
        pool.submit([group])
        pool.wait()
    message = str(failure.value)
    assert "example-17" in message and "died in the phase 'reward'" in message and "before the end" in message
