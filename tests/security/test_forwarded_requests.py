"""The parts of a request that reach a worker, and the choice of the worker. Raw sockets call real controllers.

NextChat#6742: a header of the client chose the upstream. vLLM's /sleep, /collective_rpc and /server_info were reachable
through proxies that forwarded every path.
"""

import asyncio
import json
import re

import pytest

from tests.security.test_forward_paths import MANAGEMENT
from tests.support.workers import answers, bad_worker, chunks
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess

pytestmark = pytest.mark.system

BODY = b'{"model": "m", "prompt": "x"}'
OURS = {"host", "accept", "accept-encoding", "user-agent", "content-type", "content-length"}
OURS |= {"x-controller-path", "x-request-id"}
TRICKS = [
    b"//sleep",
    b"///sleep",
    b"/./sleep",
    b"/x/../sleep",
    b"/v1/rerank/../../sleep",
    b"/..;/sleep",
    b"/%73leep",
    b"/sle%65p",
    b"/%2fsleep",
    b"/%2Fsleep",
    b"/x%2f..%2fsleep",
    b"/%2e/sleep",
    b"/x/%2e%2e/sleep",
    b"/%252e%252e/sleep",
    b"/%2573leep",
    b"/sleep;x=1",
    b"/sleep%3bx",
    b"/sleep%00",
    b"/sleep%20",
    b"/sleep%09",
    b"/sleep%0d%0aX: y",
    b"/sleep%3Fx",
    b"/sleep%23x",
    b"/sleep?x=1",
    b"/sleep?/v1/rerank",
    b"/sleep/",
    b"/SLEEP",
    b"/x/sleep",
    b"/v1/rerank/%2e%2e/%2e%2e/sleep",
    b"/\\sleep",
    b"/v1\\..\\sleep",
    b"/\xc5\xbfleep",
    b"http://127.0.0.1/sleep",
    b"http://evil.example/v1/../sleep",
    b"http://x/sleep?/v1/rerank",
    b"sleep",
    b"*",
]


async def send(controller: ControllerProcess, target: bytes, *headers: bytes, body: bytes = BODY) -> tuple[int, bytes]:
    """Send a request as it is written. Return status and body of the response, or 0 if the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    lines = [b"POST " + target + b" HTTP/1.1", b"Connection: close", b"Content-Length: %d" % len(body), *headers]
    if not any(header.lower().startswith(b"host:") for header in headers):
        lines.append(b"Host: controller")
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    response = await reader.read()
    writer.close()
    head, _, content = response.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, content


@pytest.mark.smoke
@pytest.mark.parametrize("paths", ["default", "default,/*"])
async def test_management_of_engines_is_not_reachable(serve: Serve, paths: str) -> None:
    """The worker has every path, as an engine in its development mode."""
    controller = serve("--poll-interval", "0", "--forward-paths", paths)
    async with bad_worker() as engine:
        engine.behaviours = _EveryPath()  # type: ignore[assignment]
        controller.register(engine.address)
        for path in MANAGEMENT:
            status, content = await send(controller, path.encode())
            message = f"There is no route {path}."
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": "not_found"}
            served_by_us = path == "/metrics"
            assert status == (405 if served_by_us else 404), path
            assert served_by_us or json.loads(content) == {"error": error}
        for trick in TRICKS:
            status, _ = await send(controller, trick)
            assert status in (400, 404), trick
        for host in (b"x/v1/rerank?", b"x/v1/rerank#", b"127.0.0.1/v1/rerank?@x", b"x\\v1\\rerank"):
            status, _ = await send(controller, b"/sleep", b"Host: " + host)
            assert status in (400, 404), host
        for header in (b"X-Original-URL", b"X-Rewrite-URL", b"X-Forwarded-Prefix", b"X-Forwarded-Path", b"X-HTTP-Path"):
            status, _ = await send(controller, b"/sleep", header + b": /v1/rerank")
            assert status == 404, header
            status, _ = await send(controller, b"/v1/rerank", header + b": /sleep")
            assert status == 200, header
        assert {path for path, _ in engine.requests} == {"rerank"}
        assert {head.split(b" ")[1] for head in engine.heads} == {b"/v1/rerank"}
        # Another method is not forwarded either.
        for method in (b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"):
            reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
            writer.write(method + b" /sleep HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await reader.read()
            writer.close()
        assert {head.split(b" ")[1] for head in engine.heads} == {b"/v1/rerank"}
    assert "because of a bug" not in controller.log


class _EveryPath(dict[str, object]):
    def __missing__(self, path: str) -> object:
        return answers(b"{}")


@pytest.mark.smoke
async def test_header_of_a_client_neither_chooses_a_worker_nor_reaches_one(controller: ControllerProcess) -> None:
    behaviours = {"worker_generate_stream": chunks(b"a\0"), "worker_generate": answers(b"{}"), "rerank": answers(b"{}")}
    async with bad_worker(**behaviours) as chosen, bad_worker(**behaviours) as target:
        controller.register(chosen.address, "m")
        controller.register(target.address, "other")
        host = target.address.removeprefix("http://").encode()
        names = [
            *("X-Forwarded-Host", "X-Forwarded-Server", "X-Original-Host", "X-Host", "X-Real-IP", "X-Forwarded-For"),
            *("X-Worker", "X-Worker-Address", "Worker-Address", "X-Worker-Name", "X-Controller-Worker", "X-Target-Pod"),
            *("X-Base-Url", "X-Upstream", "X-Upstream-Url", "X-Target-Url", "X-Endpoint", "X-Backend", "Destination"),
            *("X-Gateway-Destination-Endpoint", "X-Router-Url", "X-Proxy-Url", "X-Model", "Model", "X-SMG-Worker"),
            *("Forwarded", "Via", "Referer", "Origin", "Location", "Content-Location", "Refresh", "Alt-Svc"),
            *("Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "Api-Key", "Baggage"),
            *("Traceparent", "Tracestate"),
            *("User-Agent", "Accept", "Accept-Encoding", "Content-Type", "Content-Language", "Range", "If-None-Match"),
            *("TE", "Trailer", "Keep-Alive", "Upgrade-Insecure-Requests", "X-HTTP-Method", "X-Controller-Degraded"),
        ]  # fmt: skip
        secret = b"s3cret-of-the-client"
        for path in (b"/worker_generate_stream", b"/worker_generate", b"/v1/rerank"):
            for name in names:
                for value in (b"http://" + host, b"host=" + host + b";proto=http", b"other", secret):
                    assert (await send(controller, path, name.encode() + b": " + value))[0] == 200, (name, value)
            for value in (host, b"other", b"evil.example"):
                assert (await send(controller, path, b"Host: " + value))[0] == 200
            assert (await send(controller, path, b"Connection: close, x-worker", b"X-Worker: " + host))[0] == 200
        assert target.requests == []
        assert len(chosen.requests) == 3 * (len(names) * 4 + 4)
        for head in chosen.heads:
            assert headers_of(head).keys() <= OURS, head
            assert headers_of(head)["host"] == chosen.address.removeprefix("http://")
            assert headers_of(head)["user-agent"] == "controller-cluster"
            assert secret not in head
            assert host not in head
        assert {body for _, body in chosen.requests} == {BODY}


def headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs), "no header is repeated"
    return {name.lower(): value for name, value in pairs}


@pytest.mark.smoke
async def test_the_forms_of_the_passed_headers_are_checked(controller: ControllerProcess) -> None:
    """The hop list, which finds loops, has ids of clusters and no address. Others connect logs and traces."""
    async with bad_worker(rerank=answers(b"{}")) as worker:
        controller.register(worker.address)
        assert (await send(controller, b"/v1/rerank", b"X-Controller-Path: top"))[0] == 200
        for value in (b"http://127.0.0.1:1", b"a b", b"a:1", b"a@b", b"a/b", b"a;b", b"a.example"):
            status, content = await send(controller, b"/v1/rerank", b"X-Controller-Path: " + value)
            assert status == 400, (value, content)
            status, _ = await send(controller, b"/worker_generate", b"X-Controller-Path: " + value)
            assert status == 400, value
        assert len(worker.heads) == 1
        [first, own] = headers_of(worker.heads[0])["x-controller-path"].split(",")
        assert first == "top"
        for value in (b"a b", b'a"b', b"caf\xc3\xa9", b"x" * 129):
            assert (await send(controller, b"/v1/rerank", b"X-Request-Id: " + value))[0] == 200
            assert re.fullmatch(r"[0-9a-f]{32}", headers_of(worker.heads.pop())["x-request-id"]), value
        trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "a=1,b=2", "x-request-id": "req/1"}
        lines = [f"{name}: {value}".encode() for name, value in trace.items()]
        assert (await send(controller, b"/v1/rerank", *lines))[0] == 200
        assert trace.items() <= headers_of(worker.heads.pop()).items()
        assert own != "top"
