"""Which death an error is taken to come from; tests/integration/test_deaths.py has actors that die."""

import time

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.core.generated.gcs_pb2 import ActorTableData

from visurf_ray.cluster import deaths
from visurf_ray.errors import ClusterError, ConfigError, UserError, during

_ID = bytes(range(16))
_KILLED = ActorDiedErrorContext.RAY_KILL


def entry(reason: int = ActorDiedErrorContext.WORKER_DIED, seconds_ago: float = 1) -> ActorTableData:
    found = ActorTableData(
        actor_id=_ID, class_name="LearnerActor", pid=7, end_time=int((time.time() - seconds_ago) * 1e3)
    )
    found.address.ip_address = "10.0.0.2"
    found.death_cause.actor_died_error_context.reason = reason
    return found


def died() -> Exception:
    return ray.exceptions.ActorDiedError(ActorDiedErrorContext(actor_id=_ID, class_name="LearnerActor"))


def of_an_actor(cause: Exception) -> Exception:
    return ray.exceptions.RayTaskError("update", "a traceback", cause).as_instanceof_cause()


def explained(monkeypatch, error: Exception, known: list[ActorTableData]) -> Exception:
    monkeypatch.setattr(deaths, "_PATIENCE", 0.0)
    monkeypatch.setattr(deaths, "_deaths", lambda: known)
    monkeypatch.setattr(deaths, "_log", lambda node, worker: "its log")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "", "NodeManagerHostname": "node-2"}])
    with pytest.raises(Exception) as failure, deaths.deaths_explained(), during("learn"):
        raise error
    return failure.value


@pytest.mark.parametrize("seconds_ago", [1, 1000])
def test_the_actor_that_the_error_names(monkeypatch, seconds_ago):
    found = explained(monkeypatch, died(), [entry(seconds_ago=seconds_ago)])
    assert type(found) is ClusterError
    assert str(found) == "LearnerActor (process 7) died in the phase 'learn' on the node node-2 (10.0.0.2)\nits log"


def test_an_error_that_says_what_to_do_keeps_its_kind_and_its_words(monkeypatch):
    error = UserError("do this")
    error.__cause__ = died()
    found = explained(monkeypatch, error, [entry()])
    assert type(found) is UserError and str(found).startswith("do this\nLearnerActor (process 7) died")


def test_the_error_of_a_neighbour_of_the_dead(monkeypatch):
    found = explained(monkeypatch, of_an_actor(RuntimeError("Connection closed by peer")), [entry()])
    assert str(found).endswith("its log\nAnother actor then failed: Connection closed by peer")


@pytest.mark.parametrize("known", [[], [entry(_KILLED)], [entry(seconds_ago=1000)]], ids=["none", "killed", "old"])
def test_an_error_that_no_death_explains_stays_what_it_is(monkeypatch, known):
    error = of_an_actor(RuntimeError("a fault"))
    assert explained(monkeypatch, error, known) is error


@pytest.mark.parametrize("error", [RuntimeError("ours"), of_an_actor(ConfigError("a key")), ConfigError("a key")])
def test_errors_of_another_kind_are_not_explained_by_a_death(monkeypatch, error):
    assert explained(monkeypatch, error, [entry()]) is error
