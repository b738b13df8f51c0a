"""Remote waits have a limit: what hangs is named and ends the run. Ranks compute with as many threads as Ray CPUs."""

import os
import signal
import time

import pytest
import ray

from tests.integration.runs import SMALL, run_here
from tests.integration.test_learner import rank_config
from tests.integration.workers import LIMIT, Worker
from tests.unit.groups import example
from visurf_ray.cluster.deaths import deaths_explained
from visurf_ray.cluster.waiting import fetch, wait_for
from visurf_ray.errors import ClusterError, StalledError, during
from visurf_ray.learner.actor import LearnerActor
from visurf_ray.learner.group import LearnerGroup
from visurf_ray.rollout.actor import Sampling
from visurf_ray.rollout.pool import RolloutPool

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def stopped():
    """An actor whose process is stopped, which is what one that hangs looks like from outside; and the process."""
    actor = Worker.remote()
    process = ray.get(actor.process.remote())
    os.kill(process, signal.SIGSTOP)
    yield actor, process
    ray.kill(actor)


def test_an_actor_that_does_not_answer_is_named_with_the_phase_the_limit_and_its_key(stopped):
    actor, process = stopped
    other = Worker.remote()
    ray.get(other.ready.remote())
    with pytest.raises(ClusterError) as failure, deaths_explained(), during("evaluate"), during("sample"):
        fetch([other.process.remote(), actor.process.remote()], LIMIT)
    message, node = str(failure.value), ray.nodes()[0]
    assert message.startswith("in the phase 'sample': no answer within cluster.timeout=2 seconds from Worker (process ")
    assert f"(process {process}, node {node['NodeManagerHostname']}, {node['NodeManagerAddress']})" in message
    assert message.count("(process ") == 1, "the other one has answered"


def test_of_many_that_do_not_answer_some_are_named(stopped):
    actors = [Worker.remote() for _ in range(5)]
    with pytest.raises(StalledError, match=r"(Worker \(process \d+, .*){4} and 1 more"):
        ray.get([actor.process.remote() for actor in actors])
        fetch([actor.sample.remote(None, None)[0] for actor in actors], LIMIT)


def test_a_wait_inside_an_actor_names_whom_it_has_waited_for(stopped):
    actor, process = stopped
    with (
        pytest.raises(ClusterError, match=rf"^in the phase 'sync': no answer .*\(process {process}, "),
        deaths_explained(),
        during("sync"),
    ):
        fetch(Worker.remote().wait_for.remote([actor.process.remote()]), 60)


def test_what_is_ready_in_time_comes_back_and_errors_come_at_once(stopped):
    actor, process = stopped
    there, never = ray.put("value"), actor.process.remote()
    assert fetch(there, LIMIT) == "value" and fetch([there, there], LIMIT) == ["value", "value"]
    assert wait_for([never, there], LIMIT, count=1) == [there]
    with pytest.raises(StalledError, match=f"process {process}"):
        wait_for([never, there], LIMIT)
    begin = time.monotonic()
    with pytest.raises(ray.exceptions.RayTaskError, match="Invalid type of object refs"):
        fetch([never, Worker.remote().wait_for.remote(1)], 60)
    assert time.monotonic() - begin < 30


def test_a_pool_asks_nothing_more_of_an_engine_that_does_not_answer():
    pool = RolloutPool(lambda: [Worker.remote()], sampling=Sampling(1, 1.0, 8), max_in_flight=1, timeout=LIMIT)
    pool.start()
    ray.get([actor.ready.remote() for actor in pool.actors])
    begin = time.monotonic()
    with pytest.raises(StalledError, match=r"from Worker \(process"):
        pool.answer([example()], max_tokens=8)
    assert LIMIT <= time.monotonic() - begin < 2 * LIMIT
    ray.kill(*pool.actors)


def test_a_rank_that_hangs_ends_the_run(tmp_path, monkeypatch):
    """With a limit that starts to hold when the ranks have started, as these take longer for that."""
    update, processes = LearnerGroup.update, []

    def hanging(learner, *arguments, **options):
        processes.extend(ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in learner.actors]))
        learner.timeout = LIMIT
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        return update(learner, *arguments, **options)

    monkeypatch.setattr(LearnerGroup, "update", hanging)
    settings = ["train.steps=1", "eval.every=0", "cluster.max_restarts=0", f"output_dir={tmp_path}/run"]
    done = run_here("train", *SMALL, *settings, own=["learners"])
    assert done.returncode == 2, done.stderr[-3000:]
    hung = f"LearnerActor (process {processes[0]}, "
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: the learner was lost and is not started again, as cluster.max_restarts=0 allows")
    assert f"The first cause: no answer within cluster.timeout=2 seconds from {hung}" in line
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{processes[0]}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{processes[0]}"), "the process that hung has ended"


def looks(actor) -> tuple[int, str, set[float]]:
    """The threads of a rank, the variable, and the limits of its process groups."""
    import torch
    from torch.distributed import distributed_c10d

    groups = [group._get_backend(torch.device("cpu")).options._timeout for group in distributed_c10d._world.pg_map]
    assert len(groups) > 1, "DeepSpeed makes some itself"
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], {limit.total_seconds() for limit in groups}


def test_a_rank_has_the_threads_of_its_cpus_and_collectives_have_the_limit(config, processor):
    actor = LearnerActor.options(num_cpus=2, runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}}).remote()
    settings = rank_config(config, processor, timeout=321.0)
    LearnerGroup([actor], settings, seed=0, minibatches=1, cores=[[]])
    assert ray.get(actor.__ray_call__.remote(looks)) == (2, "2", {321.0})
    ray.kill(actor)


def test_threads_are_ray_cpus_and_at_most_the_cores_of_a_pinned_rank():
    cases = [
        (0, 0, 1),
        (0.5, 0, 1),
        (0.5, 2, 2),
        (1, 2, 1),
        (1.5, 8, 1),
        (2, 1, 1),
        (2.5, 0, 2),
    ]  # CPUs, cores, threads
    actors = [Worker.options(num_cpus=cpus).remote() for cpus, _, _ in cases]
    found = ray.get([actor.threads.remote(cores) for actor, (_, cores, _) in zip(actors, cases, strict=True)])
    assert found == [threads for _, _, threads in cases]
