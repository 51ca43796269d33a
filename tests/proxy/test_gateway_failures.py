"""Engines that fail or are busy: what is tried next, what counts, and how an engine comes back.

The numbers of faults are those of docs/guarantees.md.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
from aiohttp import web

from controller.proxy import trials
from controller.replica import Replica
from controller.store.registry import Registry
from tests.proxy.conftest import Serve
from tests.support.openai_engines import Behaviour, OpenAiEngine, answers, engine_worker, openai_engine
from tests.support.outage import Link
from tests.support.samples import reports
from tests.support.waiting import wait_until
from tests.support.workers import Behaviour as RawBehaviour
from tests.support.workers import bad_worker, sends

CHAT = "/v1/chat/completions"
DEAD = "http://127.0.0.1:9"
TOO_LONG = b'{"error": {"message": "This model\'s maximum context length is 8", "type": "x", "code": 500}}'


async def ask(http: httpx.AsyncClient, address: str) -> tuple[int, bytes]:
    response = await http.post(address + CHAT, json={"model": "m"})
    return response.status_code, response.content


async def state(replica: Replica, registry: Registry) -> dict[str, tuple[int, str]]:
    """Return the leases and the failure of each engine, after the leases of ended requests are released."""
    await wait_until(lambda: not (replica.running.count or replica.bookings._background), "all requests have ended")
    return {known.name: (known.leased, known.failing) for known in (await registry.list_workers()).workers}


@pytest.mark.parametrize(
    ("first", "failing"),
    [
        (answers(b"oops", 500), "request"),
        (answers(b"oops", 502), "request"),
        (answers(b"loading", 503), "request"),
        (answers(b"busy", 429), ""),
        (answers(b"busy", 503, {"Retry-After": "3"}), ""),
    ],
)
async def test_failed_or_busy_engine_is_replaced_by_another(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, first: Behaviour, failing: str
) -> None:
    async with openai_engine(first) as bad, openai_engine(answers(b"good")) as good, serve() as (replica, address):
        await registry.register(engine_worker(bad.address))
        await registry.register(engine_worker(good.address, queue_length=8))
        assert await ask(http, address) == (200, b"good")
        assert (len(bad.requests), len(good.requests)) == (1, 1)
        assert await state(replica, registry) == {bad.address: (0, failing), good.address: (0, "")}


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (500, b"oops", {}),
        (503, b"\x00\xff", {"Retry-After": "7"}),
        (429, b'{"error": "full"}', {"X-Engine": "1"}),
    ],
)
async def test_last_error_of_an_engine_passes_unchanged(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, status: int, body: bytes, headers: dict[str, str]
) -> None:
    refuses = answers(body, status, headers)
    async with openai_engine(refuses) as one, openai_engine(refuses) as other, serve() as (replica, address):
        await registry.register(engine_worker(one.address))
        await registry.register(engine_worker(other.address))
        await registry.register(engine_worker(DEAD, queue_length=1_000))
        response = await http.post(address + CHAT, json={"model": "m"})
        assert (response.status_code, response.content) == (status, body)
        assert headers.items() <= dict(response.headers.items()).items() or all(
            response.headers[name] == value for name, value in headers.items()
        )
        assert len(one.requests) == len(other.requests) == 1, "--forward-tries is 2"
        assert replica.running.count == 0


async def test_response_of_an_engine_is_preferred_to_an_error_of_the_connection(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    async with openai_engine(answers(b"oops", 500)) as bad, serve() as (_, address):
        await registry.register(engine_worker(bad.address))
        await registry.register(engine_worker(DEAD, queue_length=8))
        assert await ask(http, address) == (500, b"oops")
        await registry.remove(bad.address)
        response = await http.post(address + CHAT, json={"model": "m"})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["type"]) == (502, "worker_unreachable", "server_error")
        assert DEAD not in response.text


async def test_long_error_passes_whole(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    async with openai_engine(answers(b"x" * 200_000, 500)) as bad, serve() as (_, address):
        await registry.register(engine_worker(bad.address))
        assert await ask(http, address) == (500, b"x" * 200_000)


@pytest.mark.slow
@pytest.mark.parametrize(("status", "body"), [(400, b"no"), (404, b"no"), (501, b"no"), (500, TOO_LONG)])
async def test_thousand_bad_requests_leave_all_engines_in_use(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, status: int, body: bytes
) -> None:
    """Fault 5: one bad client is no outage."""
    async with (
        openai_engine(answers(body, status)) as one,
        openai_engine(answers(body, status)) as other,
        serve() as (replica, address),
    ):
        await registry.register(engine_worker(one.address))
        await registry.register(engine_worker(other.address))
        for _ in range(10):
            found = await asyncio.gather(*(ask(http, address) for _ in range(10 if status != 400 else 100)))
            assert set(found) == {(status, body)}
        assert await state(replica, registry) == {one.address: (0, ""), other.address: (0, "")}
        total = len(one.requests) + len(other.requests)
        assert total == (1_000 if status == 400 else 100), "nothing was retried"
        assert min(len(one.requests), len(other.requests)) > total / 4


@pytest.mark.parametrize(
    "broken",
    [
        sends(end="closed"),
        sends(b"HTTP/1.1 200 OK\r\nContent-Le", end="closed"),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", end="closed"),
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", end="reset"),
        sends(b"not HTTP\r\n\r\n", end="closed"),
        sends(b"HTTP/1.1 500 X\r\nContent-Length: 5\r\n\r\nab", end="closed"),
    ],
)
async def test_broken_answer_is_a_failure_and_is_retried(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, broken: RawBehaviour
) -> None:
    async with (
        bad_worker(completions=broken) as bad,
        openai_engine(answers(b"good")) as good,
        serve() as (replica, address),
    ):
        await registry.register(engine_worker(bad.address))
        await registry.register(engine_worker(good.address, queue_length=8))
        assert await ask(http, address) == (200, b"good")
        assert await state(replica, registry) == {bad.address: (0, "request"), good.address: (0, "")}


async def test_retries_stay_within_the_budget(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    busy = answers(b"busy", 429)
    async with (
        openai_engine(busy) as one,
        openai_engine(busy) as other,
        serve(retry_budget=0.1) as (replica, address),
    ):
        await registry.register(engine_worker(one.address))
        await registry.register(engine_worker(other.address))
        for _ in range(100):
            assert await ask(http, address) == (429, b"busy")
        retries = len(one.requests) + len(other.requests) - 100
        assert 10 <= retries <= 0.1 * 100 + 10
        metrics = replica.metrics.render().decode()
        assert f"controller_forward_refused_retries_total {100 - retries}.0" in metrics
        assert 'controller_gateway_requests_total{model="m",outcome="busy"} 100.0' in metrics


async def test_silent_engine_is_replaced_only_with_a_limit_for_the_first_byte(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    """Fault 12: engines keep requests waiting for minutes, and no other time limit ends them."""
    gate = asyncio.Event()

    async def silent(_: web.Request) -> web.StreamResponse:
        await gate.wait()
        return web.Response(body=b"late")

    async with openai_engine(silent) as slow, openai_engine(answers(b"good")) as good:
        await registry.register(engine_worker(slow.address))
        await registry.register(engine_worker(good.address, queue_length=8))
        async with serve(first_byte_timeout=0.3) as (replica, address):
            assert await ask(http, address) == (200, b"good")
            await wait_until(lambda: slow.cancelled == 1, "the engine's request is ended")
            assert (await state(replica, registry))[slow.address] == (0, "")
            await registry.remove(good.address)
            response = await http.post(address + CHAT, json={"model": "m"})
            assert (response.status_code, response.json()["error"]["code"]) == (504, "worker_silent")
        async with serve(worker_timeout=0.05) as (_, address):
            waiting = asyncio.create_task(ask(http, address))
            await wait_until(lambda: slow.running, "the engine has the request")
            await asyncio.sleep(0.5)  # several times --worker-timeout
            gate.set()
            assert await waiting == (200, b"late")


@pytest.mark.slow
@pytest.mark.slow_on_fakeredis
async def test_failing_engine_gets_few_requests_and_comes_back(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 7: an engine that fails in a millisecond always has the shortest queue. Two replicas share the trials."""
    broken = True

    async def fast(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"oops", status=500) if broken else web.Response(body=b"back")

    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.005)
        return web.Response(body=b"good")

    monkeypatch.setattr(trials, "_MAX_PAUSE", 4.0)
    async with (
        openai_engine(fast) as bad,
        openai_engine(slow) as good,
        serve(snapshot_interval=0.1) as (_, first),
        serve(snapshot_interval=0.1) as (_, second),
    ):
        await registry.register(engine_worker(bad.address))
        await registry.register(engine_worker(good.address))
        served: Counter[tuple[int, bytes]] = Counter()

        async def client(address: str, number: int) -> None:
            for _ in range(number):
                served[await ask(http, address)] += 1

        began = time.monotonic()
        await asyncio.gather(*(client(address, 200) for address in (first, second) * 4))
        assert served == {(200, b"good"): 1_600}
        # Each client may send it a request before the first failure is known. The first trials are 1, 2 and 4 s apart.
        # A slow machine needs so long for the requests that there are more trials.
        trials_due = 3 + (time.monotonic() - began) / trials._MAX_PAUSE
        assert 1 <= len(bad.requests) <= 8 + trials_due, "less than 1 % of the requests of a machine that is not slow"
        broken = False

        async def is_back() -> bool:
            await client(first, 10)
            await client(second, 10)
            return served[200, b"back"] > 20

        await wait_until(is_back, "the engine gets requests again")
        assert {known.failing for known in (await registry.list_workers()).workers} == {""}
        assert set(served) == {(200, b"good"), (200, b"back")}


@contextlib.asynccontextmanager
async def two_engines(registry: Registry, broken: asyncio.Event) -> AsyncIterator[list[OpenAiEngine]]:
    """Register two engines that respond with status 500 while `broken` is set."""

    async def behaviour(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"oops", status=500) if broken.is_set() else web.Response(body=b"back")

    async with openai_engine(behaviour) as one, openai_engine(behaviour) as other:
        for each in (one, other):
            await registry.register(engine_worker(each.address))
        yield [one, other]


async def test_engines_that_all_fail_are_used_and_recover_by_a_success(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    broken = asyncio.Event()
    broken.set()
    async with two_engines(registry, broken) as engines, serve() as (replica, address):
        assert await ask(http, address) == (500, b"oops")
        assert {failing for _, failing in (await state(replica, registry)).values()} == {"request"}
        await registry.take_engine_answers(reports([(each.address, 0) for each in engines]))  # polls clear nothing
        await replica.snapshots.take_now()
        broken.clear()
        assert await ask(http, address) == (200, b"back")
        assert Counter(failing for _, failing in (await state(replica, registry)).values()) == {"": 1, "request": 1}


async def test_dead_engine_gets_one_request_in_an_outage_of_redis(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, link: Link
) -> None:
    async with openai_engine(answers(b"good")) as good, serve() as (replica, address):
        await registry.register(engine_worker(DEAD))
        await registry.register(engine_worker(good.address, queue_length=100))
        await replica.snapshots.take_now()
        with link.broken():
            for _ in range(30):
                assert await ask(http, address) == (200, b"good")
                await wait_until(lambda: not replica.bookings._background, "the failure is known")
            queues = {each.name: each.status.queue_length for each in (await replica.membership.list_workers()).value}
        assert queues[DEAD] == 1


async def test_engines_that_all_fail_in_an_outage_of_redis_recover_by_a_success(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, link: Link
) -> None:
    broken = asyncio.Event()
    broken.set()
    async with two_engines(registry, broken), serve() as (replica, address):
        await replica.snapshots.take_now()

        async def failures() -> Counter[str]:
            await wait_until(lambda: not replica.bookings._background, "the failures are known")
            return Counter(each.failing for each in (await replica.membership.list_workers()).value)

        with link.broken():
            assert await ask(http, address) == (500, b"oops")
            assert await failures() == {"request": 2}
            broken.clear()
            assert await ask(http, address) == (200, b"back")
            assert await failures() == {"": 1, "request": 1}
