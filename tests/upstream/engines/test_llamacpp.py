"""A real llama.cpp server, with requests that keep its slots busy."""

import asyncio
import contextlib
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from controller.domain.engine_status import EngineKind, EngineModel, EngineStatus, LearnedCapacity
from controller.domain.errors import WorkerUnreachable
from controller.upstream.client import WorkerClient
from controller.upstream.engines.detection import detect
from controller.upstream.engines.probe import EngineProbe
from tests.support.llamacpp import CONTEXT, NAME, LlamaServer, llama_server
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.smoke]

SLOTS = 2


@pytest.fixture
def server(tiny_model: Path, tmp_path: Path) -> Iterator[LlamaServer]:
    with llama_server(tmp_path, tiny_model, SLOTS) as started:
        yield started


@contextlib.asynccontextmanager
async def endless_requests(server: LlamaServer, number: int) -> AsyncIterator[None]:
    """Keep requests running until their clients disconnect. On their own, they would run for a minute or more."""
    body = b'{"prompt": "a", "max_tokens": 1000000, "ignore_eos": true, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    host, _, port = server.address.removeprefix("http://").rpartition(":")
    writers: list[asyncio.StreamWriter] = []
    readings: list[asyncio.Task[bytes]] = []
    try:
        for _ in range(number):
            reader, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            writer.write(head % len(body) + body)
            readings.append(asyncio.create_task(reader.read()))
        yield
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*readings, return_exceptions=True)


async def poll_until(probe: EngineProbe, reached: Callable[[EngineStatus], bool], description: str) -> EngineStatus:
    """Poll until a status is reached, and return it."""
    found: list[EngineStatus] = []

    async def poll() -> bool:
        found[:] = [await probe.poll()]
        return reached(found[0])

    await wait_until(poll, description)
    return found[0]


def has_load(running: int, waiting: int | None) -> Callable[[EngineStatus], bool]:
    return lambda status: (status.running, status.waiting) == (running, waiting)


async def test_server_is_detected_and_ready(server: LlamaServer, client: WorkerClient) -> None:
    kind = await detect(client, server.address)
    assert kind is EngineKind.LLAMACPP
    status = await EngineProbe(client, server.address, kind).poll()
    assert status == EngineStatus(
        models=(EngineModel(NAME, max_length=CONTEXT),), running=0, waiting=0, full=False, capacity=SLOTS, lag=0.0
    )
    assert status.ready
    assert status.queue_length == 0


async def test_running_and_waiting_requests_are_counted(server: LlamaServer, client: WorkerClient) -> None:
    probe = EngineProbe(client, server.address, EngineKind.LLAMACPP)
    learned = LearnedCapacity()
    async with endless_requests(server, 1):
        status = await poll_until(probe, has_load(1, 0), "one request runs")
        assert status.full is False
        learned.observe(status, now=0.0)
        assert learned.value is None
    async with endless_requests(server, SLOTS + 3):
        status = await poll_until(probe, has_load(SLOTS, 3), "both slots are busy and three requests wait")
        assert status.full is True
        assert status.queue_length == SLOTS + 3
        learned.observe(status, now=1.0)
        assert learned.value == status.capacity == SLOTS
    await poll_until(probe, has_load(0, 0), "the server is idle, because the clients have disconnected")


async def test_without_metrics_the_slots_tell_the_load(tiny_model: Path, tmp_path: Path, client: WorkerClient) -> None:
    with llama_server(tmp_path, tiny_model, SLOTS, endpoint_metrics=False) as server:
        probe = EngineProbe(client, server.address, EngineKind.LLAMACPP)
        assert has_load(0, 0)(await probe.poll())
        async with endless_requests(server, 1):
            await poll_until(probe, has_load(1, 0), "one slot is busy")
        async with endless_requests(server, SLOTS + 1):
            status = await poll_until(probe, has_load(SLOTS, None), "both slots are busy")
            assert status.queue_length is None  # whether another request waits is unknown, not 0
            assert status.full is None


async def test_without_metrics_and_slots_the_load_is_unknown(
    tiny_model: Path, tmp_path: Path, client: WorkerClient
) -> None:
    with llama_server(tmp_path, tiny_model, SLOTS, endpoint_metrics=False, endpoint_slots=False) as server:
        status = await EngineProbe(client, server.address, EngineKind.LLAMACPP).poll()
        assert status.ready
        assert (status.running, status.waiting, status.full, status.queue_length) == (None, None, None, None)
        assert status.capacity == SLOTS


async def test_key_is_required(tiny_model: Path, tmp_path: Path, client: WorkerClient) -> None:
    with llama_server(tmp_path, tiny_model, SLOTS, api_keys=["secret"]) as server:
        for key in ("", "another"):
            with pytest.raises(WorkerUnreachable, match=r"status 401: the engine requires a key"):
                await detect(client, server.address, key)
            status = await EngineProbe(client, server.address, EngineKind.LLAMACPP, key).poll()
            assert "status 401: the engine requires a key" in status.not_ready
            assert status.running is None
        kind = await detect(client, server.address, "secret")
        status = await EngineProbe(client, server.address, kind, "secret").poll()
        assert status.ready
        assert has_load(0, 0)(status)


async def test_sleeping_server_is_ready_because_a_request_wakes_it_up(
    tiny_model: Path, tmp_path: Path, client: WorkerClient
) -> None:
    with llama_server(tmp_path, tiny_model, SLOTS, sleep_idle_seconds=1) as server:
        probe = EngineProbe(client, server.address, EngineKind.LLAMACPP)
        await probe.poll()
        # The polls do not keep the server awake.
        await poll_until(probe, lambda _: server.get("/props")["is_sleeping"], "the server sleeps")
        status = await probe.poll()
        assert status.ready
        assert status.queue_length == 0
        assert server.get("/props")["is_sleeping"]  # nor do they wake it up
        body = b'{"prompt": "a", "max_tokens": 1}'
        request = urllib.request.Request(f"{server.address}/v1/completions", body, {"Content-Type": "application/json"})
        await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=60).close())


async def test_required_model_is_not_listed(server: LlamaServer, client: WorkerClient) -> None:
    status = await EngineProbe(client, server.address, EngineKind.LLAMACPP, models=["other", "another"]).poll()
    assert status.not_ready == "it lists none of the models another, other"
    assert (await EngineProbe(client, server.address, EngineKind.LLAMACPP, models=["other", NAME]).poll()).ready


async def test_killed_server_is_unreachable(server: LlamaServer, client: WorkerClient) -> None:
    probe = EngineProbe(client, server.address, EngineKind.LLAMACPP)
    await probe.poll()
    server.kill()
    with pytest.raises(WorkerUnreachable, match="cannot be reached"):
        await probe.poll()
    with pytest.raises(WorkerUnreachable, match="cannot be reached"):
        await detect(client, server.address)


async def test_hung_server_is_unreachable_until_it_goes_on(
    server: LlamaServer, client: WorkerClient, impatient_client: WorkerClient
) -> None:
    probe = EngineProbe(client, server.address, EngineKind.LLAMACPP)
    hurried = EngineProbe(impatient_client, server.address, EngineKind.LLAMACPP)
    before = await probe.poll()
    server.popen.send_signal(signal.SIGSTOP)
    for _ in range(3):
        with pytest.raises(WorkerUnreachable, match=r"did not respond within 0\.2 s"):
            await hurried.poll()
    with pytest.raises(WorkerUnreachable, match=r"did not respond within 0\.2 s"):
        await detect(impatient_client, server.address)
    server.popen.send_signal(signal.SIGCONT)
    assert await probe.poll() == before  # a timeout does not show that a route is missing
    # The hurried probe, too, still asks for the metrics, which alone tell the number of waiting requests.
    async with endless_requests(server, SLOTS + 1):
        await poll_until(probe, has_load(SLOTS, 1), "a request waits")
    await wait_until(lambda: answers_fully(hurried), "the server answers as before")


async def answers_fully(probe: EngineProbe) -> bool:
    with contextlib.suppress(WorkerUnreachable):
        return await probe.poll() == EngineStatus(
            models=(EngineModel(NAME, max_length=CONTEXT),), running=0, waiting=0, full=False, capacity=SLOTS
        )
    return False
