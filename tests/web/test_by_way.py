"""Clients get the address of the cluster, and their requests pass through it."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import Store
from tests.support.metrics import dispatches
from tests.support.outage import Link
from tests.support.samples import A
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, Behaviour, answers, bad_worker, chunks, hangs
from tests.web.conftest import Api, open_api

CLUSTER = "http://cluster:21001"


@pytest.fixture
async def api(store: Store) -> AsyncIterator[Api]:
    async with open_api(store.registry(), by_way=True, advertise=f"{CLUSTER}/", lease_time=60.0) as opened:
        yield opened


async def booked(api: Api) -> tuple[int, int]:
    """Return the leases and the queue length of the only worker."""
    [worker] = (await api.http.get("/workers")).json()["workers"]
    return worker["leased"], worker["queue_length"]


async def test_client_gets_the_address_of_the_cluster_if_the_model_has_a_live_worker(api: Api, store: Store) -> None:
    assert await api.dispatch() == ""
    await api.register(A)
    assert await api.dispatch() == CLUSTER
    assert await api.dispatch("other") == ""
    assert await api.dispatch("m" * 600) == ""
    assert await booked(api) == (0, 0), "nothing is booked"
    await api.post("/drain_worker", {"worker_name": A})
    assert await api.dispatch() == ""
    await api.post("/resume_worker", {"worker_name": A})
    await store.expire_heartbeat(A)
    assert await api.dispatch() == ""


async def test_client_that_asks_for_a_lease_gets_a_worker(api: Api) -> None:
    await api.register(A)
    response = await api.post("/get_worker_address", {"model": "m", "lease": True})
    assert response.json()["address"] == A
    assert await booked(api) == (1, 1)


async def test_address_comes_from_the_snapshot_while_redis_is_unavailable(api: Api, link: Link) -> None:
    await api.register(A)
    await api.replica.snapshots.take_now()
    with link.broken():
        response = await api.post("/get_worker_address", {"model": "m"})
        assert response.json() == {"address": CLUSTER}
        assert "x-controller-degraded" in response.headers
        assert await api.dispatch("other") == ""


def waits_for(gate: asyncio.Event, ended: list[str]) -> Behaviour:
    """Answer when the gate is open, as FastChat's workers do: even if the client has left."""

    async def behaviour(worker: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await gate.wait()
        ended.append(json.loads(body)["model"])
        await answers(b'{"text": "done", "error_code": 0}')(worker, writer, body)

    return behaviour


@pytest.mark.parametrize("path", ["/worker_generate", "/worker_get_embeddings"])
async def test_generation_is_booked_from_its_start_to_its_end(api: Api, path: str) -> None:
    gate, ended = asyncio.Event(), list[str]()
    async with bad_worker(**{path[1:]: waits_for(gate, ended)}) as healthy:
        await api.register(healthy.address)
        calls = [asyncio.create_task(api.post(path, {"model": "m"})) for _ in range(3)]
        await wait_until(lambda: len(healthy.requests) == 3, "the worker has all requests")
        assert await booked(api) == (3, 3)
        gate.set()
        assert [(await call).json()["text"] for call in calls] == ["done"] * 3
        await wait_until(lambda: not api.replica.bookings._background, "the leases are released")
        assert await booked(api) == (0, 0)


@pytest.mark.parametrize("path", ["/worker_generate", "/worker_get_embeddings"])
async def test_generation_stays_booked_after_its_client_has_left_until_the_worker_is_done(api: Api, path: str) -> None:
    gate, ended = asyncio.Event(), list[str]()
    async with bad_worker(**{path[1:]: waits_for(gate, ended)}) as healthy:
        await api.register(healthy.address)
        call = asyncio.create_task(api.post(path, {"model": "m"}))
        await wait_until(lambda: healthy.requests, "the worker has the request")
        call.cancel()
        await asyncio.wait([call])
        assert await booked(api) == (1, 1)
        assert healthy.open == 1
        gate.set()
        await wait_until(lambda: ended, "the worker has done its work")
        await wait_until(lambda: not api.replica.running._detached, "the answer is read")
        await wait_until(lambda: not api.replica.bookings._background, "the lease is released")
        assert await booked(api) == (0, 0)
        counted = (await api.http.get("/metrics")).text
        assert 'controller_calls_total{outcome="client_gone"} 1' in counted
        assert 'controller_calls_total{outcome="complete"} 0' in counted


async def all_of(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("while_reading", [True, False])
async def test_generation_whose_client_leaves_during_the_answer_is_read_to_its_end(
    api: Api, while_reading: bool
) -> None:
    async with bad_worker(worker_generate=chunks(*[b"a" * 1000] * 20, pause=0.01)) as healthy:
        await api.register(healthy.address)
        forwarded = (await api.replica.forwarder.generate("m", "/worker_generate", b'{"model": "m"}')).value
        pieces = forwarded.pieces()
        await anext(pieces)
        if while_reading:
            reading = asyncio.create_task(all_of(pieces))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
        await pieces.aclose()
        forwarded.close()
        assert await booked(api) == (1, 1)
        assert healthy.open == 1
        await wait_until(lambda: not api.replica.running._detached, "the answer is read")
        await wait_until(lambda: not api.replica.bookings._background, "the lease is released")
        assert await booked(api) == (0, 0)
        assert 'controller_calls_total{outcome="client_gone"} 1' in (await api.http.get("/metrics")).text


async def leave(api: Api, healthy: BadWorker, number: int = 1, body: str = "") -> None:
    """Send generations, and leave when they have reached the worker."""
    calls = [asyncio.create_task(api.post("/worker_generate", {"model": "m", "x": body})) for _ in range(number)]
    await wait_until(lambda: len(healthy.requests) == number, "the worker has all requests")
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_generation_that_fails_after_its_client_has_left_is_released(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()

    async def break_off(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        await gate.wait()
        writer.transport.abort()

    async with bad_worker(worker_generate=break_off) as healthy:
        await api.register(healthy.address)
        await leave(api, healthy)
        gate.set()
        await wait_until(lambda: not api.replica.running._detached, "the request has ended")
        await wait_until(lambda: not api.replica.bookings._background, "the lease is released")
        assert await booked(api) == (0, 0)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def close(api: Api, time_limit: float) -> None:
    await api.replica.running.close(time_limit)
    await api.replica.bookings.close(60.0)


async def test_shutdown_waits_for_the_answers_to_clients_that_have_left(api: Api) -> None:
    gate, ended = asyncio.Event(), list[str]()
    async with bad_worker(worker_generate=waits_for(gate, ended)) as healthy:
        await api.register(healthy.address)
        await leave(api, healthy)
        closing = asyncio.create_task(close(api, 60.0))
        await asyncio.sleep(0.05)
        assert await booked(api) == (1, 1)
        gate.set()
        await closing
        assert ended == ["m"]
        assert await booked(api) == (0, 0)


@pytest.mark.parametrize("by", ["the time limit", "end_streams"])
async def test_shutdown_ends_the_wait_for_answers_and_releases_the_leases(api: Api, by: str) -> None:
    async with bad_worker(worker_generate=hangs) as healthy:
        await api.register(healthy.address)
        await leave(api, healthy, 3)
        assert await booked(api) == (3, 3)
        if by == "end_streams":
            api.replica.end_streams()
        await close(api, 60.0 if by == "end_streams" else 0.01)
        assert await booked(api) == (0, 0)


async def test_requests_whose_clients_have_left_use_a_bounded_amount_of_memory(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.replica.running, "_max_detached", 25_000)
    async with bad_worker(worker_generate=hangs) as healthy:
        await api.register(healthy.address)
        await leave(api, healthy, 4, body="a" * 10_000)
        await wait_until(lambda: healthy.open == 2, "two of them are ended")
        await wait_until(lambda: not api.replica.bookings._background, "their leases are released")
        assert await booked(api) == (2, 2)


@pytest.mark.parametrize("path", ["/count_token", "/model_details", "/worker_get_conv_template"])
async def test_lookup_goes_to_any_live_worker_without_a_booking(api: Api, path: str) -> None:
    gate, ended = asyncio.Event(), list[str]()
    async with bad_worker(**{path[1:]: waits_for(gate, ended)}) as healthy:
        await api.register(healthy.address)
        call = asyncio.create_task(api.post(path, {"model": "m", "prompt": "x"}))
        await wait_until(lambda: healthy.requests, "the worker has the request")
        assert await booked(api) == (0, 0)
        gate.set()
        assert (await call).json()["text"] == "done"


async def breaks_off(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("fault", [breaks_off, answers(b"{}", "500 Error"), chunks(end=False)])
async def test_lookup_is_retried_on_another_worker(api: Api, fault: Behaviour) -> None:
    async with bad_worker(count_token=fault) as bad, bad_worker(count_token=answers(b'{"count": 3}')) as healthy:
        await api.register(bad.address)
        await api.register(healthy.address)
        for _ in range(12):
            assert (await api.post("/count_token", {"model": "m", "prompt": "x"})).json() == {"count": 3}
        assert bad.requests


async def test_failed_request_is_not_dispatched_again_if_the_model_has_no_other_worker(api: Api) -> None:
    refusal = answers(b"{}", "500 Error")
    async with bad_worker(count_token=refusal, worker_generate=refusal) as bad:
        await api.register(bad.address)
        await api.post("/worker_generate", {"model": "m"})
        await api.post("/count_token", {"model": "m"})
        assert [path for path, _ in bad.requests] == ["worker_generate", "count_token"]
        assert dispatches((await api.http.get("/metrics")).text, "chosen") == 1


async def test_error_of_a_lookup_is_as_for_other_requests(api: Api) -> None:
    response = await api.post("/count_token", {"model": "m", "prompt": "x"})
    error: dict[str, Any] = response.json()
    assert (response.status_code, error["error"]["code"], error["error_code"]) == (200, "no_worker", 50005)
