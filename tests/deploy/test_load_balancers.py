"""nginx, Caddy and HAProxy with the files of deploy/, while replicas are killed, stopped, or hang."""

import asyncio
import http.client
import itertools
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Figure
from tests.deploy.balancers import FRAMES, REGISTRATION, Balancer, Outcome, Replicas, installed, load, running
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, status
from tests.system.processes import answers as answers_json
from tests.system.processes import call

pytestmark = pytest.mark.timeout(300)

BALANCERS = installed()
_namespaces = itertools.count()
TERMINATED, KILLED, STOPPED = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP


@pytest.mark.parametrize("name", ["nginx", "haproxy", "caddy"])
def test_it_is_installed(name: str) -> None:
    if name not in {balancer.name for balancer in BALANCERS}:
        wanted = "caddy 2.11.2 or later" if name == "caddy" else name
        pytest.skip(f"NOT TESTED, deploy/{name}: {wanted} is not on PATH")


@pytest.fixture(scope="module")
def directory(short_dir: Path) -> Path:
    folder = short_dir / "balancers"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def started(directory: Path, embedded_url: str) -> Iterator[Replicas]:
    namespace = f"balancers-{next(_namespaces)}"
    replicas = Replicas(directory, "--redis-url", embedded_url, "--namespace", namespace, "--poll-interval", "0")
    yield replicas
    replicas.close()


@pytest.fixture
async def replicas(started: Replicas) -> AsyncIterator[Replicas]:
    """Three replicas that are ready."""
    await started.ready()
    yield started
    await started.ready()


@pytest.fixture(scope="module", params=BALANCERS, ids=lambda balancer: balancer.name)
def balancer(request: pytest.FixtureRequest) -> Balancer:
    chosen: Balancer = request.param
    return chosen


@pytest.fixture
async def url(balancer: Balancer, replicas: Replicas, directory: Path) -> AsyncIterator[str]:
    """The balancer in front of the replicas."""
    with running(balancer, directory, replicas.ports) as url:
        await wait_until(lambda: answers_json(f"{url}/readyz", "GET"), f"{balancer.name} answers")
        yield url


class Gated:
    """A stream that sends a frame for each `more`. `askers` are the ports of the connections that asked for it."""

    def __init__(self) -> None:
        self.askers: list[int] = []
        self.more = asyncio.Semaphore(0)
        self.left = asyncio.Event()

    async def __call__(self, _: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        self.askers.append(writer.get_extra_info("peername")[1])
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for frame in FRAMES:
                await self.more.acquire()
                writer.write(b"%x\r\n%s\0\r\n" % (len(frame) + 1, frame))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self.left.set()


def register(url: str, worker: BadWorker) -> None:
    told = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    body = {"worker_name": worker.address, "check_heart_beat": False, "worker_status": told}
    assert call(f"{url}/register_worker", body) is None


@pytest.fixture
async def gated(url: str) -> AsyncIterator[Gated]:
    """The stream of the only worker of a model."""
    stream = Gated()
    async with bad_worker(worker_generate_stream=stream) as worker:
        await asyncio.to_thread(register, url, worker)
        yield stream
        await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


async def frames(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the frames of a stream as they come."""
    kept = b""
    async for part in response.aiter_raw():
        *complete, kept = (kept + part).split(b"\0")
        for frame in complete:
            yield frame
    assert kept == b""


async def test_frames_come_one_by_one(url: str, gated: Gated) -> None:
    """The worker sends a frame only after the client has received the previous one."""
    got = []
    gated.more.release()
    async with (
        httpx.AsyncClient(timeout=120) as http,
        http.stream("POST", f"{url}/worker_generate_stream", json={"model": "m"}) as response,
    ):
        async for frame in frames(response):
            got.append(frame)
            gated.more.release()
    assert got == FRAMES


async def test_a_stream_ends_whole_while_its_replica_stops(url: str, gated: Gated, replicas: Replicas) -> None:
    gated.more.release()
    async with (
        httpx.AsyncClient(timeout=60.0) as http,
        http.stream("POST", f"{url}/worker_generate_stream", json={"model": "m"}) as response,
    ):
        coming = frames(response)
        got = [await anext(coming)]
        holder = replicas.holder(gated.askers[0])
        replicas.signal(holder, TERMINATED)
        await wait_until(lambda: not replicas.listens(holder), "the replica has closed its port")
        for _ in FRAMES:
            gated.more.release()
        got += [frame async for frame in coming]
    assert got == FRAMES
    assert await replicas.ended(holder) == 0


async def test_a_client_that_goes_ends_its_request_at_the_worker(url: str, gated: Gated) -> None:
    gated.more.release()
    async with (
        httpx.AsyncClient(timeout=120) as http,
        http.stream("POST", f"{url}/worker_generate_stream", json={"model": "m"}) as response,
    ):
        assert await anext(frames(response)) == FRAMES[0]
    await asyncio.wait_for(gated.left.wait(), 120.0)


async def test_a_large_body_passes(url: str) -> None:
    body = json.dumps({"model": "m", "prompt": "x" * 20 * 1024 * 1024}).encode()
    async with (
        bad_worker(worker_generate=answers(b'"got it"')) as worker,
        httpx.AsyncClient(timeout=60.0) as http,
    ):
        await asyncio.to_thread(register, url, worker)
        response = await http.post(f"{url}/worker_generate", content=body)
        assert response.json() == "got it"
        [(_, arrived)] = worker.requests
        assert arrived == body
        await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


@pytest.mark.parametrize(
    "paths",
    [
        ["/worker_generate_stream", "/x/../get_worker_address", "/worker_generate"],
        ["/GET_WORKER_ADDRESS", "/a/list_models"],
    ],
    ids=["worker routes", "nearly our own"],
)
async def test_what_was_forwarded_is_never_sent_twice(url: str, replicas: Replicas, paths: list[str]) -> None:
    """A replica dies while the worker has the request, then another one. A third is left."""
    askers: list[int] = []

    async def holds(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        askers.append(writer.get_extra_info("peername")[1])
        await asyncio.Event().wait()

    names = ("worker_generate_stream", "worker_generate", "GET_WORKER_ADDRESS", "get_worker_address", "list_models")
    async with bad_worker(**dict.fromkeys(names, holds)) as worker:
        await asyncio.to_thread(register, url, worker)
        for path in paths:
            askers.clear()
            asking = asyncio.create_task(asyncio.to_thread(status_of, url, path))
            await wait_until(lambda: askers or asking.done(), "the request is at the worker, or has ended")  # noqa: B023
            if asking.done():  # the path with dots: nginx removes them, and the controller rejects them
                assert await asking in (200, 404), path
                assert askers == [], path
            else:
                replicas.signal(replicas.holder(askers[0]), KILLED)
                assert await asking != 200, path
                assert len(askers) == 1, path
        await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


def status_of(url: str, path: str) -> int:
    """Return the status of the answer to a POST on this path; 0 if there is none."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60.0)
    try:
        connection.request("POST", path, b'{"model": "m"}', {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            response.read()
            return response.status
    except (http.client.HTTPException, ConnectionError):
        return 0
    finally:
        connection.close()


async def test_a_registration_whose_replica_dies_is_sent_again(
    url: str, balancer: Balancer, replicas: Replicas
) -> None:
    needs_retries(balancer)
    askers: list[int] = []

    async def second_time(worker: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        askers.append(writer.get_extra_info("peername")[1])
        await (asyncio.Event().wait() if len(askers) == 1 else status("m")(worker, writer, body))

    async with bad_worker(worker_get_status=second_time) as worker:
        body = {"worker_name": worker.address, "check_heart_beat": False, "worker_status": None}
        asking = asyncio.create_task(asyncio.to_thread(call, f"{url}/register_worker", body, timeout=60.0))
        await wait_until(lambda: askers, "a replica asks the worker for its status")
        replicas.signal(replicas.holder(askers[0]), KILLED)
        assert await asking is None
        assert len(askers) == 2
        await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


def needs_retries(balancer: Balancer) -> None:
    if not balancer.sends_again:
        pytest.skip(f"{balancer.name} cannot send a body twice: see docs/guides/load-balancers.md")


async def test_replicas_leave_and_return_under_load(
    url: str, balancer: Balancer, replicas: Replicas, figure: Figure
) -> None:
    """One replica stops, one is killed, one hangs. All requests succeed, but streams may break with the last two."""
    signals = [TERMINATED, KILLED, STOPPED] if balancer.sends_again else [TERMINATED] * 3
    async with bad_worker(worker_generate_stream=answers(b"".join(frame + b"\0" for frame in FRAMES))) as worker:
        await asyncio.to_thread(register, url, worker)
        await asyncio.to_thread(call, f"{url}/register_worker", REGISTRATION)
        async with load(url) as seen:
            await go_on(seen)
            for number, what in enumerate(signals):
                replicas.signal(number, what)
                if what != STOPPED:
                    await replicas.ended(number)
                await go_on(seen)
                await replicas.ready()
                await go_on(seen)
                assert failed(seen, balancer, what) == {}
        for name in (worker.address, REGISTRATION["worker_name"]):
            await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": name})
    figure(f"{balancer.name}, {', '.join(what.name for what in signals)} to one replica each", seen)
    assert failed(seen, balancer, signals[-1]) == {}


def failed(seen: Outcome, balancer: Balancer, what: signal.Signals) -> dict[str, list[str]]:
    """Return the requests that should not have failed up to now, and forget the streams that may have."""
    if what != TERMINATED or not balancer.checks_actively:  # nginx may connect just before a replica closes its port
        seen.failed.pop("streams", None)
    return seen.failed


async def go_on(seen: Outcome) -> None:
    before = seen.done["dispatches"]
    await wait_until(lambda: seen.done["dispatches"] > before + 50, "dispatches go on")
