"""The client for workers. Every response, even an invalid one, ends in a known error and within limits."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from controller.domain.errors import StreamBroken, WorkerError, WorkerSilent, WorkerUnreachable
from controller.domain.worker import WorkerStatus
from controller.upstream import response as upstream_response
from controller.upstream.client import WorkerClient
from tests.support.streams import frames_from
from tests.support.waiting import wait_until
from tests.support.workers import (
    Behaviour,
    answers,
    bad_worker,
    chunks,
    compression_bomb,
    hangs,
    sends_without_end,
    status,
)


@pytest.fixture
async def client_with_short_timeouts() -> AsyncIterator[WorkerClient]:
    opened = WorkerClient(probe_timeout=0.1, worker_timeout=0.1)
    yield opened
    await opened.close()


async def test_status_returns_what_the_worker_sent(client: WorkerClient) -> None:
    async with bad_worker(worker_get_status=status("m", "n", speed=2.5, queue_length=4)) as worker:
        assert await client.status(worker.address) == WorkerStatus(("m", "n"), 2.5, 4)
        assert worker.requests == [("worker_get_status", b"")]


BAD_STATUSES: dict[str, tuple[Behaviour, str]] = {
    "hangs": (hangs, r"did not respond within 0.1 s"),
    "too much": (sends_without_end, r"more than 1048576 bytes"),
    "redirects": (answers(b"", "302 Found", "Location: http://127.0.0.1:1/"), r"returned status 302 instead of 200"),
    "500": (answers(b"x", "500 Internal Server Error"), r"returned status 500 instead of 200"),
    "empty": (answers(b""), r"invalid worker status"),
    "not JSON": (answers(b"<html>"), r"invalid worker status"),
    "not UTF-8": (answers(b'{"model_names":["\xff"],"speed":1,"queue_length":0}'), r"invalid worker status"),
    "too deep": (answers(b"[" * 100_000), r"invalid worker status"),
    "a list": (answers(b"[]"), r"invalid worker status"),
    "a missing field": (answers(b'{"model_names":["m"],"speed":1}'), r"queue_length"),
    "a wrong type": (answers(b'{"model_names":"m","speed":1,"queue_length":0}'), r"model_names"),
    "speed 0": (answers(b'{"model_names":["m"],"speed":0,"queue_length":0}'), r"speed"),
    "breaks off": (chunks(b"{", end=False), r"cannot be reached|invalid worker status"),
    "a compression that was not requested": (compression_bomb, r"more than 1048576 bytes"),
}


@pytest.mark.parametrize("case", BAD_STATUSES)
async def test_invalid_status_is_an_error_of_one_line(
    client: WorkerClient, client_with_short_timeouts: WorkerClient, case: str
) -> None:
    behaviour, message = BAD_STATUSES[case]
    async with bad_worker(worker_get_status=behaviour) as worker:
        with pytest.raises(WorkerUnreachable, match=message) as caught:
            await (client_with_short_timeouts if case == "hangs" else client).status(worker.address)
        assert worker.address in str(caught.value)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)


async def test_requests_ask_for_no_compression_and_send_no_cookie(client: WorkerClient) -> None:
    body = b'{"model_names":["m"],"speed":1,"queue_length":0}'
    async with bad_worker(worker_get_status=answers(body, "200 OK", "Set-Cookie: a=b; Path=/")) as worker:
        address = worker.address.replace("127.0.0.1", "localhost")
        for _ in range(2):
            await client.status(address)
        for head in worker.heads:
            assert b"accept-encoding: identity\r\n" in head.lower()
            assert b"cookie" not in head.lower()


async def test_worker_with_an_unresolvable_name_is_unreachable(client: WorkerClient) -> None:
    """Registration refuses such names. If one gets into the registry otherwise, it must not cause other errors."""
    for name in ("http://a..b", "http://" + "a" * 64, "http://[x"):
        with pytest.raises(WorkerUnreachable):
            await client.status(name)
        with pytest.raises(WorkerUnreachable):
            await collect(client, name)


async def test_worker_that_does_not_listen_is_unreachable(client: WorkerClient) -> None:
    with pytest.raises(WorkerUnreachable, match="cannot be reached"):
        await client.status("http://127.0.0.1:1")
    with pytest.raises(WorkerUnreachable, match="cannot be reached"):
        await collect(client, "http://127.0.0.1:1")


async def test_silent_name_server_ends_by_the_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(aiohttp.DefaultResolver, "resolve", hang)
    opened = WorkerClient(probe_timeout=60.0, worker_timeout=60.0, connect_timeout=0.1)
    with pytest.raises(WorkerUnreachable):
        await collect(opened, "http://region.invalid:21001")
    await opened.close()


async def collect(client: WorkerClient, address: str, body: bytes = b'{"model":"m"}') -> list[bytes]:
    return [piece async for piece in frames_from(client, address, body)]


@pytest.mark.parametrize(
    ("sent", "frames"),
    [
        ([b"a\0", b"b\0"], [b"a", b"b"]),
        ([b"a", b"b", b"\0c", b"\0"], [b"ab", b"c"]),
        ([b"a\0b\0c", b"d\0"], [b"a", b"b", b"cd"]),
        ([b"a\0rest"], [b"a", b"rest"]),
        ([b"no end at all"], [b"no end at all"]),
        ([], []),
    ],
)
async def test_frames_arrive_whole(client: WorkerClient, sent: list[bytes], frames: list[bytes]) -> None:
    async with bad_worker(worker_generate_stream=chunks(*sent, pause=0.02)) as worker:
        pieces = await collect(client, worker.address)
    assert all(piece.endswith(b"\0") for piece in pieces)
    assert b"".join(pieces).split(b"\0")[:-1] == frames


async def test_frame_is_passed_on_before_the_next_one_arrives(client: WorkerClient) -> None:
    gate = asyncio.Event()

    async def behaviour(_: object, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst\0")
        await gate.wait()
        writer.write(b"second\0")

    async with bad_worker(worker_generate_stream=behaviour) as worker:
        stream = frames_from(client, worker.address)
        assert await anext(stream) == b"first\0"
        gate.set()
        assert await anext(stream) == b"second\0"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_request_body_is_sent_unchanged(client: WorkerClient) -> None:
    body = '{"model": "m",  "prompt": "ü\\u0000", "x": 1e2}'.encode()
    async with bad_worker(worker_generate_stream=chunks(b"a\0")) as worker:
        await collect(client, worker.address, body)
        assert worker.requests == [("worker_generate_stream", body)]


BROKEN_STREAMS: dict[str, tuple[Behaviour, list[bytes], type[WorkerError], str]] = {
    "breaks off": (chunks(b"a\0b\0half", end=False), [b"a\0b\0"], StreamBroken, "ended early"),
    "goes silent": (chunks(b"a\0", pause=3600), [b"a\0"], WorkerSilent, "sent no data within --worker-timeout"),
    "endless frame": (sends_without_end, [], StreamBroken, "a frame of more than"),
}


@pytest.mark.parametrize("case", BROKEN_STREAMS)
async def test_broken_stream_yields_only_complete_frames(
    client: WorkerClient, client_with_short_timeouts: WorkerClient, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_response, "_MAX_FRAME_BYTES", 1_000_000)
    silent = case == "goes silent"
    behaviour, complete, kind, message = BROKEN_STREAMS[case]
    pieces: list[bytes] = []

    async def receive() -> None:
        async for piece in frames_from(client_with_short_timeouts if silent else client, worker.address):
            pieces.append(piece)

    async with bad_worker(worker_generate_stream=behaviour) as worker:
        with pytest.raises(kind, match=message):
            await receive()
    # On a slow machine, the short timeout may pass before the first frame.
    assert pieces == complete or (silent and pieces == [])


@pytest.mark.parametrize(("sent", "kept"), [(b"", b""), (b"oops", b"oops"), (b"x" * 100_000, b"x" * 65_536)])
async def test_refusal_keeps_the_first_64_kb_of_the_body(client: WorkerClient, sent: bytes, kept: bytes) -> None:
    async with bad_worker(worker_generate=answers(sent, "500 Oops", "Content-Type: text/plain")) as worker:
        answer = await client.post(worker.address, "/worker_generate", b"{}")
        error = await answer.refusal()
        answer.close()
        assert (str(error), error.status) == (f"{worker.address}/worker_generate returned status 500.", 500)
        assert (error.headers, error.body) == (((b"content-type", b"text/plain"),), kept)


async def test_redirect_is_not_followed(client: WorkerClient) -> None:
    async with bad_worker(worker_generate=answers(b"", "307 Moved", "Location: http://127.0.0.1:1/")) as worker:
        answer = await client.post(worker.address, "/worker_generate", b"{}")
        answer.close()
        assert answer.status == 307


async def test_closed_stream_ends_the_request(client: WorkerClient) -> None:
    async with bad_worker(worker_generate_stream=chunks(*[b"a\0"] * 1000, pause=0.01)) as worker:
        stream = frames_from(client, worker.address)
        await anext(stream)
        await stream.aclose()
        await wait_until(lambda: worker.open == 0, "the worker sees that its client has disconnected")
        assert len(worker.requests) == 1


async def test_end_streams_breaks_running_streams(client: WorkerClient) -> None:
    async with bad_worker(worker_generate_stream=chunks(*[b"a\0"] * 1000, pause=0.05)) as worker:
        streams = [frames_from(client, worker.address) for _ in range(3)]
        assert [await anext(stream) for stream in streams] == [b"a\0"] * 3
        client.end_streams()
        for stream in streams:
            with pytest.raises(StreamBroken, match="shutting down"):
                async for _ in stream:
                    pass
        assert client._responses == set()


async def test_end_streams_breaks_streams_that_have_not_begun_and_later_ones(client: WorkerClient) -> None:
    async with bad_worker(worker_generate_stream=hangs) as worker:
        waiting = asyncio.create_task(anext(frames_from(client, worker.address)))
        await wait_until(lambda: worker.requests, "the worker has the request")
        client.end_streams()
        with pytest.raises(StreamBroken, match="shutting down"):
            await waiting
        with pytest.raises(StreamBroken, match="shutting down"):
            await anext(frames_from(client, worker.address))
        assert [path for path, _ in worker.requests] == ["worker_generate_stream"]
        await wait_until(lambda: worker.open == 0, "all connections are closed")
