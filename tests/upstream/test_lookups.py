"""A lookup of a host name that hangs does not delay other lookups."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from controller.domain.errors import WorkerUnreachable
from controller.upstream import lookups
from controller.upstream.client import WorkerClient
from controller.upstream.lookups import Resolver
from tests.support.streams import frames_from
from tests.support.waiting import wait_until
from tests.support.workers import keeping_worker, plain


class NameServer:
    """Answers the lookups of this process. It is silent for names with "silent" in them until it is released.

    running: the number of running lookups, by name.
    """

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.most = 0
        self.released = threading.Event()

    def getaddrinfo(self, host: str, port: int | None, *_: Any, **__: Any) -> list[Any]:
        self.running[host] += 1
        self.most = max(self.most, self.running.total())
        try:
            if "silent" in host:
                self.released.wait(60)
            if "unknown" in host:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port or 0))]
        finally:
            self.running[host] -= 1


def answers(_: int, __: int, writer: asyncio.StreamWriter) -> bool:
    writer.write(plain(b"a\0"))
    return True


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.released.set()


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    opened = Resolver()
    yield opened
    await opened.close()


async def test_silent_name_servers_of_some_workers_delay_no_request_to_others(
    client: WorkerClient, names: NameServer
) -> None:
    async with keeping_worker(answers) as kept:
        port = kept.address.rpartition(":")[2]
        probes = [asyncio.create_task(client.status(f"http://silent{i}.invalid:1")) for i in range(20)]
        await wait_until(lambda: names.running.total() == 20, "all lookups run")
        address = f"http://healthy.invalid:{port}"
        assert b"".join([piece async for piece in frames_from(client, address)]) == b"a\0"
        assert not any(probe.done() for probe in probes)
        names.released.set()
        assert all(
            isinstance(each, WorkerUnreachable) for each in await asyncio.gather(*probes, return_exceptions=True)
        )


async def test_a_silent_name_occupies_one_thread_for_all_its_workers(names: NameServer, resolver: Resolver) -> None:
    waiting = [asyncio.create_task(resolver.resolve("silent.invalid", port)) for port in (1, 2, 2)]
    await wait_until(lambda: names.running.total() == 1, "the lookup runs")
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    names.released.set()
    assert [[found["port"] for found in await each] for each in waiting[1:]] == [[2], [2]]
    assert waiting[0].cancelled()
    assert names.most == 1


async def test_names_that_were_slow_never_delay_others(
    names: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_SLOW", -1.0)
    names.released.set()
    slow = [f"silent{i}.invalid" for i in range(100)]
    await asyncio.gather(*(resolver.resolve(name) for name in slow))
    monkeypatch.setattr(lookups, "_SLOW", 60.0)
    names.released.clear()
    waiting = [asyncio.create_task(resolver.resolve(name)) for name in slow]
    await wait_until(lambda: names.running.total() == lookups._MAX_SLOW_LOOKUPS, "as many lookups run as may")
    await resolver.resolve("healthy.invalid")
    assert not any(each.done() for each in waiting)
    names.released.set()
    await asyncio.gather(*waiting)
    names.released.clear()
    again = [asyncio.create_task(resolver.resolve(name)) for name in slow[:20]]
    await wait_until(lambda: names.running.total() == 20, "they were fast, so they are no longer slow")
    names.released.set()
    await asyncio.gather(*again)


async def test_the_slow_names_that_are_remembered_are_limited(
    names: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_SLOW", -1.0)
    monkeypatch.setattr(lookups, "_MAX_SLOW_NAMES", 2)
    for name in ("a.invalid", "b.invalid", "a.invalid", "c.invalid"):
        await resolver.resolve(name)
    assert list(resolver._slow) == ["a.invalid", "c.invalid"]


async def test_failed_lookup_raises_its_error_for_all_callers(names: NameServer, resolver: Resolver) -> None:
    waiting = [resolver.resolve("silent-unknown.invalid") for _ in range(2)]
    names.released.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [socket.gaierror] * 2


async def test_bug_in_a_lookup_reaches_its_callers(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await resolver.resolve("a.invalid")


async def test_the_systems_resolver_is_used_and_a_hostile_name_fails(resolver: Resolver) -> None:
    found = await resolver.resolve("localhost", 8000)
    assert {(each["host"], each["port"]) for each in found} <= {("127.0.0.1", 8000), ("::1", 8000)}
    for name in ("a" * 64 + ".invalid", "a..invalid", "unknown.invalid"):
        with pytest.raises((OSError, ValueError)):
            await resolver.resolve(name)


async def test_a_link_local_address_keeps_its_zone(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an address with its zone can be connected to."""
    address = ("fe80::1", 0, 0, 1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", address)])
    [found] = await resolver.resolve("a.invalid", 1)
    assert found["host"] == f"fe80::1%{socket.if_indextoname(1)}"


async def test_a_closed_resolver_ends_all_lookups(names: NameServer, resolver: Resolver) -> None:
    waiting = [asyncio.create_task(resolver.resolve(f"silent{i}.invalid")) for i in range(40)]
    await wait_until(lambda: names.running.total() == lookups._MAX_LOOKUPS, "as many lookups run as may")
    await resolver.close()
    names.released.set()
    await asyncio.wait(waiting)
    with pytest.raises(OSError, match="closed"):
        await resolver.resolve("a.invalid")


_HANGING = """
import asyncio, contextlib, socket, time
from controller.upstream.lookups import Resolver

socket.getaddrinfo = lambda *_, **__: time.sleep(3600)

async def main():
    resolver = Resolver()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(resolver.resolve("silent.invalid"), 0.1)
    await resolver.close()

asyncio.run(main())
"""


def test_a_running_lookup_does_not_keep_the_process_alive() -> None:
    assert subprocess.run([sys.executable, "-c", _HANGING], check=False, timeout=60).returncode == 0
