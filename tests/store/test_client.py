"""Test which calls fail when Redis does not reply, a connection is lost, or the replica is busy."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.domain.errors import ReplicaBusy, StoreUnavailable
from controller.store import client as module
from controller.store.client import StoreCalls
from controller.store.connection import connect
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry
from controller.tasks import end
from tests.support.dispatches import dispatch_shortest_queue, workers_of
from tests.support.samples import A, asks, reports, worker


@pytest.fixture
def server(short_dir: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(short_dir / "calls") as opened:
        yield opened
        os.kill(opened.pid, signal.SIGCONT)


def registry_on(server: EmbeddedStore, deadline: float) -> Registry:
    return Registry(connect(server.url, timeout=deadline), "ns", 90.0, deadline)


async def test_timeout_excludes_event_loop_delay(server: EmbeddedStore) -> None:
    registry = registry_on(server, deadline=2.0)
    await registry.register(worker(A))
    os.kill(server.pid, signal.SIGSTOP)
    call = asyncio.create_task(registry.heartbeat(reports([(A, 0)])))
    await asyncio.sleep(0.01)
    time.sleep(3.0)  # noqa: ASYNC251 - block the event loop, as a busy replica does
    os.kill(server.pid, signal.SIGCONT)
    assert await call == [True]
    await registry.close()


async def test_timeout_excludes_the_wait_for_a_permit(server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CALLS", 1)
    client = connect(server.url, timeout=60.0)
    calls = StoreCalls(client.ping, 4.0)
    results = await asyncio.gather(*(calls.run(lambda: client.blpop("nothing", 0.4)) for _ in range(12)))
    assert results == [None] * 12, "the last one has waited longer than the timeout"
    await calls.close()
    await client.aclose()


async def test_permit_timeout_raises_replica_busy(server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CALLS", 1)
    monkeypatch.setattr(module, "_MAX_WAIT", 0.01)
    client = connect(server.url, timeout=60.0)
    registry = Registry(client, "ns", 90.0, 60.0)
    blocked = asyncio.create_task(registry._calls.run(lambda: client.blpop("nothing", 100)))
    await asyncio.sleep(0.01)
    with pytest.raises(ReplicaBusy, match=r"Redis itself is available\. Try again, or run more replicas"):
        await dispatch_shortest_queue(registry, asks(["m"]))
    await end([blocked])
    assert blocked.cancelled()
    await registry.register(worker(A))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    await registry.close()


async def test_call_is_retried_on_a_new_connection_after_one_is_lost(server: EmbeddedStore) -> None:
    client = connect(server.url, timeout=60.0)
    calls = StoreCalls(client.ping, 0.5)
    attempts = []

    async def call() -> object:
        attempts.append(1)
        return await (client.blpop("nothing", 1000) if len(attempts) == 1 else client.echo("here"))

    assert await calls.run(call) == "here"
    assert len(attempts) == 2
    await client.aclose()


async def test_call_fails_after_two_lost_connections(server: EmbeddedStore) -> None:
    client = connect(server.url, timeout=60.0)
    calls = StoreCalls(client.ping, 0.2)
    with pytest.raises(TimeoutError):
        await calls.run(lambda: client.blpop("nothing", 1000))
    assert await calls.run(client.ping) is True
    await client.aclose()


async def test_waiting_calls_fail_when_an_active_call_times_out(
    server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_CALLS", 1)
    registry = registry_on(server, deadline=0.5)
    await registry.check()
    sent = []
    attempt = StoreCalls._attempt

    async def counted(self: StoreCalls, call: object) -> object:
        sent.append(call)
        return await attempt(self, call)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreCalls, "_attempt", counted)
    os.kill(server.pid, signal.SIGSTOP)
    results = await asyncio.gather(*(registry.renew("lease") for _ in range(50)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 50
    assert len([call for call in sent if call != registry._ping]) == 1
    os.kill(server.pid, signal.SIGCONT)
    await registry.close()
