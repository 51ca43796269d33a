"""Streams forwarded by one process: the stock controller, ours and a bare reverse proxy, side by side in one run.

    python benchmarks/forwarding.py --streams 500 --frames 200 --rounds 3

All streams are begun at once. The forwarding process is on one core (ours shares it with its store), the worker and the
clients are on the other. Frames a second are counted where they come out; memory is by how much the process grew at its
peak, by the number of streams; the first frame's extra time is that of one stream alone, against the worker itself, the
median of a hundred. Needs the package fschat.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from dispatch import AS_PIP_INSTALLS_IT, free_port, on_core, post
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

STOCK = "stock FastChat"
OURS = "ours"
PROXY = "bare reverse proxy (Starlette, aiohttp)"
DIRECT = "none: the worker itself"
NAMES = (STOCK, OURS, PROXY, DIRECT)
PATH = "/worker_generate_stream"


class Worker(asyncio.Protocol):
    """Sends its frames one by one, as fast as they are taken. As lean as can be: it shares a core with the clients."""

    def __init__(self, size: int) -> None:
        frame = json.dumps({"text": "x" * size, "error_code": 0}).encode() + b"\0"
        self._chunk = b"%x\r\n%b\r\n" % (len(frame), frame)
        self._came = b""
        self._left = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._came += data
        _, end, body = self._came.partition(b"\r\n\r\n")
        if end and body.endswith(b"}"):
            self._came = b""
            self._left = json.loads(body)["frames"]
            self._transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self._send()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()

    def _send(self) -> None:
        if self._paused or self._transport.is_closing():
            return
        if self._left:
            self._left -= 1
            self._transport.write(self._chunk)
            self._loop.call_soon(self._send)
        else:
            self._transport.write(b"0\r\n\r\n")


async def work(port: int, size: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Worker(size), "127.0.0.1", port, backlog=2000)
    await server.serve_forever()


class Client(asyncio.Protocol):
    """One stream: when its first frame came, and how many."""

    def __init__(self, frames: int) -> None:
        self._body = json.dumps({"model": "m", "frames": frames}).encode()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first = 0.0
        self.came = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(self._body)}"
        transport.write(f"{head}\r\n\r\n".encode() + self._body)

    def data_received(self, data: bytes) -> None:
        self.came += data.count(b"\0")
        if self.came and not self.first:
            self.first = time.perf_counter()
        if data.endswith(b"0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set_result(None)


async def one(url: str, frames: int) -> tuple[float, int]:
    """One stream: the time to its first frame, and how many came."""
    host, port = url.removeprefix("http://").split(":")
    began = time.perf_counter()
    _, client = await asyncio.get_running_loop().create_connection(lambda: Client(frames), host, int(port))
    await client.ended
    return client.first - began, client.came


async def load(url: str, streams: int, frames: int) -> dict[str, float]:
    firsts = [(await one(url, 1))[0] for _ in range(100)]
    began = time.perf_counter()
    told = await asyncio.gather(*(one(url, frames) for _ in range(streams)))
    took = time.perf_counter() - began
    came = sum(count for _, count in told)
    return {"rate": came / took, "missing": streams * frames - came, "first": statistics.median(firsts)}


def proxy(port: int, target: str) -> None:
    """As little as a proxy can do: each piece goes on as it comes."""
    import aiohttp
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: Request) -> StreamingResponse:
        if not sessions:
            sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        answer = await sessions[0].post(target + PATH, data=await request.body())

        async def pieces() -> object:
            async with answer:
                async for piece in answer.content.iter_any():
                    yield piece

        return StreamingResponse(pieces())

    app = Starlette()
    app.add_route(PATH, forward, ["POST"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", backlog=2000)


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
    command = {
        STOCK: ["-c", AS_PIP_INSTALLS_IT, *address],
        OURS: ["-m", "controller", "serve", *address, "--data-dir", str(directory / "data"), "--poll-interval", "0"],
        PROXY: [__file__, "--proxy", worker, "--port", str(port)],
    }.get(name)
    if command is None:
        yield worker, 0
        return
    with child(0, directory, *command) as pid:
        wait_for(port)
        if name != PROXY:
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


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=arguments.rounds * len(NAMES))
        for _ in range(arguments.rounds):
            for name in NAMES:
                progress.update(task, description=name)
                with tempfile.TemporaryDirectory(prefix="cf-") as folder:
                    directory = Path(folder)
                    port = free_port()
                    worker = f"http://127.0.0.1:{port}"
                    with child(1, directory, __file__, "--work", "--port", str(port), "--size", str(arguments.size)):
                        wait_for(port)
                        with forwarding(name, directory, worker) as (url, pid):
                            asyncio.run(load(url, 10, 10))  # to warm up
                            before = memory(pid, "VmRSS") if pid else 0.0
                            command = [sys.executable, __file__, "--load", url]
                            command += ["--streams", str(arguments.streams), "--frames", str(arguments.frames)]
                            told = subprocess.run(
                                [*on_core(1), *command], capture_output=True, text=True, check=True
                            ).stdout
                            grown = memory(pid, "VmHWM") - before if pid else 0.0
                            results[name].append({**json.loads(told), "memory": grown / arguments.streams})
                progress.advance(task)
    return results


def show(results: dict[str, list[dict[str, float]]], arguments: argparse.Namespace, console: Console) -> None:
    title = f"{arguments.streams} streams of {arguments.frames} frames at once, medians of {arguments.rounds}"
    table = Table("forwarded by", title=f"{title}, {os.cpu_count()} cores", title_justify="left")
    for heading in ("frames/s", "x stock", "memory a stream, KiB", "first frame, ms more", "frames missing"):
        table.add_column(heading, justify="right")

    def median(name: str, what: str) -> float:
        return statistics.median(run[what] for run in results[name])

    for name in NAMES:
        table.add_row(
            name,
            f"{median(name, 'rate'):,.0f}",
            f"{median(name, 'rate') / median(STOCK, 'rate'):.1f}",
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
    for internal in ("--proxy", "--load"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        uvloop.run(work(arguments.port, arguments.size))
    elif arguments.proxy:
        proxy(arguments.port, arguments.proxy)
    elif arguments.load:
        print(json.dumps(uvloop.run(load(arguments.load, arguments.streams, arguments.frames))))
    else:
        console = Console(width=120)
        results = measure(arguments, console)
        show(results, arguments, console)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
