"""An agent takes its engine out: it drains the engine, and ends when no request runs."""

import pytest

from controller.domain.engine import Protocol
from controller.fleet.agent import End
from controller.security.access import Caller
from controller.security.tokens import Plane, token_of
from controller.store.registry import Registry
from controller.tasks import end
from tests.fleet.agents import NAME, Fleet, found, is_gone
from tests.fleet.engine_replicas import ADMIN, gauges, only
from tests.support.engines import Answer, AnswerServer
from tests.support.outage import Link
from tests.support.waiting import wait_until


async def test_stop_drains_and_ends_when_the_last_request_has(
    fleet: Fleet, engine: AnswerServer, registry: Registry
) -> None:
    agent, link, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    lease = (await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)).value.lease
    agent.stop()
    await wait_until(lambda: found(registry, lambda known: known.draining), "the engine drains")
    drains = link.calls.count("/drain_worker")
    await wait_until(lambda: link.calls.count("/drain_worker") > drains + 3, "the agent waits")
    assert not running.done()
    assert await fleet.replica.dispatcher.release(lease)
    engine.answers["/metrics"] = gauges(1, 0)
    drains = link.calls.count("/drain_worker")
    await wait_until(lambda: found(registry, lambda known: known.reported == 1), "a foreign request runs")
    engine.answers["/metrics"] = gauges(0, 0)
    assert await running is End.IDLE
    assert await is_gone(registry)
    fleet.start()
    await wait_until(lambda: found(registry, lambda known: not known.draining), "it serves when it is started again")


@pytest.mark.parametrize("operator", ["", "before", "after"])
async def test_drain_of_an_agent_that_was_killed_ends_when_it_is_started_again(
    fleet: Fleet, registry: Registry, operator: str
) -> None:
    """But not that of an operator, who may have drained the engine before the agent did, or after."""
    agent, _, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)
    if operator == "before":
        await fleet.replica.membership.drain(NAME, caller=ADMIN, reason="new driver")
    agent.stop()
    await wait_until(lambda: found(registry, lambda known: known.draining), "the engine drains")
    if operator == "after":
        await fleet.replica.membership.drain(NAME, caller=ADMIN, reason="new driver")
    await end([running])
    _, link, _ = fleet.start()
    await wait_until(lambda: link.calls.count("/receive_heart_beat") > 1, "the new agent has registered it")
    known = await only(registry)
    assert known is not None
    assert known.draining is bool(operator)


async def test_drain_of_an_agent_ends_also_if_the_engine_has_expired_meanwhile(
    fleet: Fleet, registry: Registry
) -> None:
    agent, _, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)
    agent.stop()
    await wait_until(lambda: found(registry, lambda known: known.draining), "the engine drains")
    await end([running])
    known = await only(registry)
    assert known is not None
    await registry.refresh(known.as_registered(), known.registration, expires_in=0.001)
    await wait_until(lambda: is_gone(registry), "it has expired")
    await registry.sweep(0.001)
    fleet.start()
    await wait_until(lambda: found(registry, lambda known: not known.draining), "it serves")


@pytest.mark.parametrize("how", ["deadline", "second signal", "controller is away"])
async def test_agent_of_a_busy_engine_ends_at_the_deadline_or_the_second_signal(
    fleet: Fleet, engine: AnswerServer, registry: Registry, how: str
) -> None:
    engine.answers["/metrics"] = gauges(1, 0)
    agent, link, running = fleet.start(deadline=3600 if how == "second signal" else 0.2)
    await wait_until(lambda: found(registry), "the engine is registered")
    link.is_away = how == "controller is away"
    agent.stop()
    if how == "second signal":
        await wait_until(lambda: found(registry, lambda known: known.draining), "the engine drains")
        agent.stop()
    assert await running is End.BUSY
    assert await is_gone(registry) == (how != "controller is away")


async def test_agent_of_an_idle_engine_ends_if_no_controller_responds_for_the_expiration(
    fleet: Fleet,
    engine: AnswerServer,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("controller.fleet.agent._CUT_OFF_AFTER", 0.2)
    agent, link, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    engine.answers["/metrics"] = gauges(1, 0)
    link.is_away = True
    agent.stop()
    calls = len(link.calls)
    await wait_until(lambda: len(link.calls) > calls + 20, "it waits for the request that runs")
    assert not running.done()
    engine.answers["/metrics"] = gauges(0, 0)
    assert await running is End.IDLE
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) <= len(set(link.calls[calls:])), "one for each path"


async def test_agent_of_an_idle_engine_waits_while_controllers_dispatch_without_the_store(
    fleet: Fleet, registry: Registry, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.agent._CUT_OFF_AFTER", 0.2)
    agent, calls, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    await wait_until(lambda: fleet.replica.snapshots.worker(NAME), "the snapshot has the engine")
    with link.broken():
        agent.stop()
        await wait_until(lambda: running.done() or calls.calls.count("/drain_worker") > 5, "it waits")
        assert not running.done()
        assert (await fleet.replica.dispatcher.dispatch("m", protocol=Protocol.OPENAI)).value == NAME
    assert await running is End.IDLE
    assert await is_gone(registry)


async def test_each_path_that_fails_is_logged_once_and_when_it_works_again(
    fleet: Fleet, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    agent, link, _ = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    lease = (await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)).value.lease
    link.is_away = True
    agent.stop()
    seen = len(link.calls)
    await wait_until(lambda: link.calls[seen:].count("/drain_worker") > 3, "calls to two paths fail alternately")
    assert caplog.text.count("No controller has accepted the call") == 2
    link.is_away = False
    await wait_until(lambda: found(registry, lambda known: known.draining), "the controller is back")
    await wait_until(lambda: "accepts calls again. The path is /drain_worker." in caplog.text, "it is logged")
    assert caplog.text.count("accepts calls again. The path is /receive_heart_beat.") == 1
    assert await fleet.replica.dispatcher.release(lease)


async def test_agent_of_an_engine_that_was_never_ready_ends_at_once(fleet: Fleet, engine: AnswerServer) -> None:
    engine.answers["/health"] = Answer(b"", 503)
    agent, link, running = fleet.start()
    await wait_until(lambda: engine.requests.count("/health") > 2, "the engine is polled")
    agent.stop()
    assert await running is End.IDLE
    assert link.calls == []


@pytest.mark.slow
async def test_a_token_that_may_not_drain_takes_the_engine_out(
    fleet: Fleet, engine: AnswerServer, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    unbound = Caller(Plane.WORKER, "127.0.0.1", token_of("t", Plane.WORKER, "s" * 32, (), ()))
    agent, _, running = fleet.start(caller=unbound)
    await wait_until(lambda: found(registry), "the engine is registered")
    engine.answers["/metrics"] = gauges(1, 0)
    await wait_until(lambda: found(registry, lambda known: known.reported == 1), "a request runs")
    agent.stop()
    await wait_until(lambda: is_gone(registry), "it is out")
    assert not running.done(), "a request still runs"
    engine.answers["/metrics"] = gauges(0, 0)
    assert await running is End.IDLE
    assert "or a worker token that is bound to this worker by a pattern" in caplog.text
