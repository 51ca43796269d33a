"""Clients of the gateway that leave, wait, reuse connections, pipeline or come all at once.

The numbers of faults are those of docs/guarantees.md.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web

from controller.store.registry import Registry
from tests.proxy.conftest import Serve
from tests.proxy.leftovers import nothing_is_left
from tests.support.openai_engines import Behaviour, OpenAiEngine, answers, engine_worker, openai_engine
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
SSE = {"Content-Type": "text/event-stream; charset=utf-8"}
BURST = 400

Ask = Callable[[httpx.AsyncClient, str], Coroutine[None, None, None]]


async def post(http: httpx.AsyncClient, address: str) -> None:
    await http.post(address + CHAT, json={"model": "m"})


async def read_one(http: httpx.AsyncClient, address: str) -> None:
    async with http.stream("POST", address + CHAT, json={"model": "m", "stream": True}) as response:
        async for _ in response.aiter_raw():
            await asyncio.sleep(3600)


async def before_the_head(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


async def before_the_first_byte(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=SSE)
    await response.prepare(request)
    await asyncio.sleep(3600)
    return response


async def in_the_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=SSE)
    await response.prepare(request)
    await response.write(b"data: {}\n\n")
    await asyncio.sleep(3600)
    return response


async def in_the_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "10"})
    await response.prepare(request)
    await response.write(b"x")
    await asyncio.sleep(3600)
    return response


@asynccontextmanager
async def engine_of(registry: Registry, behaviour: Behaviour) -> AsyncIterator[OpenAiEngine]:
    async with openai_engine(behaviour) as engine:
        await registry.register(engine_worker(engine.address))
        yield engine


@pytest.mark.parametrize(
    ("behaviour", "ask"),
    [(before_the_head, post), (before_the_first_byte, read_one), (in_the_stream, read_one), (in_the_body, post)],
)
async def test_client_that_leaves_ends_the_engines_request_in_each_phase(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, behaviour: Behaviour, ask: Ask
) -> None:
    """Faults 3 and 4: the engine's request ends, the lease is released, and no connection is left."""
    async with engine_of(registry, behaviour) as engine, serve() as (replica, address):
        for number in range(1, 4):
            waiting = asyncio.create_task(ask(http, address))
            await wait_until(lambda: engine.running, "the engine has the request")
            [known] = (await registry.list_workers()).workers
            assert known.leased == 1
            waiting.cancel()
            await asyncio.wait([waiting])
            await wait_until(lambda: not engine.running, "the engine's request is ended")
            assert engine.cancelled == number
            await nothing_is_left(replica, registry)
        [known] = (await registry.list_workers()).workers
        assert known.failing == ""
        metrics = replica.metrics.render().decode()
        assert 'controller_gateway_requests_total{model="m",outcome="client_gone"} 3.0' in metrics


async def test_client_that_leaves_while_an_engine_is_chosen_leaves_no_lease(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_of(registry, answers()) as engine, serve() as (replica, address):
        chosen, resumed = asyncio.Event(), asyncio.Event()
        dispatch = replica.registry.dispatch_some

        async def slow(*arguments: object, **options: object) -> object:
            found = await dispatch(*arguments, **options)  # type: ignore[arg-type]
            chosen.set()
            await resumed.wait()
            return found

        monkeypatch.setattr(replica.registry, "dispatch_some", slow)
        waiting = asyncio.create_task(post(http, address))
        await chosen.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        await wait_until(lambda: not replica.running.count, "the request has ended")
        resumed.set()
        await nothing_is_left(replica, registry)
        assert engine.requests == []


@pytest.mark.parametrize("number", [300, pytest.param(4_000, marks=pytest.mark.slow)])
async def test_many_clients_that_leave_use_up_no_connections(serve: Serve, registry: Registry, number: int) -> None:
    """Fault 4: connections of ended requests would fill a pool. The clients leave at random moments."""
    rng = random.Random(1)

    async def behaviour(request: web.Request) -> web.StreamResponse:
        return await (in_the_stream if rng.random() < 0.5 else before_the_head)(request)

    async with engine_of(registry, behaviour) as engine, serve() as (replica, address):
        host, _, port = address.removeprefix("http://").rpartition(":")
        body = b'{"model": "m"}'
        request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body)

        async def leave(times: int) -> None:
            for _ in range(times):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(request)
                await asyncio.sleep(rng.uniform(0, 0.02))
                writer.transport.abort()

        await asyncio.gather(*(leave(number // 20) for _ in range(20)))
        await nothing_is_left(replica, registry)
        await wait_until(lambda: not engine.running, "the engine has no request")
        engine.behaviour = answers(b"still here")
        async with httpx.AsyncClient(timeout=60.0) as http:
            assert (await http.post(address + CHAT, json={"model": "m"})).content == b"still here"


async def test_silent_request_stays_booked_for_longer_than_a_lease(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    """Fault 1."""
    async with engine_of(registry, before_the_head) as engine, serve(lease_time=0.5) as (replica, address):
        waiting = asyncio.create_task(post(http, address))
        await wait_until(lambda: engine.running, "the engine has the request")
        for _ in range(20):
            await asyncio.sleep(0.1)  # in all, four times the lease
            await registry.sweep(0.001)
            [known] = (await registry.list_workers()).workers
            assert known.leased == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        await nothing_is_left(replica, registry)


@pytest.mark.parametrize("chunked_request", [False, True])
@pytest.mark.parametrize("chunked_response", [False, True])
async def test_connections_are_reused_with_every_framing(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, chunked_request: bool, chunked_response: bool
) -> None:
    """Faults 10 and 13: the first requests pass, and later ones on the same connections fail."""
    connections = set()

    async def echo(request: web.Request) -> web.StreamResponse:
        connections.add(request.transport)
        body = await request.read()
        if not chunked_response:
            return web.Response(body=body)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, len(body), 7):
            await response.write(body[start : start + 7])
        return response

    async with engine_of(registry, echo), serve() as (_, address):
        for number in range(50):
            body = json.dumps({"model": "m", "n": "x" * number * 997}).encode()

            async def parts(body: bytes = body) -> AsyncIterator[bytes]:
                for start in range(0, len(body), 1_000):
                    yield body[start : start + 1_000]

            response = await http.post(address + CHAT, content=parts() if chunked_request else body)
            assert (response.status_code, response.content) == (200, body)
            assert ("content-length" in response.headers) is not chunked_response
        assert len(connections) < 10


async def test_pipelined_requests_are_answered_in_order(serve: Serve, registry: Registry) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(random.uniform(0, 0.01))
        return web.Response(body=await request.read())

    async with engine_of(registry, echo), serve() as (_, address):
        host, _, port = address.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        bodies = [b'{"model": "m", "n": %d}' % number for number in range(30)]
        for body in bodies:
            writer.write(
                b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body)
            )
        for body in bodies:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            assert b"content-length: %d\r\n" % len(body) in head.lower()
            assert await reader.readexactly(len(body)) == body
        writer.close()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("leave", ["abort", "close", "write_garbage"])
async def test_client_that_pipelines_and_leaves_ends_its_first_request(
    serve: Serve, registry: Registry, leave: str, begun: bool
) -> None:
    body = b'{"model": "m", "stream": true}'
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body)
    async with (
        engine_of(registry, in_the_stream if begun else before_the_head) as engine,
        serve() as (replica, address),
    ):
        host, _, port = address.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request * 3)
        await wait_until(lambda: engine.running, "the engine has the first request")
        if begun:
            await reader.readuntil(b"data: {}\n\n")
        if leave == "abort":
            writer.transport.abort()
        elif leave == "close":
            writer.close()
        else:
            writer.write(b"\0\r\n\r\n")
        await wait_until(lambda: not engine.running, "the engine's request is ended")
        await nothing_is_left(replica, registry)
        assert len(engine.requests) == 1
        writer.close()


@pytest.mark.slow
@pytest.mark.slow_on_fakeredis
async def test_burst_of_requests_has_no_errors(serve: Serve, registry: Registry) -> None:
    """Fault 6: thousands at once on eight engines, each of which gets its share."""

    async def behaviour(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return web.Response(body=b"ok")

    async with openai_engine(behaviour) as engine, serve(connect_timeout=60.0) as (replica, address):
        for number in range(8):
            await registry.register(engine_worker(f"{engine.address}/{number}"))
        limits = httpx.Limits(max_connections=1_000)
        async with httpx.AsyncClient(timeout=120.0, limits=limits) as http:
            found = await asyncio.gather(*(http.post(address + CHAT, json={"model": "m"}) for _ in range(BURST)))
        assert {(each.status_code, each.content) for each in found} == {(200, b"ok")}
        counts = [sum(request.path.startswith(f"/{number}/") for request, _ in engine.requests) for number in range(8)]
        assert sum(counts) == BURST
        assert max(counts) - min(counts) <= BURST / 20
        await nothing_is_left(replica, registry)
