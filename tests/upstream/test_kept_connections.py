"""A worker closes a kept connection just as a request arrives: the request is sent again, and no failure is counted."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from controller.domain.errors import ParentUnreachable, StreamBroken, WorkerUnreachable
from controller.domain.worker import WorkerStatus
from controller.store.registry import Registry
from controller.upstream import connections
from controller.upstream.client import WorkerClient
from controller.upstream.parent import ParentClient
from tests.conftest import Open
from tests.support.samples import worker
from tests.support.streams import frames_from, streamed
from tests.support.waiting import wait_until
from tests.support.workers import keeping_worker, plain, reset


@pytest.fixture(autouse=True)
def long_race_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every broken connection count as a race. On a slow machine it may break long after the request began."""
    monkeypatch.setattr(connections, "_RACE_WINDOW", 60.0)


STATUS = b'{"model_names": ["m"], "speed": 1, "queue_length": 0}'


def closes_at_second_request(
    answer: bytes = b"a\0", *, by_reset: bool = False, before: bytes = b""
) -> Callable[[int, int, asyncio.StreamWriter], bool]:
    """Answer the first request on each connection. Send `before` and close at the second one."""

    def behave(_: int, request: int, writer: asyncio.StreamWriter) -> bool:
        if request == 1:
            writer.write(plain(answer))
            return True
        writer.write(before)
        if by_reset:
            reset(writer)
        return False

    return behave


async def collect(client: WorkerClient, address: str, body: bytes = b"{}") -> bytes:
    return b"".join([piece async for piece in frames_from(client, address, body)])


@pytest.mark.parametrize("by_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("size", [2, 8_000_000])
async def test_request_is_sent_again_on_a_new_connection(client: WorkerClient, size: int, by_reset: bool) -> None:
    async with keeping_worker(closes_at_second_request(by_reset=by_reset)) as kept:
        assert await collect(client, kept.address) == b"a\0"
        assert await collect(client, kept.address, b"x" * size) == b"a\0"
        assert kept.connections == 2
        assert (kept.requests[0][0], kept.requests[-1]) == (1, (2, b"x" * size))


async def test_request_that_broke_later_is_not_sent_again(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request may have killed the worker, which must not get it a second time."""
    async with keeping_worker(closes_at_second_request()) as kept:
        assert await collect(client, kept.address) == b"a\0"
        monkeypatch.setattr(connections, "_RACE_WINDOW", 0.0)
        with pytest.raises(StreamBroken):
            await collect(client, kept.address)
        assert len(kept.requests) == 2


async def test_request_that_a_worker_worked_on_is_not_sent_again(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A race is over after one round trip. A worker that crashes later has begun the request."""
    monkeypatch.undo()

    def behave(_: int, request: int, writer: asyncio.StreamWriter) -> bool:
        if request == 1:
            writer.write(plain(b"a\0"))
        else:
            asyncio.get_running_loop().call_later(0.3, reset, writer)
        return True

    async with keeping_worker(behave) as kept:
        assert await collect(client, kept.address) == b"a\0"
        with pytest.raises(StreamBroken):
            await collect(client, kept.address)
        assert (kept.connections, len(kept.requests)) == (1, 2)


async def test_garbage_after_a_response_is_not_the_response_to_the_next_request(client: WorkerClient) -> None:
    def behave(number: int, request: int, writer: asyncio.StreamWriter) -> bool:
        writer.write(plain(b"a\0") if request == 1 else b"GARBAGE\r\n\r\n")
        return True

    async with keeping_worker(behave) as kept:
        assert await collect(client, kept.address) == b"a\0"
        assert await collect(client, kept.address) == b"a\0"
        assert kept.connections == 2


async def test_request_is_sent_again_on_a_new_connection_even_if_others_are_kept(client: WorkerClient) -> None:
    async with keeping_worker(closes_at_second_request()) as kept:
        streams = [frames_from(client, kept.address) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        assert kept.connections == 3
        for stream in streams:
            await stream.aclose()
        assert await collect(client, kept.address) == b"a\0"
        assert [number for number, _ in kept.requests][-1] == 4


@pytest.mark.parametrize("by_reset", [False, True], ids=["closed", "reset"])
async def test_request_is_not_sent_again_after_a_part_of_the_response(client: WorkerClient, by_reset: bool) -> None:
    last = SimpleNamespace(writer=None)

    def behave(_: int, request: int, writer: asyncio.StreamWriter) -> bool:
        writer.write(plain(b"a\0") if request == 1 else b"HTTP/1.1 20")
        last.writer = writer
        return True

    async with keeping_worker(behave) as kept:
        assert await collect(client, kept.address) == b"a\0"
        waiting = asyncio.create_task(collect(client, kept.address))
        [connection] = await wait_until(lambda: acquired(client), "the connection is in use")
        await wait_until(lambda: connection.response_begun, "a part of the head has arrived")
        if by_reset:
            reset(last.writer)
        else:
            last.writer.close()
        with pytest.raises(StreamBroken):
            await waiting
        assert (kept.connections, len(kept.requests)) == (1, 2)


def acquired(client: WorkerClient) -> list[object]:
    return list(client._session._kept._acquired)


async def test_request_on_a_new_connection_that_breaks_is_not_sent_again(client: WorkerClient) -> None:
    async with keeping_worker(lambda *_: False) as kept:
        with pytest.raises(StreamBroken):
            await collect(client, kept.address)
        assert kept.connections == 1
        with pytest.raises(WorkerUnreachable):
            await client.status(kept.address)
        assert kept.connections == 2


async def test_request_is_sent_again_only_once(client: WorkerClient) -> None:
    def behave(connection: int, request: int, writer: asyncio.StreamWriter) -> bool:
        if connection == request == 1:
            writer.write(plain(b"a\0"))
            return True
        return False

    async with keeping_worker(behave) as kept:
        assert await collect(client, kept.address) == b"a\0"
        with pytest.raises(StreamBroken):
            await collect(client, kept.address)
        assert kept.connections == 2


async def test_status_request_is_sent_again(client: WorkerClient) -> None:
    async with keeping_worker(closes_at_second_request(STATUS)) as kept:
        for _ in range(2):
            assert await client.status(kept.address) == WorkerStatus(("m",), 1, 0)
        assert kept.connections == 2


async def test_heartbeat_to_a_parent_is_sent_again() -> None:
    client = ParentClient(5.0)
    async with keeping_worker(closes_at_second_request(b'{"exist": true}')) as parent:
        for number in range(3):
            assert await client.heartbeat(parent.address, "http://a:1", number)
        assert parent.requests[-1][1] == b'{"worker_name":"http://a:1","queue_length":2}'
    with pytest.raises(ParentUnreachable):
        await client.heartbeat(parent.address, "http://a:1", 0)
    await client.close()


async def test_worker_is_not_deprioritised(replica: Open, registry: Registry) -> None:
    controller = replica(forward_tries=1, worker_timeout=60.0)
    async with keeping_worker(closes_at_second_request()) as kept:
        await registry.register(worker(kept.address))
        for _ in range(3):
            assert [piece async for piece in streamed(controller)] == [b"a\0"]
        assert kept.connections == 3
        await wait_until(lambda: not controller.bookings._background, "the leases are released")
        [known] = (await registry.list_workers()).workers
        assert (known.failing, known.leased) == ("", 0)


async def test_unrequested_response_is_not_used_for_the_next_request(client: WorkerClient) -> None:
    def behave(connection: int, request: int, writer: asyncio.StreamWriter) -> bool:
        writer.write(plain(b"%d\0" % connection))
        if connection == 1:
            writer.write(plain(b"stale\0"))
        return True

    async with keeping_worker(behave) as kept:
        assert await collect(client, kept.address) == b"1\0"
        await wait_until(lambda: len(kept.writers) == 0, "the connection is closed")
        assert await collect(client, kept.address) == b"2\0"
