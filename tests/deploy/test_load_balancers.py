"""nginx, Caddy and HAProxy with the files of deploy/, while replicas stop, are killed, or hang."""

import asyncio
import http.client
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from controller.web.asgi.endpoint import ForwardEndpoint
from controller.web.routes.table import ROUTES
from tests.conftest import Figure
from tests.deploy.balancers import FRAMES, REGISTRATION, Balancer, Outcome, Replicas, installed, load, running
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, status
from tests.system.processes import answers as answers_json
from tests.system.processes import call

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

BALANCERS = installed()
_namespaces = itertools.count()
FORWARDED = [route.path for route in ROUTES if route.endpoint is ForwardEndpoint]
LONGER_THAN_OWN_ROUTES = 3.0  # seconds. Balancers retry a request to the controller's own routes after 2 s
TERMINATED, KILLED, STOPPED = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP


@pytest.mark.parametrize("name", ["nginx", "haproxy", "caddy"])
def test_the_balancer_is_installed(name: str) -> None:
    """A balancer that is not installed is no failure. It is skipped, so that the summary shows what was not tested."""
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
    """Yield three replicas that are ready, and restart those that the test has ended."""
    await started.make_ready()
    yield started
    await started.make_ready()


@pytest.fixture(scope="module", params=BALANCERS, ids=lambda balancer: balancer.name)
def balancer(request: pytest.FixtureRequest) -> Balancer:
    chosen: Balancer = request.param
    return chosen


@pytest.fixture
async def url(balancer: Balancer, replicas: Replicas, directory: Path) -> AsyncIterator[str]:
    """Run the balancer in front of the replicas. Yield its URL."""
    with running(balancer, directory, replicas.ports) as url:
        await wait_until(lambda: answers_json(f"{url}/readyz", "GET"), f"{balancer.name} answers")
        yield url


class Gated:
    """A worker's stream that sends one frame per release of `more`.

    client_ports: the local ports of the connections that requested the stream.
    ended: set when the stream has ended or its client has disconnected.
    """

    def __init__(self) -> None:
        self.client_ports: list[int] = []
        self.more = asyncio.Semaphore(0)
        self.ended = asyncio.Event()

    async def __call__(self, _: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        self.client_ports.append(writer.get_extra_info("peername")[1])
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for frame in FRAMES:
                await self.more.acquire()
                writer.write(b"%x\r\n%s\0\r\n" % (len(frame) + 1, frame))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self.ended.set()


def register(url: str, worker: BadWorker) -> None:
    worker_status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    body = {"worker_name": worker.address, "check_heart_beat": False, "worker_status": worker_status}
    assert call(f"{url}/register_worker", body) is None


@pytest.fixture
async def gated(url: str) -> AsyncIterator[Gated]:
    """Yield the stream of the only worker of a model."""
    stream = Gated()
    async with bad_worker(worker_generate_stream=stream) as worker:
        await asyncio.to_thread(register, url, worker)
        yield stream
        await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


async def frames(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the frames of a stream as they arrive."""
    rest = b""
    async for part in response.aiter_raw():
        *complete, rest = (rest + part).split(b"\0")
        for frame in complete:
            yield frame
    assert rest == b""


async def test_frames_arrive_one_by_one(url: str, gated: Gated) -> None:
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


async def test_a_stream_is_completed_while_its_replica_stops(url: str, gated: Gated, replicas: Replicas) -> None:
    gated.more.release()
    async with (
        httpx.AsyncClient(timeout=60.0) as http,
        http.stream("POST", f"{url}/worker_generate_stream", json={"model": "m"}) as response,
    ):
        arriving = frames(response)
        got = [await anext(arriving)]
        serving = replicas.replica_of(gated.client_ports[0])
        replicas.send_signal(serving, TERMINATED)
        await wait_until(lambda: not replicas.listens(serving), "the replica has closed its port")
        for _ in FRAMES:
            gated.more.release()
        got += [frame async for frame in arriving]
    assert got == FRAMES
    assert await replicas.wait_for_end(serving) == 0


async def test_a_disconnected_client_ends_its_request_at_the_worker(url: str, gated: Gated) -> None:
    gated.more.release()
    async with (
        httpx.AsyncClient(timeout=120) as http,
        http.stream("POST", f"{url}/worker_generate_stream", json={"model": "m"}) as response,
    ):
        assert await anext(frames(response)) == FRAMES[0]
    await asyncio.wait_for(gated.ended.wait(), 120.0)


async def test_the_page_and_its_stream_arrive(url: str) -> None:
    """The browser shows a new worker, so no message may be held back."""
    async with httpx.AsyncClient(timeout=120) as client:
        page = (await client.get(url)).text
        [module] = re.findall(r'<link rel="modulepreload" href="(.+?)">', page)
        assert (await client.get(f"{url}/{module}")).status_code == 200
        headers = {"accept": "text/event-stream"}
        async with client.stream("GET", f"{url}/overview", headers=headers) as response, bad_worker() as worker:
            lines = response.aiter_lines()
            assert await anext(lines) == "event: state"
            await asyncio.to_thread(register, url, worker)
            async for line in lines:
                if f'"worker_name":"{worker.address}"' in line:
                    break
            else:
                pytest.fail("the stream ended without the worker")
            await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


async def test_a_large_body_is_forwarded(url: str) -> None:
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


async def test_slow_responses_of_all_forwarded_routes_arrive(url: str) -> None:
    async def respond_late(worker: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await asyncio.sleep(LONGER_THAN_OWN_ROUTES)
        await answers(b'{"text": "done", "error_code": 0}\0')(worker, writer, body)

    async with (
        bad_worker(**{path[1:]: respond_late for path in FORWARDED}) as worker,
        httpx.AsyncClient(timeout=60.0) as http,
    ):
        await asyncio.to_thread(register, url, worker)
        responses = await asyncio.gather(*(http.post(url + path, json={"model": "m"}) for path in FORWARDED))
        assert [response.content for response in responses] == [b'{"text": "done", "error_code": 0}\0'] * len(FORWARDED)
        assert len(worker.requests) == len(FORWARDED)
        await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


@pytest.mark.parametrize(
    "paths",
    [
        ["/worker_generate_stream", "/x/../get_worker_address", "/worker_generate"],
        ["/worker_get_embeddings", "/count_token"],
        ["/model_details", "/worker_get_conv_template"],
        ["/GET_WORKER_ADDRESS", "/a/list_models"],
    ],
    ids=["generation", "embeddings and tokens", "look-ups", "similar to own routes"],
)
async def test_a_forwarded_request_is_never_sent_twice(url: str, replicas: Replicas, paths: list[str]) -> None:
    """A replica is killed while the worker has the request. The balancer must not retry on another replica."""
    client_ports: list[int] = []

    async def hang_after_recording(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        client_ports.append(writer.get_extra_info("peername")[1])
        await asyncio.Event().wait()

    names = (*(path[1:] for path in FORWARDED), "GET_WORKER_ADDRESS", "get_worker_address", "list_models")
    async with bad_worker(**dict.fromkeys(names, hang_after_recording)) as worker:
        await asyncio.to_thread(register, url, worker)
        for path in paths:
            client_ports.clear()
            sending = asyncio.create_task(asyncio.to_thread(status_of, url, path))
            await wait_until(lambda: client_ports or sending.done(), "the request has reached the worker or has ended")  # noqa: B023
            if sending.done():  # a path with dots, which nginx removes and the controller rejects
                assert await sending in (200, 404), path
                assert client_ports == [], path
            else:
                serving = replicas.replica_of(client_ports[0])
                replicas.send_signal(serving, KILLED)
                assert await sending != 200, path
                await replicas.wait_for_end(serving)
                assert len(client_ports) == 1, path
        await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


def status_of(url: str, path: str) -> int:
    """Return the status of the response to a POST, or 0 without a response."""
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


async def test_a_registration_is_retried_if_its_replica_dies(url: str, balancer: Balancer, replicas: Replicas) -> None:
    skip_without_retries(balancer)
    client_ports: list[int] = []

    async def hang_at_first(worker: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        client_ports.append(writer.get_extra_info("peername")[1])
        await (asyncio.Event().wait() if len(client_ports) == 1 else status("m")(worker, writer, body))

    async with bad_worker(worker_get_status=hang_at_first) as worker:
        body = {"worker_name": worker.address, "check_heart_beat": False, "worker_status": None}
        sending = asyncio.create_task(asyncio.to_thread(call, f"{url}/register_worker", body, timeout=60.0))
        await wait_until(lambda: client_ports, "a replica polls the status of the worker")
        replicas.send_signal(replicas.replica_of(client_ports[0]), KILLED)
        assert await sending is None
        assert len(client_ports) == 2
        await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": worker.address})


def skip_without_retries(balancer: Balancer) -> None:
    if not balancer.retries:
        pytest.skip(f"{balancer.name} cannot retry requests with a body, see docs/guides/load-balancers.md")


@pytest.mark.slow
async def test_replicas_end_and_restart_under_load(
    url: str, balancer: Balancer, replicas: Replicas, figure: Figure
) -> None:
    """One replica stops, one is killed, and one hangs. No request fails, except streams in the last two cases."""
    signals = [TERMINATED, KILLED, STOPPED] if balancer.retries else [TERMINATED] * 3
    async with bad_worker(worker_generate_stream=answers(b"".join(frame + b"\0" for frame in FRAMES))) as worker:
        await asyncio.to_thread(register, url, worker)
        await asyncio.to_thread(call, f"{url}/register_worker", REGISTRATION)
        async with load(url) as outcome:
            await dispatches_continue(outcome)
            for number, sent in enumerate(signals):
                replicas.send_signal(number, sent)
                if sent != STOPPED:
                    await replicas.wait_for_end(number)
                await dispatches_continue(outcome)
                await replicas.make_ready()
                await dispatches_continue(outcome)
                assert failed(outcome, balancer, sent) == {}
        for name in (worker.address, REGISTRATION["worker_name"]):
            await asyncio.to_thread(call, f"{url}/remove_worker", {"worker_name": name})
    figure(f"{balancer.name}, {', '.join(sent.name for sent in signals)} to one replica each", outcome)
    assert failed(outcome, balancer, signals[-1]) == {}


def failed(outcome: Outcome, balancer: Balancer, sent: signal.Signals) -> dict[str, list[str]]:
    """Return the unexpected failures so far. Discards the failures of streams that may break."""
    if sent != TERMINATED or not balancer.polls_readiness:  # nginx may connect just before the replica closes its port
        outcome.failed.pop("streams", None)
    return outcome.failed


async def dispatches_continue(outcome: Outcome) -> None:
    before = outcome.done["dispatches"]
    await wait_until(lambda: outcome.done["dispatches"] > before + 50, "dispatches continue")
