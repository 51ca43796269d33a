"""Random bodies for every route, and random HTTP: never a 500, never a hang, and the connection stays usable.

`FUZZ_SECONDS=300 make test ARGS="tests/security/test_fuzz.py"` runs each of the tests for 5 minutes.
"""

import asyncio
import contextlib
import http.client
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from controller.domain.errors import InvalidInput
from controller.domain.worker import worker_name
from controller.web.routes.table import FALLBACK, ROUTES, Route
from controller.web.schemas import fastchat as schemas
from docs.scripts.http_examples import EXAMPLES
from tests.conftest import Figure
from tests.security.connections import Serve, process
from tests.support import network
from tests.system.processes import ControllerProcess

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SECONDS = float(os.environ.get("FUZZ_SECONDS", "5"))
HANG = 30.0  # seconds
Example = TypeVar("Example")

# Every route of the table, so that new ones are covered. `other` stands for a path that is forwarded.
ALL_ROUTES = [*ROUTES, FALLBACK._replace(path="/other")]
BODIES: dict[str, list[dict[str, Any]]] = {route.path: [] for route in ALL_ROUTES}
for example in EXAMPLES:
    if isinstance(example.body, dict):
        BODIES.setdefault(example.path if example.path != FALLBACK.path else "/other", []).append(example.body)


class Worker(BaseHTTPRequestHandler):
    """A worker that answers each request at once."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        body = b'{"model_names": ["m"], "speed": 1, "queue_length": 0, "text": "", "error_code": 0}\0'
        body = body if "stream" in self.path else body[:-1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def worker() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture
def controller(serve: Serve, worker: str) -> ControllerProcess:
    times = ("--head-timeout", "0.5", "--body-timeout", "0.5", "--probe-timeout", "2", "--worker-timeout", "5")
    started = serve(*times, "--poll-interval", "0", "--registration-rate", "0", "--max-workers", "50")
    started.register(worker, check=False)
    return started


def run(strategy: st.SearchStrategy[Example], check: Callable[[Example], None], at_once: int = 50) -> int:
    """Check examples for SECONDS. Return how many were checked. A failing example is shown as it was found."""
    checked = 0

    @settings(
        max_examples=at_once,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def some(example: Example) -> None:
        nonlocal checked
        checked += 1
        check(example)

    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        some()
    return checked


# Bodies. They are texts, because a dict cannot have a key twice, nor a number that Python does not have.

NUMBERS = ["0", "-0", "-1", "1e309", "-1e309", "1e-400", "9" * 5000, "0." + "9" * 5000, "1E+2", "NaN", "Infinity", "01",
           "18446744073709551616", "9007199254740993", "1.0", "0.001", "1e400000000"]  # fmt: skip
TEXTS = ['""', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\uD83D\\uDE00"', '"\x7f"', '"a\nb"',
         '"' + "a" * 5000 + '"',
         '"http://127.0.0.1:1/a"', '"m"', "'m'", '"{}"', '"\\x"', '"a\\/b"']  # fmt: skip
NESTED = ["[" * n + "]" * n for n in (1, 500, 1000, 100_000)] + ['{"a":' * n + "1" + "}" * n for n in (500, 100_000)]
ADDRESSES = [
    "http://127.0.0.1:1/a", "http://127.1:1", "http://0177.0.0.1:1", "http://2130706433:1", "http://[::1]:1",
    "http://[::1%25lo]:1", "http://127.0.0.1:1\\@127.0.0.1:2", "http://a@127.0.0.1:1", "http://127.0.0.1:1/%00",
    "http://127.0.0.1:1/{x}", "http://127.0.0.1:1/../..", "http://127.0.0.1:99999", "http://127.0.0.1:1#a", "ftp://h",
    "http://[::ffff:127.0.0.1]:1", "http://169.254.169.254/", "http://127.0.0.1:1/" + "a" * 2000, "//127.0.0.1:1", "",
]  # fmt: skip


def as_object(fields: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{name}:{value}" for name, value in fields) + "}"


scalars = st.one_of(
    st.sampled_from([*NUMBERS, *TEXTS, "true", "false", "null", "[]", "{}", "t", "", "nul"]),
    st.text(max_size=20).map(json.dumps),
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.sampled_from(NESTED),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda parts: "[" + ",".join(parts) + "]"),
        st.lists(st.tuples(scalars, inner), max_size=4).map(as_object),
    ),
    max_leaves=8,
)
addresses = st.sampled_from(ADDRESSES).map(json.dumps)


@st.composite
def changed(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """Return an example of a body with some fields that are changed, missing, added or there twice."""
    fields: list[tuple[str, str]] = []
    for name, value in good.items():
        text = draw(addresses) if name == "worker_name" else json.dumps(value).replace(MODEL, "m")
        kind = draw(st.sampled_from(["as it is"] * 6 + ["changed", "missing", "twice", "inner"]))
        if kind == "changed" and name != "worker_name":
            text = draw(values)
        elif kind == "inner" and isinstance(value, dict):
            text = draw(changed(value)).decode("utf-8", "surrogatepass")
        if kind != "missing":
            fields += [(json.dumps(name), text)] * (2 if kind == "twice" else 1)
    fields += draw(st.lists(st.tuples(scalars, values), max_size=2))
    text = as_object(draw(st.permutations(fields)))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def bodies(draw: st.DrawFn, route: Route) -> bytes:
    examples = BODIES[route.path] or [{"model": "m"}, {"worker_name": "http://127.0.0.1:1/a"}, {}]
    body = draw(changed(draw(st.sampled_from(examples))))
    kind = draw(st.sampled_from(["as it is"] * 6 + ["cut", "bytes", "utf-16", "mark", "binary", "value", "trailing"]))
    if kind == "cut":
        body = body[: draw(st.integers(0, len(body)))]
    elif kind == "bytes":
        position = draw(st.integers(0, len(body)))
        body = body[:position] + draw(st.binary(max_size=3)) + body[position + draw(st.integers(0, 2)) :]
    elif kind == "utf-16":
        body = body.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "utf-16-be", "utf-32", "utf-7"])))
    elif kind == "mark":
        body = b"\xef\xbb\xbf" + body
    elif kind == "binary":
        body = draw(st.binary(max_size=200))
    elif kind == "value":
        body = draw(values).encode("utf-8", "surrogatepass")
    elif kind == "trailing":
        body += draw(st.sampled_from([b"\0", b" ", b"{}", b"\xff", b"//"]))
    return body


MODEL = next(body["model"] for body in BODIES["/get_worker_address"] if "model" in body)
calls = st.sampled_from(ALL_ROUTES).flatmap(lambda route: st.tuples(st.just(route), bodies(route)))


def names_another_machine(body: bytes) -> bool:
    """Return True if a body names a worker that is not on this machine, which no test may contact."""
    try:
        host = urlsplit(worker_name(schemas._name.read(body).worker_name)).hostname or ""
    except InvalidInput:
        return False
    return not network.is_address(host) or not network.is_here(host)


def test_random_bodies(controller: ControllerProcess, worker: str, figure: Figure) -> None:
    statuses: dict[int, int] = {}
    kept: list[http.client.HTTPConnection] = []

    def check(call: tuple[Route, bytes]) -> None:
        route, body = call
        if names_another_machine(body):
            return
        note(f"{route.method} {route.path} {body[:500]!r}")
        connection = kept.pop() if kept else http.client.HTTPConnection("127.0.0.1", controller.port, timeout=HANG)
        connection.request(route.method, route.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        statuses[response.status] = statuses.get(response.status, 0) + 1
        assert response.status != 500, answer
        if response.status in (400, 413, 429) and route.path != "/receive_heart_beat":
            assert json.loads(answer)["error"]["code"], "an error has a code"
        if response.will_close:
            connection.close()
            return
        connection.request("GET", "/healthz")  # the next request of the connection is understood
        assert connection.getresponse().read() == b'{"healthy":true}'
        kept.append(connection)

    try:
        checked = run(calls, check)
    finally:
        for connection in kept:
            connection.close()
    figure(f"random bodies in {SECONDS:g} s", f"{checked}, of status {statuses}")
    assert statuses.keys() >= {200, 400}
    controller.register(worker, check=False)
    assert worker in controller.names()
    assert "Traceback" not in controller.log


# Raw HTTP

PIECES = st.one_of(
    st.sampled_from([
        b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"chunked", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n",
        b"Content-Length: 5\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n", b"Content-Length: 99999999999999999999\r\n", b"HTTP/1.1", b"HTTP/2.0", b"%00",
        b"Host: x/public?\r\n", b"X: " + b"a" * 9000 + b"\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"//", b"\x16\x03\x01\x02\x00",
    ]),
    st.binary(max_size=6),
)  # fmt: skip
METHODS = st.sampled_from(
    [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"TRACE", b"get", b"M-SEARCH"]
)
TARGETS = st.one_of(
    st.sampled_from([route.path.encode() for route in ALL_ROUTES]),
    st.sampled_from([
        b"*", b"//workers", b"/%2e%2e/workers", b"/workers;a", b"/workers?a=b#c", b"http://x/workers", b"http://[::1/",
        b"x:443", b"/\xff", b"/%ff%00", b"/workers%20", b"/" + b"a" * 5000, b"/workers/",
        b"/%77orkers", b"", b"?", b"/\\..",
    ]),
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(st.sampled_from([b"", b"{}", b'{"model":"m"}', b"[" * 100]))
    head = (
        draw(METHODS)
        + b" "
        + draw(TARGETS)
        + draw(st.sampled_from([b" HTTP/1.1\r\n"] * 5 + [b" HTTP/1.0\r\n", b"\r\n"]))
    )
    head += b"Host: x\r\n"
    framing = draw(st.sampled_from(["length", "length", "chunked", "none", "wrong"]))
    if framing == "chunked":
        head += b"Transfer-Encoding: chunked\r\n"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif framing != "none":
        head += b"Content-Length: %d\r\n" % (len(body) + (draw(st.integers(-1, 3)) if framing == "wrong" else 0))
    request = head + b"\r\n" + body
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 4]))):
        position = draw(st.integers(0, len(request)))
        request = request[:position] + draw(PIECES) + request[position + draw(st.sampled_from([0, 0, 1, 3])) :]
    return request


connections = st.tuples(
    st.lists(requests(), min_size=1, max_size=4).map(b"".join),
    st.integers(0, 400),  # where the bytes are split
    st.sampled_from(["open", "open", "half-closed", "reset"]),
)


async def exchange(port: int, sent: bytes, split: int, end: str) -> bytes:
    """Send bytes in two parts and return what the controller sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        with contextlib.suppress(OSError):  # the controller may close the connection at any time
            writer.write(sent[:split])
            await writer.drain()
            await asyncio.sleep(0.001 * (split % 3))
            writer.write(sent[split:])
            await writer.drain()
            if end == "reset":
                return b""
            if end == "half-closed":
                writer.write_eof()
            # A kept connection is idle and closed by --idle-timeout. An incomplete request ends by a time limit.
            try:
                async with asyncio.timeout(HANG):
                    while data := await reader.read(65536):
                        received += data
            except TimeoutError:
                return b"hangs after: " + received
        return received
    finally:
        writer.transport.abort()


def test_random_http(serve: Serve, worker: str, figure: Figure) -> None:
    times = ("--head-timeout", "0.4", "--body-timeout", "0.4", "--idle-timeout", "0.4", "--probe-timeout", "2")
    controller = serve(*times, "--poll-interval", "0", "--worker-timeout", "5")
    controller.register(worker, check=False)
    statuses: dict[int, int] = {}
    loop = asyncio.new_event_loop()
    number = 0

    def check(batch: list[tuple[bytes, int, str]]) -> None:
        nonlocal number

        async def all_of_them() -> list[bytes]:
            return await asyncio.gather(*(exchange(controller.port, *each) for each in batch))

        for each, received in zip(batch, loop.run_until_complete(all_of_them()), strict=True):
            number += 1
            found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
            for status in found:
                statuses[status] = statuses.get(status, 0) + 1
            if 500 in found or (received and not received.startswith(b"HTTP/1.1 ")):
                raise AssertionError(f"{each!r} got {received!r}")

    try:
        run(st.lists(connections, min_size=10, max_size=40), check, at_once=3)
    finally:
        loop.close()
    figure(f"random HTTP connections in {SECONDS:g} s", f"{number}, with responses of status {statuses}")
    assert 400 in statuses
    assert controller.dispatch() == worker
    assert process(controller).num_fds() < 100
    assert "Traceback" not in controller.log
