"""Streams of engines: bytes, framing, broken ends, and clients that do not read.

The numbers of faults are those of docs/guarantees.md.
"""

import asyncio
import hashlib
import json
import random
from contextlib import suppress

import httpx
import pytest
from aiohttp import web

from controller.proxy import forwarded
from controller.store.registry import Registry
from tests.proxy.conftest import Serve
from tests.proxy.leftovers import nothing_is_left
from tests.support.openai_engines import engine_worker, openai_engine
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, bad_worker, sends
from tests.support.workers import Behaviour as RawBehaviour

CHAT = "/v1/chat/completions"
SSE = {"Content-Type": "text/event-stream; charset=utf-8"}
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def sse(number: int) -> bytes:
    """Return a stream of events of 1 byte to 1 MiB, with a chunk of usage at a position of its own."""
    rng = random.Random(number)
    largest = 20 if number % 50 == 0 else 10
    events = [
        b"data: "
        + rng.randbytes(round(2 ** rng.uniform(0, largest))).hex().encode()
        + rng.choice([b"\n\n", b"\r\n\r\n"])
        for _ in range(rng.randint(1, 12))
    ]
    events.insert(number % (len(events) + 1), USAGE)
    return b"".join(events) + (DONE if number % 3 else b"")


async def send_sse(request: web.Request) -> web.StreamResponse:
    """Send the stream of a number, in pieces whose ends are independent of the events."""
    number = int(request.query["number"])
    body, rng = sse(number), random.Random(number + 1)
    response = web.StreamResponse(headers=SSE)
    if number % 4 == 0:
        response.content_length = len(body)
    await response.prepare(request)
    while body:
        size = min(len(body), round(2 ** rng.uniform(0, 17)) if len(body) > 10_000 else rng.randint(1, 700))
        await response.write(body[:size])
        body = body[size:]
        if rng.random() < 0.1:
            await asyncio.sleep(0)
    return response


async def test_thousand_streams_are_byte_for_byte_those_of_the_engine(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    """Faults 2 and 11."""
    async with openai_engine(send_sse) as one, openai_engine(send_sse) as other, serve() as (replica, address):
        await registry.register(engine_worker(one.address))
        await registry.register(engine_worker(other.address))

        async def compare(numbers: range) -> None:
            for number in numbers:
                received = hashlib.sha256()
                body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
                async with http.stream("POST", f"{address}{CHAT}?number={number}", json=body) as response:
                    assert response.headers["content-type"] == SSE["Content-Type"]
                    async for part in response.aiter_raw():
                        received.update(part)
                assert received.digest() == hashlib.sha256(sse(number)).digest(), number

        await asyncio.gather(*(compare(range(first, 1_000, 16)) for first in range(16)))
        assert len(one.requests) + len(other.requests) == 1_000
        await wait_until(lambda: not replica.running.count, "all requests have ended")


def stream_of(*parts: bytes, headers: str = "Content-Type: text/event-stream\r\n", end: str = "closed") -> RawBehaviour:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{headers}\r\n".encode()
    return sends(head + chunks, end=end)


@pytest.mark.parametrize("part", [b"data: {}\n\n", b"data: {}\r\n\r\n", b'data: {"cho', b"data: {}\r", b": ping\n"])
@pytest.mark.parametrize("end", ["closed", "reset"])
async def test_broken_stream_of_events_ends_with_an_error_event(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, part: bytes, end: str
) -> None:
    async with bad_worker(completions=stream_of(part, end=end)) as engine, serve() as (_, address):
        await registry.register(engine_worker(engine.address))
        response = await http.post(address + CHAT, json={"model": "m"})
        assert response.content.startswith(part)
        last = response.content.removeprefix(part)
        assert last.startswith(b"\n\ndata: ")
        assert last.endswith(b"\n\n")
        error = json.loads(last.strip().removeprefix(b"data: "))["error"]
        assert (error["type"], error["code"], error["param"]) == ("server_error", "stream_broken", None)
        assert engine.address not in error["message"]

        async def is_failing() -> bool:
            [known] = (await registry.list_workers()).workers
            return known.failing == "request"

        await wait_until(is_failing, "the engine counts as failing")


async def test_engine_that_gives_up_on_a_client_that_does_not_read_is_not_failing(
    serve: Serve, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarded, "_HOLD", 0.2)
    has_given_up = asyncio.Event()

    async def gives_up(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(TimeoutError):
            while True:
                writer.write(b"fde8\r\n" + b"x" * 65_000 + b"\r\n")
                await asyncio.wait_for(writer.drain(), 0.5)
        has_given_up.set()
        writer.transport.abort()

    async with bad_worker(completions=gives_up) as engine, serve() as (replica, address):
        await registry.register(engine_worker(engine.address))
        host, _, port = address.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model": "m", "stream": true}'
        writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
        await has_given_up.wait()
        last = b""
        while b'"stream_broken"' not in last:
            last = last[-1_000:] + await reader.read(65_536)
        await nothing_is_left(replica, registry)
        [known] = (await registry.list_workers()).workers
        assert known.failing == ""
        assert 'controller_gateway_requests_total{model="m",outcome="broken"} 1.0' in replica.metrics.render().decode()
        writer.close()


@pytest.mark.parametrize(
    "behaviour",
    [
        stream_of(b'{"a": ', headers="Content-Type: application/json\r\n"),
        stream_of(b"x", headers="Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"),
        stream_of(b"x", headers=""),
        sends(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata", end="closed"),
    ],
)
async def test_other_broken_response_ends_with_the_connection(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, behaviour: RawBehaviour
) -> None:
    async with bad_worker(completions=behaviour) as engine, serve() as (_, address):
        await registry.register(engine_worker(engine.address))
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(address + CHAT, json={"model": "m"}, headers={"Accept-Encoding": "identity"})


async def test_stream_that_goes_silent_ends_with_an_error_event(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    behaviour = stream_of(b"data: {}\n\n", end="open")
    async with bad_worker(completions=behaviour) as engine, serve(worker_timeout=0.3) as (_, address):
        await registry.register(engine_worker(engine.address))
        response = await http.post(address + CHAT, json={"model": "m"})
        assert b"stream_broken" in response.content
