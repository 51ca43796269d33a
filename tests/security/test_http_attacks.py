"""Attacks on the HTTP parser: ambiguous lengths, invalid chunks, hop-by-hop headers, huge heads and bodies."""

import asyncio
import contextlib
import json

import pytest

from tests.security.connections import DISPATCH, MIB, POST, STREAM, Serve, clients, connect, peak_memory
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, reset
from tests.system.processes import ControllerProcess
from tests.system.test_serve import A

pytestmark = pytest.mark.system

_REMOVAL = b'{"worker_name":"%s"}' % A.encode()
SMUGGLED = b"POST /remove_worker HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(_REMOVAL), _REMOVAL)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def length(number: int) -> bytes:
    return b"Content-Length: %d\r\n" % number


# Each is read differently by two common parsers. `SMUGGLED` must never be taken for a request of its own.
AMBIGUOUS = {
    "length, then chunked": length(4) + CHUNKED + b"\r\n0\r\n\r\n",
    "chunked, then length": CHUNKED + length(4) + b"\r\n0\r\n\r\n",
    "two lengths": length(0) + length(len(SMUGGLED)) + b"\r\n",
    "two equal lengths": length(0) + length(0) + b"\r\n",
    "a list of lengths": b"Content-Length: 0, 0\r\n\r\n",
    "a signed length": b"Content-Length: +0\r\n\r\n",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "a length in hexadecimal": b"Content-Length: 0x0\r\n\r\n",
    "an overflowing length": b"Content-Length: 18446744073709551616\r\n\r\n",
    "a space before the colon": b"Content-Length : 0\r\n\r\n",
    "chunked with a space before the colon": b"Transfer-Encoding : chunked\r\n" + length(0) + b"\r\n",
    "a folded header": b"Transfer-Encoding:\r\n chunked\r\n" + length(0) + b"\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n" + length(0) + b"\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n" + length(0) + b"\r\n",
    "chunked is not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two codings, one of them with a length": CHUNKED + b"Transfer-Encoding: identity\r\n" + length(0) + b"\r\n",
    "a line feed alone in a header": b"X: a\nContent-Length: 0\r\n\r\n",
    "a carriage return alone in a header": b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
    "NUL in a header": b"X: a\0\r\n\r\n",
    "NUL in the name of a header": b"Content-Length\0: 0\r\n\r\n",
    "a negative chunk": CHUNKED + b"\r\n-1\r\n\r\n0\r\n\r\n",
    "a chunk with 0x": CHUNKED + b"\r\n0x1\r\na\r\n0\r\n\r\n",
    "an overflowing chunk": CHUNKED + b"\r\n10000000000000000\r\n",
    "a chunk without its end": CHUNKED + b"\r\n1\r\nab\r\n0\r\n\r\n",
    "a chunk that ends with a line feed": CHUNKED + b"\r\n1\na\r\n0\r\n\r\n",
    "an extension with a line feed": CHUNKED + b"\r\n1;a\nb\r\na\r\n0\r\n\r\n",
}


async def test_ambiguous_requests_get_a_400_and_smuggle_nothing(controller: ControllerProcess) -> None:
    controller.register(A)
    wrong = {}
    for name, rest in AMBIGUOUS.items():
        async with connect(controller) as connection:
            connection.send(POST + rest + SMUGGLED)
            received = await connection.rest(10)
            statuses = [line.split(b" ")[1] for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        if statuses != [b"400"] or controller.names() != [A]:
            wrong[name] = (statuses, controller.names())
            controller.register(A)
    assert wrong == {}
    assert "Traceback" not in controller.log


async def test_a_request_in_the_body_of_another_is_not_served(controller: ControllerProcess) -> None:
    controller.register(A)
    async with connect(controller) as connection:
        connection.send(POST + length(len(SMUGGLED)) + b"\r\n" + SMUGGLED + DISPATCH)
        assert (await connection.response())[0] == 400
        assert (await connection.response())[0] == 200
        connection.send(POST + CHUNKED + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) + DISPATCH)
        assert (await connection.response())[0] == 400
        assert (await connection.response())[0] == 200
    assert controller.names() == [A]


OFFERS = {
    "an unknown protocol": b"Connection: Upgrade\r\nUpgrade: foo\r\n",
    "websocket": b"Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n",
    "HTTP/2, as Java offers it": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAE\r\n",
}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("offer", OFFERS)
async def test_a_request_that_offers_an_upgrade_is_served_with_its_body(
    controller: ControllerProcess, offer: str, chunked: bool
) -> None:
    controller.register(A)
    body = b'{"model":"m"}' + b" " * 9_000 + SMUGGLED.replace(b"\r\n", b"  ")
    smuggling = b"\r\n" * 3_000 + SMUGGLED
    for sent, status in ((body[:9_013], 200), (smuggling, 400)):
        head = POST + OFFERS[offer] + (CHUNKED if chunked else length(len(sent))) + b"\r\n"
        part = b"%x\r\n%s\r\n0\r\n\r\n" % (len(sent), sent) if chunked else sent
        for cuts in ((0,), (len(head),), (len(head) - 1,), (len(head) + 6_000,), (20, len(head) + 40)):
            async with connect(controller) as connection:
                message = head + part + DISPATCH + DISPATCH
                for first, last in zip((0, *cuts), (*cuts, len(message)), strict=True):
                    connection.send(message[first:last])
                    await asyncio.sleep(0.02)
                statuses = [(await connection.response())[0] for _ in range(3)]
                assert statuses == [status, 200, 200], cuts
    assert controller.names() == [A]
    assert "Traceback" not in controller.log
    assert "WARNING" not in controller.log


async def test_many_offers_in_one_read_and_a_tunnel(controller: ControllerProcess) -> None:
    controller.register(A)
    offer = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n"
    async with connect(controller) as connection:
        connection.send(offer * 200)
        assert [(await connection.response())[0] for _ in range(200)] == [200] * 200
    async with connect(controller) as connection:
        connection.send(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + SMUGGLED)
        assert (await connection.response())[0] == 400
        assert await connection.rest() == b""
    assert controller.names() == [A]


async def test_a_body_that_was_refused_early_is_not_taken_for_a_request(controller: ControllerProcess) -> None:
    controller.register(A)
    bodies = SMUGGLED * (2 * MIB // len(SMUGGLED))
    async with connect(controller) as connection:
        connection.send(POST + length(len(bodies)) + b"\r\n" + bodies + DISPATCH)
        assert (await connection.response())[0] == 413
        assert (await connection.response())[0] == 200
    async with connect(controller) as connection:  # a path without a handler that reads the body
        connection.send(b"PUT /workers HTTP/1.1\r\nHost: x\r\n" + length(len(SMUGGLED)) + b"\r\n" + SMUGGLED + DISPATCH)
        assert (await connection.response())[0] == 405
        assert (await connection.response())[0] == 200
    assert controller.names() == [A]


async def test_pipelined_requests_are_answered_in_order_and_an_invalid_one_ends_the_connection(
    controller: ControllerProcess,
) -> None:
    controller.register(A)
    listing = b"POST /list_models HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    probe = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connect(controller) as connection:
        connection.send((DISPATCH + listing + probe) * 50)
        for _ in range(50):
            assert b"address" in (await connection.response())[2]
            assert b"models" in (await connection.response())[2]
            assert b"true" in (await connection.response())[2]
        connection.send(b"invalid\r\n\r\n" + SMUGGLED)
        assert await connection.error() == (400, "invalid_http")
    async with connect(controller) as connection:
        connection.send(DISPATCH * 50 + b"invalid\r\n\r\n" + SMUGGLED)
        assert (await connection.rest()).count(b"HTTP/1.1") <= 51
    assert controller.names() == [A]


HOSTILE_HEADERS = (
    b"Connection: close, X-Secret, Authorization\r\nX-Secret: 1\r\nTE: trailers\r\nTrailer: X\r\n"
    b"Proxy-Connection: close\r\nProxy-Authorization: Basic eDp5\r\nAuthorization: Bearer token\r\n"
    b"Cookie: a=b\r\nUpgrade: x\r\n"
    b"X-Forwarded-For: 1.2.3.4\r\nX-Worker: http://127.0.0.1:9\r\nX-Forwarded-Host: evil\r\nVia: 1.1 x\r\n"
    b"Host-Override: http://127.0.0.1:9\r\nExpect: 100-continue\r\n"
)


async def test_headers_of_a_client_do_not_reach_a_worker(controller: ControllerProcess) -> None:
    async with bad_worker(worker_generate=answers(b"{}")) as worker:
        await asyncio.to_thread(controller.register, worker.address)
        request = DISPATCH.replace(b"/get_worker_address", b"/worker_generate")
        async with connect(controller) as connection:
            connection.send(request.replace(b"Host: x\r\n", b"Host: x\r\n" + HOSTILE_HEADERS))
            received = await connection.rest()
            assert b" 200 " in received
        [head] = worker.heads
        names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}
        assert names <= {
            b"host", b"accept", b"accept-encoding", b"user-agent", b"content-type", b"content-length",
            b"x-controller-path", b"x-request-id",
        }  # fmt: skip


async def test_hop_by_hop_headers_of_a_worker_do_not_reach_a_client(controller: ControllerProcess) -> None:
    extra = (
        "X-Secret: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Trailer: X",
        "Upgrade: h2c",
        "X-Ok: 1",
    )

    async def answer(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        lines = ["HTTP/1.1 200 OK", "Content-Length: 2", "Connection: close, X-Secret", *extra]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n{}")
        await writer.drain()

    async with bad_worker(worker_generate=answer) as worker:
        await asyncio.to_thread(controller.register, worker.address)
        async with connect(controller) as connection:
            connection.send(DISPATCH.replace(b"/get_worker_address", b"/worker_generate"))
            _, headers, body = await connection.response()
        assert body == b"{}"
        assert headers["x-ok"] == "1"
        assert not headers.keys() & {
            "x-secret", "keep-alive", "proxy-authenticate", "trailer", "upgrade", "connection",
        }  # fmt: skip


BOMBS = {
    "many headers": b"".join(b"X%d: %s\r\n" % (number, b"a" * 1000) for number in range(5000)),
    "one header": b"X: " + b"a" * 5 * MIB,
    "empty headers": b"A:\r\n" * 500_000,
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_head_beyond_the_limit_is_refused_without_more_memory(serve: Serve, name: str) -> None:
    controller = serve()
    memory = peak_memory(controller)
    async with connect(controller) as connection:
        connection.send(POST + BOMBS[name])
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # it was closed while we sent
            assert await connection.error() == (431, "head_too_large")
    assert peak_memory(controller) - memory < 20 * MIB
    assert "Traceback" not in controller.log


@pytest.mark.parametrize("path", ["/get_worker_address", "/worker_generate_stream", "/register_worker", "/any/path"])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_of_200_megabytes_is_refused_before_all_of_it_is_in_memory(
    serve: Serve, path: str, announced: bool
) -> None:
    controller = serve()
    controller.register(A)
    memory = peak_memory(controller)
    head = POST.replace(b"/get_worker_address", path.encode())
    async with connect(controller) as connection:
        connection.send(head + (length(200 * MIB) if announced else CHUNKED) + b"\r\n")
        piece = b" " * MIB
        sent = 0
        answered = asyncio.create_task(connection.response())
        with contextlib.suppress(ConnectionError):
            while sent < 200 and not connection.writer.is_closing():
                connection.send(piece if announced else b"%x\r\n%s\r\n" % (MIB, piece))
                await connection.writer.drain()
                sent += 1
        status, _, body = await answered
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
    is_forwarded = "worker_gen" in path or "any" in path  # such a body may have 32 MiB, and is copied once
    assert peak_memory(controller) - memory < (90 if is_forwarded else 12) * MIB
    await wait_until(lambda: clients(controller) == 0, "the connection is closed")
    assert controller.dispatch() == A


async def test_clients_that_disconnect_at_any_point_leave_nothing_behind(controller: ControllerProcess) -> None:
    async def answer(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b"{}\0")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with bad_worker(worker_generate_stream=answer) as worker:
        await asyncio.to_thread(controller.register, worker.address)
        stream = STREAM + DISPATCH.partition(b"Host: x\r\n")[2]
        await asyncio.gather(
            *(
                send_and_disconnect(controller, request, number)
                for request in (DISPATCH, stream)
                for number in range(150)
            )
        )
        await wait_until(lambda: not worker.open, "all requests of the worker have ended")
        await wait_until(lambda: clients(controller) == 0, "all connections are closed")
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "all leases are released")
    assert "Traceback" not in controller.log


async def send_and_disconnect(controller: ControllerProcess, request: bytes, number: int) -> None:
    """Send the first `number` bytes of a request. Wait a moment, and then reset or close the connection."""
    async with connect(controller) as connection:
        connection.send(request[:number])
        await asyncio.sleep(0.001 * (number % 40))
        if number % 2:
            reset(connection.writer)
