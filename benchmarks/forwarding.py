"""Streams forwarded by one process: the stock controller, ours and a bare reverse proxy, side by side in one run.

    python benchmarks/forwarding.py --streams 500 --frames 200 --rounds 3

All streams are begun at once. The forwarding process is on one core (ours shares it with its store), the worker and the
clients are on the other. Frames a second are counted where they come out; memory is by how much the process grew at its
peak, by the number of streams; the first frame's extra time is that of one stream alone, against the worker itself, the
median of a hundred. Needs the package fschat.
"""

import argparse
import contextlib
import importlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dispatch import AS_PIP_INSTALLS_IT, free_port, on_core, post
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

STOCK = "stock FastChat"
STOCK_FAST = "stock, with uvloop and httptools"
OURS = "ours"
PROXY = "bare reverse proxy, "
DIRECT = "nobody: the worker itself"
PATH = "/worker_generate_stream"


Ask = Callable[[bytes], AsyncIterator[bytes]]


class Stream:
    """An answer that the worker sends: what is left of the write that did not go out whole, and of its frames."""

    def __init__(self, frames: int) -> None:
        self.waiting = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.frames = frames
        self.ended = False


def work(port: int, size: int) -> None:
    """A worker that sends its frames one by one, a write each, to all streams by turns, as fast as they are taken."""
    frame = json.dumps({"text": "x" * size, "error_code": 0}).encode() + b"\0"
    chunk = b"%x\r\n%b\r\n" % (len(frame), frame)
    listener = socket.create_server(("127.0.0.1", port), backlog=2000)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    requests: dict[socket.socket, bytes] = {}
    streams: dict[socket.socket, Stream] = {}
    while True:
        for key, _ in selector.select(0 if streams else None):
            accept_or_read(key.fileobj, listener, selector, requests, streams)
        for connection, stream in list(streams.items()):
            try:
                send_one(connection, stream, chunk)
            except ConnectionError:
                del streams[connection]
                continue
            if stream.ended and not stream.waiting:
                del streams[connection]


def accept_or_read(
    ready: Any,
    listener: socket.socket,
    selector: selectors.BaseSelector,
    requests: dict[socket.socket, bytes],
    streams: dict[socket.socket, Stream],
) -> None:
    if ready is listener:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                requests[connection] = b""
                selector.register(connection, selectors.EVENT_READ)
        return
    try:
        came = ready.recv(65_536)
    except ConnectionError:
        came = b""
    if not came:
        selector.unregister(ready)
        requests.pop(ready)
        streams.pop(ready, None)
        ready.close()
        return
    requests[ready] += came
    _, end, body = requests[ready].partition(b"\r\n\r\n")
    if end and body.endswith(b"}"):
        requests[ready] = b""
        streams[ready] = Stream(json.loads(body)["frames"])


def send_one(connection: socket.socket, stream: Stream, chunk: bytes) -> None:
    if not stream.waiting:
        stream.waiting = chunk if stream.frames else b"0\r\n\r\n"
        stream.ended = not stream.frames
        stream.frames -= 1
    with contextlib.suppress(BlockingIOError):
        stream.waiting = stream.waiting[connection.send(stream.waiting) :]


def ask(url: str, frames: int) -> socket.socket:
    """A request for a stream, sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    body = json.dumps({"model": "m", "frames": frames}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(f"{head}\r\n\r\n".encode() + body)
    return connection


def first_frame(url: str) -> float:
    """How long a lone stream takes to its first frame, from the connection on; seconds."""
    began = time.perf_counter()
    with ask(url, 1) as connection:
        came = b""
        while b"\0" not in came:
            came += connection.recv(65_536)
        return time.perf_counter() - began


def load(url: str, streams: int, frames: int) -> dict[str, float]:
    """All streams at once. They are read by turns, so that it is not the clients that are measured."""
    firsts = [first_frame(url) for _ in range(100)]
    began = time.perf_counter()
    reading = [ask(url, frames) for _ in range(streams)]
    for connection in reading:
        connection.setblocking(False)
    came = 0
    while reading:
        for connection in list(reading):
            try:
                part = connection.recv(262_144)
            except BlockingIOError:
                continue
            came += part.count(b"\0")
            if not part or part.endswith(b"0\r\n\r\n"):
                connection.close()
                reading.remove(connection)
        time.sleep(0.005)
    took = time.perf_counter() - began
    return {"rate": came / took, "missing": streams * frames - came, "first": statistics.median(firsts)}


def with_aiohttp(url: str) -> Ask:
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def ask(body: bytes) -> AsyncIterator[bytes]:
        async with session.post(url, data=body) as answer:
            async for piece in answer.content.iter_any():
                yield piece

    return ask


def with_httpx(library: str, url: str) -> Ask:
    httpx = importlib.import_module(library)
    client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=None, trust_env=False)

    async def ask(body: bytes) -> AsyncIterator[bytes]:
        async with client.stream("POST", url, content=body) as answer:
            async for piece in answer.aiter_raw():
                yield piece

    return ask


def with_niquests(url: str) -> Ask:
    import niquests

    session = niquests.AsyncSession(pool_maxsize=1000)

    async def ask(body: bytes) -> AsyncIterator[bytes]:
        answer = await session.post(url, data=body, stream=True)
        async for piece in await answer.iter_raw(-1):
            yield piece
        await answer.close()

    return ask


LIBRARIES: dict[str, Callable[[str], Ask]] = {
    "aiohttp": with_aiohttp,
    "httpx": partial(with_httpx, "httpx"),
    "httpx2": partial(with_httpx, "httpx2"),
    "niquests": with_niquests,
}


def proxy(port: int, target: str, library: str) -> None:
    """As little as a proxy can do: each piece goes on as it comes."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

    ask: list[Ask] = []  # made in the running event loop

    async def forward(request: Request) -> StreamingResponse:
        if not ask:
            ask.append(LIBRARIES[library](target + PATH))
        return StreamingResponse(ask[0](await request.body()))

    app = Starlette()
    app.add_route(PATH, forward, ["POST"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", backlog=2000, timeout_graceful_shutdown=1)


@contextlib.contextmanager
def child(core: int, directory: Path, *command: str) -> Iterator[int]:
    with (directory / "children.log").open("ab") as log:
        process = subprocess.Popen(
            [*on_core(core), sys.executable, *command],
            stdout=log,
            stderr=log,
            cwd=directory,
            env={**os.environ, "LOGDIR": str(directory)},
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def forwarding(name: str, directory: Path, worker: str) -> Iterator[tuple[str, int]]:
    """The URL at which to ask, and the process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    address = ["--host", "127.0.0.1", "--port", str(port)]
    if name == DIRECT:
        yield worker, 0
        return
    command = {
        STOCK: ["-c", AS_PIP_INSTALLS_IT, *address],
        STOCK_FAST: ["-m", "fastchat.serve.controller", *address],
        OURS: ["-m", "controller", "serve", *address, "--data-dir", str(directory / "data"), "--poll-interval", "0"],
    }.get(name, [__file__, "--proxy", worker, "--library", name.removeprefix(PROXY), "--port", str(port)])
    with child(0, directory, *command) as pid:
        wait_for(port)
        if not name.startswith(PROXY):
            status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
            body = {"worker_name": worker, "check_heart_beat": False, "worker_status": status}
            post(f"{url}/register_worker", json.dumps(body).encode())
        yield url, pid


def wait_for(port: int) -> None:
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on {port}")


def memory(pid: int, what: str) -> float:
    """KiB of a process: VmRSS now, VmHWM at its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith(what))


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, list[dict[str, float]]]:
    names = [STOCK, STOCK_FAST, OURS, *(PROXY + library for library in arguments.libraries), DIRECT]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    frames = arguments.streams * arguments.frames
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=arguments.rounds * len(names))
        for _ in range(arguments.rounds):
            for name in names:
                progress.update(task, description=name)
                with tempfile.TemporaryDirectory(prefix="cf-") as folder:
                    directory = Path(folder)
                    port = free_port()
                    worker = f"http://127.0.0.1:{port}"
                    with child(1, directory, __file__, "--work", "--port", str(port), "--size", str(arguments.size)):
                        wait_for(port)
                        with forwarding(name, directory, worker) as (url, pid):
                            load(url, 10, 10)  # to warm up
                            before, spent = (memory(pid, "VmRSS"), cpu(pid)) if pid else (0.0, 0.0)
                            command = [sys.executable, __file__, "--load", url]
                            command += ["--streams", str(arguments.streams), "--frames", str(arguments.frames)]
                            told = subprocess.run(
                                [*on_core(1), *command], capture_output=True, text=True, check=True
                            ).stdout
                            grown, took = (memory(pid, "VmHWM") - before, cpu(pid) - spent) if pid else (0.0, 0.0)
                            figures = {"memory": grown / arguments.streams, "cpu": took / frames}
                            results[name].append({**json.loads(told), **figures})
                progress.advance(task)
    return results


def show(results: dict[str, list[dict[str, float]]], arguments: argparse.Namespace, console: Console) -> None:
    title = f"{arguments.streams} streams of {arguments.frames} frames at once, medians of {arguments.rounds}"
    table = Table("forwarded by", title=f"{title}, {os.cpu_count()} cores", title_justify="left")
    for heading in (
        "frames/s",
        "x stock",
        "CPU a frame, us",
        "memory a stream, KiB",
        "first frame, ms more",
        "frames missing",
    ):
        table.add_column(heading, justify="right")

    def median(name: str, what: str) -> float:
        return statistics.median(run[what] for run in results[name])

    for name in results:
        table.add_row(
            name,
            f"{median(name, 'rate'):,.0f}",
            f"{median(name, 'rate') / median(STOCK, 'rate'):.1f}",
            f"{1e6 * median(name, 'cpu'):.1f}" if name != DIRECT else "",
            f"{median(name, 'memory'):.1f}" if name != DIRECT else "",
            f"{1000 * (median(name, 'first') - median(DIRECT, 'first')):.2f}",
            f"{sum(run['missing'] for run in results[name]):.0f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500, help="at once (default: 500)")
    parser.add_argument("--frames", type=int, default=200, help="of each stream (default: 200)")
    parser.add_argument("--size", type=int, default=200, help="of a frame's text, in bytes (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument(
        "--libraries",
        nargs="*",
        choices=LIBRARIES,
        default=["aiohttp"],
        help="HTTP clients of the bare proxies (default: aiohttp, which is what ours uses)",
    )
    for internal in ("--proxy", "--library", "--load"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.port, arguments.size)
    elif arguments.proxy:
        proxy(arguments.port, arguments.proxy, arguments.library)
    elif arguments.load:
        print(json.dumps(load(arguments.load, arguments.streams, arguments.frames)))
    else:
        console = Console(width=120)
        results = measure(arguments, console)
        show(results, arguments, console)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
