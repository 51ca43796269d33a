"""Requests are forwarded to workers: to another when one fails before it has begun, and to none that was silent."""

import asyncio
import sys
from collections import Counter

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


async def whole(controller: Replica) -> bytes:
    return b"".join([frame async for frame in streamed(controller)])


async def called(controller: Replica, path: str = "/count_token") -> tuple[int, str, bytes]:
    answer = (await controller.forwarder.call("m", path, b'{"model": "m"}')).value
    try:
        content_type = dict(answer.headers).get(b"content-type", b"").decode()
        return answer.status, content_type, b"".join([piece async for piece in answer.pieces()])
    finally:
        answer.close()


async def state(controller: Replica, registry: Registry) -> dict[str, tuple[int, str]]:
    """Leases and failures of all workers, when all that has ended is told."""
    await wait_until(lambda: not controller.forwarder._background, "the ends are told")
    return {known.name: (known.leased, known.failing) for known in (await registry.list_workers()).workers}


async def test_who_cannot_be_reached_is_not_the_last_to_be_tried(controller: Replica, registry: Registry) -> None:
    await registry.register(worker(DEAD))
    async with bad_worker(worker_generate_stream=chunks(b"a\0b\0"), count_token=answers(b'{"count": 3}')) as living:
        await registry.register(worker(living.address, queue_length=5))
        assert await whole(controller) == b"a\0b\0"
        assert await state(controller, registry) == {DEAD: (0, "request"), living.address: (0, "")}
        await registry.register(worker(DEAD))
        assert await called(controller) == (200, "", b'{"count": 3}')
        assert await state(controller, registry) == {DEAD: (0, "request"), living.address: (0, "")}


async def breaks_off(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("behaviour", [breaks_off, chunks(end=False)])
async def test_who_breaks_off_before_it_has_begun_is_not_the_last(
    controller: Replica, registry: Registry, behaviour: Behaviour
) -> None:
    async with (
        bad_worker(worker_generate_stream=behaviour) as broken,
        bad_worker(worker_generate_stream=chunks(b"a\0")) as living,
    ):
        await registry.register(worker(broken.address))
        await registry.register(worker(living.address, queue_length=5))
        assert await whole(controller) == b"a\0"
        assert await state(controller, registry) == {broken.address: (0, "request"), living.address: (0, "")}


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (chunks(b"a\0", end=False), StreamBroken),
        (hangs, WorkerSilent),
        (answers(b"", "400 Bad Request"), WorkerRefused),
        (answers(b"", "307 Moved", "Location: /"), WorkerRefused),
    ],
)
async def test_nobody_else_is_tried_when_a_frame_has_gone_out_or_the_worker_may_be_at_work(
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
            await whole(controller)
        assert other.requests == []
        assert await state(controller, registry) == {bad.address: (0, ""), other.address: (0, "")}


async def test_who_is_at_fault_is_not_the_last_to_be_tried(controller: Replica, registry: Registry) -> None:
    """But is put behind nobody: the request may be what is wrong."""
    faulty = answers(b"oops", "500 Internal Server Error", "Content-Type: text/plain")
    async with (
        bad_worker(worker_generate_stream=faulty, count_token=faulty) as bad,
        bad_worker(worker_generate_stream=chunks(b"a\0"), count_token=answers(b"{}")) as good,
    ):
        await registry.register(worker(bad.address))
        await registry.register(worker(good.address, queue_length=8))
        assert await whole(controller) == b"a\0"
        assert await called(controller) == (200, "", b"{}")
        assert len(bad.requests) == len(good.requests) == 2
        assert await state(controller, registry) == {bad.address: (0, ""), good.address: (0, "")}
        await registry.remove(good.address)
        with pytest.raises(WorkerRefused, match="answered 500"):
            await whole(controller)
        with pytest.raises(WorkerRefused) as caught:
            await called(controller)
        assert (caught.value.status, caught.value.body) == (500, b"oops")
        assert caught.value.headers == ((b"content-type", b"text/plain"),)
        assert await state(controller, registry) == {bad.address: (0, "")}


async def test_a_request_that_takes_longer_than_a_lease_stays_booked(
    store: Store, replica: Open, registry: Registry
) -> None:
    controller = replica(lease_time=60.0)
    assert controller.forwarder._renew_after <= 60.0 / 2
    controller.forwarder._renew_after = 0.01
    parts = asyncio.Semaphore(1)

    async def slow(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(3):
            await parts.acquire()
            writer.write(b"a\0")

    async def ends_at() -> float:
        [(_, at)] = await store.aside.zrange(keys.leases(store.namespace), 0, -1, withscores=True)
        return float(at)

    async def renewed_after(before: float) -> bool:
        return await ends_at() > before

    async with bad_worker(worker_generate_stream=slow, count_token=slow) as living:
        await registry.register(worker(living.address))
        for begins in (controller.forwarder.stream("m", b"{}"), controller.forwarder.call("m", "/count_token", b"{}")):
            answer = (await begins).value
            async for _ in answer.pieces():
                before = await ends_at()
                await wait_until(lambda before=before: renewed_after(before), "the lease is renewed")
                parts.release()
            answer.close()
            assert await state(controller, registry) == {living.address: (0, "")}
            assert controller.forwarder._renewals == {}


@pytest.mark.parametrize("tries", [1, 2, 3])
async def test_a_request_is_tried_on_so_many_workers(replica: Open, registry: Registry, tries: int) -> None:
    """One that kills its worker before the answer begins must not kill them all."""
    controller = replica(**({} if tries == 2 else {"forward_tries": tries}))
    async with bad_worker(worker_generate_stream=breaks_off, count_token=breaks_off) as bad:
        for i, name in enumerate([bad.address, *(f"http://127.0.0.1:{port}" for port in (9, 10, 11))]):
            await registry.register(worker(name, queue_length=i))
        with pytest.raises(WorkerError):
            await whole(controller)
        told = await state(controller, registry)
        assert len(bad.requests) == 1
        assert Counter(failing for _, failing in told.values()) == {"": 4 - tries, "request": tries}
        assert all(leased == 0 for leased, _ in told.values())


async def test_the_only_one_is_tried_once(controller: Replica, registry: Registry) -> None:
    await registry.register(worker(DEAD))
    with pytest.raises(WorkerError):
        await whole(controller)
    with pytest.raises(WorkerError):
        await called(controller)
    assert await state(controller, registry) == {DEAD: (0, "request")}


async def test_a_replica_that_ends_tries_nobody_else(controller: Replica, registry: Registry) -> None:
    async with bad_worker(worker_generate_stream=hangs) as bad, bad_worker(worker_generate_stream=hangs) as other:
        await registry.register(worker(bad.address))
        await registry.register(worker(other.address, queue_length=5))
        waiting = asyncio.create_task(whole(controller))
        await wait_until(lambda: bad.requests, "it is asked")
        controller.end_streams()
        with pytest.raises(StreamBroken):
            await waiting
        assert other.requests == []


async def test_a_client_that_goes_away_while_another_worker_is_chosen_leaves_no_lease(
    controller: Replica, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.register(worker(DEAD))
    await registry.register(worker("http://127.0.0.1:10", queue_length=5))
    frames = streamed(controller)
    chooses, goes_on = asyncio.Event(), asyncio.Event()
    dispatch = controller.dispatcher.dispatch_with_lease

    async def slowly(model: str, lease_time: float | None = None) -> object:
        chosen = await dispatch(model, lease_time)
        chooses.set()
        await goes_on.wait()
        return chosen

    monkeypatch.setattr(controller.dispatcher, "dispatch_with_lease", slowly)
    waiting = asyncio.ensure_future(anext(frames))
    await chooses.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    goes_on.set()

    async def nothing_is_leased() -> bool:
        return {leased for leased, _ in (await state(controller, registry)).values()} == {0}

    await wait_until(nothing_is_leased, "no lease is left")


async def test_an_answer_is_passed_on_as_it_is(controller: Replica, registry: Registry) -> None:
    async with bad_worker(
        anything=answers(b"\x00\xff", "418 I am a teapot", "Content-Type: image/png"),
        count_token=chunks(b"half", end=False),
    ) as living:
        await registry.register(worker(living.address))
        assert await called(controller, "/v1/anything") == (418, "image/png", b"\x00\xff")
        assert living.requests == [("anything", b'{"model": "m"}')]
        with pytest.raises(StreamBroken):
            await called(controller)
        assert await state(controller, registry) == {living.address: (0, "")}


async def test_a_call_whose_client_goes_away_is_given_up(controller: Replica, registry: Registry) -> None:
    async with bad_worker(count_token=hangs, model_details=chunks(*[b"a"] * 100, pause=0.05)) as living:
        await registry.register(worker(living.address))
        waiting = asyncio.create_task(called(controller))
        await wait_until(lambda: living.requests, "it is asked")
        waiting.cancel()
        await asyncio.wait([waiting])
        answer = (await controller.forwarder.call("m", "/model_details", b"{}")).value
        assert await anext(answer.pieces()) == b"a"
        answer.close()
        answer.close()
        connector = controller.workers._session._kept.connector
        assert connector is not None
        await wait_until(lambda: not connector._acquired, "no connection is in use")
        assert await state(controller, registry) == {living.address: (0, "")}


async def test_who_was_passed_is_told_and_nobody_twice(controller: Replica, registry: Registry) -> None:
    async with bad_worker(worker_generate_stream=chunks(b"a\0")) as living:
        await registry.register(worker(living.address))
        await controller.snapshots._return_to_redis()  # and it knows how the cluster is called
        assert [frame async for frame in streamed(controller, way="top,middle")] == [b"a\0"]
        own = controller.snapshots.cluster_id
        assert f"{HEADER}: top,middle,{own}\r\n".encode() in living.heads[0].lower()
        for call in (
            controller.forwarder.stream("m", b"{}", f"top,{own}"),
            controller.forwarder.call("m", "/x", b"{}", own),
        ):
            with pytest.raises(LoopDetected):
                await call
    with pytest.raises(NoWorker):
        await controller.forwarder.call("absent", "/x", b"{}")


async def test_frames_come_through_byte_for_byte(registry: Registry, controller: Replica) -> None:
    """However the network splits them; a worker client's own test has the small cases."""
    frames = [bytes([65 + i % 26]) * (1 + i * 7919 % 60_000) + b"\0" for i in range(300)]
    sent = b"".join(frames)
    pieces = [sent[i : i + 50_021] for i in range(0, len(sent), 50_021)]
    async with bad_worker(worker_generate_stream=chunks(*pieces)) as living:
        await registry.register(worker(living.address))
        seen = [piece async for piece in streamed(controller)]
    assert all(piece.endswith(b"\0") for piece in seen)
    assert b"".join(seen) == sent


async def test_a_large_body_goes_out_whole_and_is_not_kept(registry: Registry, controller: Replica) -> None:
    """An answer may take long, and many go on at once; their prompts have images in them."""
    body = b'{"model": "m", "image": "%s"}' % (b"x" * 3_000_000)
    before = sys.getrefcount(body)
    async with bad_worker(worker_generate_stream=chunks(b"a\0", b"b\0", pause=0.05)) as living:
        await registry.register(worker(living.address))
        forwarded = (await controller.forwarder.stream("m", body)).value
        try:
            assert sys.getrefcount(body) == before
            assert [piece async for piece in forwarded.pieces()] == [b"a\0", b"b\0"]
        finally:
            forwarded.close()
        assert living.requests == [("worker_generate_stream", body)]


async def test_a_slow_client_slows_the_worker(registry: Registry, controller: Replica) -> None:
    sent = 0

    async def fast(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(2_000):
            writer.write(b"x" * 65_535 + b"\0")
            await writer.drain()
            sent += 65_536

    async with bad_worker(worker_generate_stream=fast) as living:
        await registry.register(worker(living.address))
        frames = streamed(controller)
        await anext(frames)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 16 * 1024 * 1024, "of 128 MiB: what the sockets hold"
        await frames.aclose()
