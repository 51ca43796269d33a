"""Leases of forwarded streams, and what counts as a failure of their worker."""

import asyncio

import pytest

from controller.domain.errors import (
    NoWorker,
    StreamBroken,
    WorkerRefused,
    WorkerUnreachable,
)
from controller.store.registry import Registry
from tests.conftest import Open
from tests.support.metrics import has_metric
from tests.support.samples import worker
from tests.support.streams import streamed
from tests.support.waiting import wait_until
from tests.support.workers import answers, bad_worker, chunks, hangs


async def test_streams_are_counted_by_outcome_and_release_their_leases(replica: Open, registry: Registry) -> None:
    controller = replica()
    with pytest.raises(NoWorker):
        await anext(streamed(controller))
    async with bad_worker(worker_generate_stream=chunks(*[b"a\0"] * 50, pause=0.01)) as healthy:
        await registry.register(worker(healthy.address))
        abandoned = streamed(controller)
        await anext(abandoned)
        await abandoned.aclose()
        assert b"".join([frame async for frame in streamed(controller)]) == b"a\0" * 50
    with pytest.raises(WorkerUnreachable):
        await anext(streamed(controller))
    for outcome in ("no_worker", "client_gone", "complete", "broken"):
        assert has_metric(controller, f'streams_total{{outcome="{outcome}"}} 1.0')
    await wait_until(lambda: not controller.bookings._background, "the leases of the streams are released")
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length, known.failing) == (0, 0, "request"), (
        "every outcome releases the lease"
    )


async def test_refusal_or_shutdown_does_not_deprioritise_the_worker(replica: Open, registry: Registry) -> None:
    """Only an unreachable worker is deprioritised."""
    controller = replica()
    async with bad_worker(worker_generate_stream=answers(b"", "400 Bad Request")) as refusing:
        await registry.register(worker(refusing.address))
        with pytest.raises(WorkerRefused):
            await anext(streamed(controller))
    await registry.remove(refusing.address)
    async with bad_worker(worker_generate_stream=hangs) as busy:
        await registry.register(worker(busy.address))
        waiting = asyncio.create_task(anext(streamed(controller)))
        await wait_until(lambda: busy.requests, "the worker has the request")
        controller.end_streams()
        with pytest.raises(StreamBroken):
            await waiting
    await wait_until(lambda: not controller.bookings._background, "the leases of the streams are released")
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.failing) == (0, "")


async def test_stream_holds_a_lease_until_it_ends(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_generate_stream=chunks(*[b"a\0"] * 50, pause=0.01)) as healthy:
        await registry.register(worker(healthy.address))
        frames = streamed(controller)
        await anext(frames)
        [known] = (await registry.list_workers()).workers
        assert (known.leased, known.status.queue_length) == (1, 1)
        async for _ in frames:
            pass
    await wait_until(lambda: not controller.bookings._background, "the lease of the stream is released")
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length, known.failing) == (0, 0, "")
