"""A client gets the response even if it closes its sending half first. A client that disconnects is noticed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, bad_worker, hangs
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess

pytestmark = pytest.mark.system

A = "http://127.0.0.1:9"
DISPATCHED = b'{"address":"http://127.0.0.1:9"}'
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


def request(path: str = "/get_worker_address", version: str = "1.1") -> bytes:
    return f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Length: 13\r\n\r\n".encode() + b'{"model":"m"}'


@asynccontextmanager
async def connected(
    controller: ControllerProcess, data: bytes, *, eof: bool = True
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    writer.write(data)
    if eof:
        writer.write_eof()
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(controller: ControllerProcess, data: bytes) -> bytes:
    """Send data and EOF. Return everything received, without the interim responses that a busy machine may cause."""
    async with connected(controller, data) as (reader, _):
        return (await reader.read()).replace(INTERIM, b"")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_half_closed_client_gets_its_response(controller: ControllerProcess, version: str) -> None:
    controller.register(A)

    async def announces_the_close() -> bytes:
        response = await exchange(controller, request(version=version))
        return response if b"connection: close" in response else b""

    # On a busy machine, the controller may notice the EOF only after its response, or before the request to HTTP/1.0.
    response = await wait_until(announces_the_close, "a response is sent after the EOF was noticed")
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(DISPATCHED)
    assert (await exchange(controller, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert (await exchange(controller, request() + b"\r\n")).endswith(DISPATCHED), (
        "a line break after the request is ignored"
    )


async def test_pipelined_requests_are_answered_in_order(controller: ControllerProcess) -> None:
    controller.register(A)
    ping = b"GET /test_connection HTTP/1.1\r\nHost: x\r\n\r\n"
    response = await exchange(controller, (request() + ping) * 300)  # more than one read receives
    bodies = [part.partition(b"\r\n\r\n")[2] for part in response.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies == [DISPATCHED, b'"success"'] * 300


@pytest.mark.parametrize(
    "data",
    [b"", b"POST /get_worker", request()[:-1], b"\r\n", request() + b"POST /get_worker", request() + request()[:-1]],
    ids=["nothing", "head", "body", "line break", "second head", "second body"],
)
async def test_an_incomplete_request_closes_the_connection(controller: ControllerProcess, data: bytes) -> None:
    controller.register(A)
    body = (await exchange(controller, data)).partition(b"\r\n\r\n")[2]
    # The controller may answer a complete request before it notices the EOF after the incomplete one.
    assert body == b"" or (body == DISPATCHED and data.startswith(request()))


async def test_an_idle_connection_is_closed_after_eof(controller: ControllerProcess) -> None:
    controller.register(A)
    async with connected(controller, request(), eof=False) as (reader, writer):
        assert (await reader.readuntil(DISPATCHED)).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.write_eof()
        assert await reader.read() == b""


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate"])
async def test_a_slow_response_arrives_too(controller: ControllerProcess, path: str) -> None:
    """The controller sends interim responses meanwhile, which fail if the client has disconnected."""
    gate = asyncio.Event()

    async def respond_after_gate(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        await gate.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndone\0")

    async with bad_worker(worker_generate_stream=respond_after_gate, worker_generate=respond_after_gate) as worker:
        controller.register(worker.address, check=False)
        async with connected(controller, request(path)) as (reader, _):
            assert await reader.readexactly(2 * len(INTERIM)) == 2 * INTERIM
            gate.set()
            response = (await reader.read()).replace(INTERIM, b"")
            assert response.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"done\0" in response


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_disconnected_client_is_noticed(controller: ControllerProcess, version: str) -> None:
    """The client closes both halves at once, or one after the other. For HTTP/1.0, closing one half is enough."""
    async with bad_worker(rerank=hangs) as worker:
        controller.register(worker.address, check=False)
        for eof in (False, True):
            async with connected(controller, request("/v1/rerank", version), eof=False) as (reader, writer):
                await wait_until(lambda: worker.open == 1, "the request has reached the worker")
                if eof:
                    writer.write_eof()
                    assert await reader.read(len(INTERIM)) == (INTERIM if version == "1.1" else b"")
            await wait_until(lambda: worker.open == 0, "the request to the worker is cancelled")
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "no lease remains")
    assert "Traceback" not in controller.log


async def test_closing_the_sending_half_during_a_stream_counts_as_a_disconnect(controller: ControllerProcess) -> None:
    async def send_first_frame(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst\0")
        await asyncio.sleep(3600)

    async with bad_worker(worker_generate_stream=send_first_frame) as worker:
        controller.register(worker.address, check=False)
        async with connected(controller, request("/worker_generate_stream"), eof=False) as (reader, writer):
            await reader.readuntil(b"first\0")
            writer.write_eof()
            await wait_until(lambda: worker.open == 0, "the request to the worker is cancelled")


async def test_under_tls_eof_counts_as_a_disconnect(serve: Serve, work_dir: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(work_dir / "both.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    files = {"SSL_KEYFILE": str(work_dir / "both.pem"), "SSL_CERTFILE": str(work_dir / "both.pem")}
    controller = serve("--ssl", "--poll-interval", "0", ready=False, scheme="https", **files)

    async with bad_worker(rerank=hangs) as worker, httpx.AsyncClient(verify=context) as http:

        async def registered() -> bool:
            status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
            body = {"worker_name": worker.address, "check_heart_beat": False, "worker_status": status}
            try:
                return (await http.post(f"{controller.url}/register_worker", json=body)).status_code == 200
            except httpx.TransportError:
                return False

        await wait_until(registered, "the worker is registered")
        _, writer = await asyncio.open_connection("127.0.0.1", controller.port, ssl=context)
        writer.write(request("/v1/rerank"))
        await wait_until(lambda: worker.open == 1, "the request has reached the worker")
        writer.close()
        await wait_until(lambda: worker.open == 0, "the request to the worker is cancelled")
        await writer.wait_closed()
    assert "eof_received" not in controller.log
