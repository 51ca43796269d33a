"""Requests are forwarded to workers. Another worker is tried if one fails before its response begins."""

import asyncio
import sys
from collections import Counter
from functools import partial
from typing import Any

import pytest

from controller.domain.errors import LoopDetected, NoWorker, StreamBroken, WorkerError, WorkerRefused, WorkerSilent
from controller.domain.hops import HEADER
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import Open, Store
from tests.support.samples import worker
from tests.support.streams import streamed
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, Behaviour, answers, bad_worker, chunks, hangs

DEAD = "http://127.0.0.1:9"


@pytest.fixture
async def controller(replica: Open) -> Replica:
    return replica()


async def stream(replica: Replica) -> bytes:
    return b"".join([frame async for frame in streamed(replica)])


async def call(replica: Replica, path: str = "/count_token") -> tuple[int, str, bytes]:
    response = (await replica.forwarder.call("m", path, b'{"model": "m"}')).value
    try:
        content_type = dict(response.headers).get(b"content-type", b"").decode()
        return response.status, content_type, b"".join([piece async for piece in response.pieces()])
    finally:
        response.close()


async def state(replica: Replica, registry: Registry) -> dict[str, tuple[int, str]]:
    """Return the leases and the failure of each worker, after the leases of ended requests are released."""
    await wait_until(lambda: not replica.bookings._background, "the leases are released")
    return {known.name: (known.leased, known.failing) for known in (await registry.list_workers()).workers}


async def test_request_to_an_unreachable_worker_is_retried(controller: Replica, registry: Registry) -> None:
    await registry.register(worker(DEAD))
    async with bad_worker(worker_generate_stream=chunks(b"a\0b\0"), count_token=answers(b'{"count": 3}')) as healthy:
        await registry.register(worker(healthy.address, queue_length=5))
        assert await stream(controller) == b"a\0b\0"
        assert await state(controller, registry) == {DEAD: (0, "request"), healthy.address: (0, "")}
        await registry.register(worker(DEAD))
        assert await call(controller) == (200, "", b'{"count": 3}')
        assert await state(controller, registry) == {DEAD: (0, "request"), healthy.address: (0, "")}


async def breaks_off(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("behaviour", [breaks_off, chunks(end=False)])
async def test_request_is_retried_if_the_worker_breaks_off_before_the_response_begins(
    controller: Replica, registry: Registry, behaviour: Behaviour
) -> None:
    async with (
        bad_worker(worker_generate_stream=behaviour) as broken,
        bad_worker(worker_generate_stream=chunks(b"a\0")) as healthy,
    ):
        await registry.register(worker(broken.address))
        await registry.register(worker(healthy.address, queue_length=5))
        assert await stream(controller) == b"a\0"
        assert await state(controller, registry) == {broken.address: (0, "request"), healthy.address: (0, "")}


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (chunks(b"a\0", end=False), StreamBroken),
        (hangs, WorkerSilent),
        (answers(b"", "400 Bad Request"), WorkerRefused),
        (answers(b"", "307 Moved", "Location: /"), WorkerRefused),
    ],
)
async def test_request_is_not_retried_after_the_first_frame_a_timeout_or_a_refusal(
    replica: Open, registry: Registry, behaviour: Behaviour, kind: type[WorkerError]
) -> None:
    controller = replica(worker_timeout=0.3 if behaviour is hangs else 60.0)
    async with (
        bad_worker(worker_generate_stream=behaviour) as bad,
        bad_worker(worker_generate_stream=chunks(b"other\0")) as other,
    ):
        await registry.register(worker(bad.address))
        await registry.register(worker(other.address, queue_length=5))
        with pytest.raises(kind):
            await stream(controller)
        assert other.requests == []
        assert await state(controller, registry) == {bad.address: (0, ""), other.address: (0, "")}


async def test_request_is_retried_after_a_5xx_and_the_worker_is_not_deprioritised(
    controller: Replica, registry: Registry
) -> None:
    """The request may be the cause of the error."""
    faulty = answers(b"oops", "500 Internal Server Error", "Content-Type: text/plain")
    async with (
        bad_worker(worker_generate_stream=faulty, count_token=faulty) as bad,
        bad_worker(worker_generate_stream=chunks(b"a\0"), count_token=answers(b"{}")) as good,
    ):
        await registry.register(worker(bad.address))
        await registry.register(worker(good.address, queue_length=8))
        assert await stream(controller) == b"a\0"
        assert await call(controller) == (200, "", b"{}")
        assert len(bad.requests) == len(good.requests) == 2
        assert await state(controller, registry) == {bad.address: (0, ""), good.address: (0, "")}
        await registry.remove(good.address)
        with pytest.raises(WorkerRefused, match="returned status 500"):
            await stream(controller)
        with pytest.raises(WorkerRefused) as caught:
            await call(controller)
        assert (caught.value.status, caught.value.body) == (500, b"oops")
        assert caught.value.headers == ((b"content-type", b"text/plain"),)
        assert await state(controller, registry) == {bad.address: (0, "")}


async def test_lease_of_a_long_request_is_renewed(store: Store, replica: Open, registry: Registry) -> None:
    controller = replica(lease_time=60.0)
    assert controller.bookings._renew_after <= 60.0 / 2
    controller.bookings._renew_after = 0.01
    parts = asyncio.Semaphore(1)

    async def slow(_worker: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(3):
            await parts.acquire()
            writer.write(b"a\0")

    async def lease_ends_at() -> float:
        [(_, at)] = await store.client.zrange(keys.leases(store.namespace), 0, -1, withscores=True)
        return float(at)

    async def renewed_after(before: float) -> bool:
        return await lease_ends_at() > before

    async with bad_worker(worker_generate_stream=slow, count_token=slow) as healthy:
        await registry.register(worker(healthy.address))
        for request in (controller.forwarder.stream("m", b"{}"), controller.forwarder.call("m", "/count_token", b"{}")):
            response = (await request).value
            async for _ in response.pieces():
                before = await lease_ends_at()
                await wait_until(partial(renewed_after, before), "the lease is renewed")
                parts.release()
            response.close()
            assert await state(controller, registry) == {healthy.address: (0, "")}
            assert controller.bookings._renewals == {}


@pytest.mark.parametrize("tries", [1, 2, 3])
async def test_request_is_tried_on_at_most_the_set_number_of_workers(
    replica: Open, registry: Registry, tries: int
) -> None:
    """A request that kills each worker before its response begins must not kill all workers."""
    controller = replica(**({} if tries == 2 else {"forward_tries": tries}))
    async with bad_worker(worker_generate_stream=breaks_off, count_token=breaks_off) as bad:
        for i, name in enumerate([bad.address, *(f"http://127.0.0.1:{port}" for port in (9, 10, 11))]):
            await registry.register(worker(name, queue_length=i))
        with pytest.raises(WorkerError):
            await stream(controller)
        workers = await state(controller, registry)
        assert len(bad.requests) == 1
        assert Counter(failing for _, failing in workers.values()) == {"": 4 - tries, "request": tries}
        assert all(leased == 0 for leased, _ in workers.values())


async def test_only_worker_is_tried_once(controller: Replica, registry: Registry) -> None:
    await registry.register(worker(DEAD))
    with pytest.raises(WorkerError):
        await stream(controller)
    with pytest.raises(WorkerError):
        await call(controller)
    assert await state(controller, registry) == {DEAD: (0, "request")}


async def test_request_is_not_retried_during_shutdown(controller: Replica, registry: Registry) -> None:
    async with bad_worker(worker_generate_stream=hangs) as bad, bad_worker(worker_generate_stream=hangs) as other:
        await registry.register(worker(bad.address))
        await registry.register(worker(other.address, queue_length=5))
        waiting = asyncio.create_task(stream(controller))
        await wait_until(lambda: bad.requests, "the worker has the request")
        controller.end_streams()
        with pytest.raises(StreamBroken):
            await waiting
        assert other.requests == []


async def test_client_that_disconnects_during_a_dispatch_leaves_no_lease(
    controller: Replica, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.register(worker(DEAD))
    await registry.register(worker("http://127.0.0.1:10", queue_length=5))
    frames = streamed(controller)
    dispatched, resumed = asyncio.Event(), asyncio.Event()
    dispatch = controller.registry.dispatch_some

    async def slow_dispatch(*arguments: Any) -> object:
        chosen = await dispatch(*arguments)
        dispatched.set()
        await resumed.wait()
        return chosen

    monkeypatch.setattr(controller.registry, "dispatch_some", slow_dispatch)
    waiting = asyncio.ensure_future(anext(frames))
    await dispatched.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    resumed.set()

    async def nothing_is_leased() -> bool:
        return {leased for leased, _ in (await state(controller, registry)).values()} == {0}

    await wait_until(nothing_is_leased, "no lease is left")


async def test_response_is_passed_on_unchanged(controller: Replica, registry: Registry) -> None:
    async with bad_worker(
        anything=answers(b"\x00\xff", "418 I am a teapot", "Content-Type: image/png"),
        count_token=chunks(b"half", end=False),
    ) as healthy:
        await registry.register(worker(healthy.address))
        assert await call(controller, "/v1/anything") == (418, "image/png", b"\x00\xff")
        assert healthy.requests == [("anything", b'{"model": "m"}')]
        with pytest.raises(StreamBroken):
            await call(controller)
        assert await state(controller, registry) == {healthy.address: (0, "")}


async def test_call_ends_when_its_client_disconnects(controller: Replica, registry: Registry) -> None:
    async with bad_worker(count_token=hangs, model_details=chunks(*[b"a"] * 100, pause=0.05)) as healthy:
        await registry.register(worker(healthy.address))
        waiting = asyncio.create_task(call(controller))
        await wait_until(lambda: healthy.requests, "the worker has the request")
        waiting.cancel()
        await asyncio.wait([waiting])
        response = (await controller.forwarder.call("m", "/model_details", b"{}")).value
        assert await anext(response.pieces()) == b"a"
        response.close()
        response.close()
        connector = controller.workers._session._kept
        await wait_until(lambda: not connector._acquired, "no connection is in use")
        assert await state(controller, registry) == {healthy.address: (0, "")}


async def test_hop_list_is_extended_and_a_forwarding_loop_is_detected(controller: Replica, registry: Registry) -> None:
    async with bad_worker(worker_generate_stream=chunks(b"a\0")) as healthy:
        await registry.register(worker(healthy.address))
        await controller.snapshots._return_to_redis()  # reads the id of the cluster
        assert [frame async for frame in streamed(controller, hops="top,middle")] == [b"a\0"]
        own = controller.snapshots.cluster_id
        assert f"{HEADER}: top,middle,{own}\r\n".encode() in healthy.heads[0].lower()
        for request in (
            controller.forwarder.stream("m", b"{}", f"top,{own}"),
            controller.forwarder.call("m", "/x", b"{}", own),
        ):
            with pytest.raises(LoopDetected):
                await request
    with pytest.raises(NoWorker):
        await controller.forwarder.call("absent", "/x", b"{}")


async def test_frames_are_passed_on_byte_for_byte(registry: Registry, controller: Replica) -> None:
    """The pieces from the network end anywhere in a frame. tests/upstream/test_client.py has the small cases."""
    frames = [bytes([65 + i % 26]) * (1 + i * 7919 % 60_000) + b"\0" for i in range(300)]
    sent = b"".join(frames)
    pieces = [sent[i : i + 50_021] for i in range(0, len(sent), 50_021)]
    async with bad_worker(worker_generate_stream=chunks(*pieces)) as healthy:
        await registry.register(worker(healthy.address))
        received = [piece async for piece in streamed(controller)]
    assert all(piece.endswith(b"\0") for piece in received)
    assert b"".join(received) == sent


async def test_large_body_is_sent_whole_and_not_kept_in_memory(registry: Registry, controller: Replica) -> None:
    """Many responses may run for long at the same time, and their prompts may contain images."""
    body = b'{"model": "m", "image": "%s"}' % (b"x" * 3_000_000)
    before = sys.getrefcount(body)
    async with bad_worker(worker_generate_stream=chunks(b"a\0", b"b\0", pause=0.05)) as healthy:
        await registry.register(worker(healthy.address))
        forwarded = (await controller.forwarder.stream("m", body)).value
        try:
            assert sys.getrefcount(body) == before
            assert [piece async for piece in forwarded.pieces()] == [b"a\0", b"b\0"]
        finally:
            forwarded.close()
        assert healthy.requests == [("worker_generate_stream", body)]


async def test_slow_client_slows_the_worker_down(registry: Registry, controller: Replica) -> None:
    sent = 0

    async def fast(_worker: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(2_000):
            writer.write(b"x" * 65_535 + b"\0")
            await writer.drain()
            sent += 65_536

    async with bad_worker(worker_generate_stream=fast) as healthy:
        await registry.register(worker(healthy.address))
        frames = streamed(controller)
        await anext(frames)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 16 * 1024 * 1024, "of 128 MiB, only what the sockets hold was sent"
        await frames.aclose()
