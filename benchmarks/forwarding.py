"""Compare how one process forwards streams: FastChat's controller, ours, and a bare reverse proxy, in one run.

    python benchmarks/forwarding.py --streams 500 --frames 200 --rounds 3

All streams start at the same time. The forwarding process runs on one core, and ours shares this core with its store.
The worker and the clients run on the other core. The figures are:

- Frames a second, as the clients receive them.
- Memory: the growth of the process at its peak, divided by the number of streams.
- The extra time of the first frame: one stream alone, compared with the worker itself, the median of a hundred.

Needs the package fschat.
"""

import argparse
import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bare_proxy import LIBRARIES, PATH, proxy
from dispatch import AS_PIP_INSTALLS_IT, on_core, post
from ports import free_port
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

STOCK = "stock FastChat"
STOCK_FAST = "stock, with uvloop and httptools"
OURS = "ours"
PROXY = "bare reverse proxy, "
DIRECT = "not forwarded: the worker itself"


class Stream:
    """A response of the worker: the unsent rest of the last write, and the number of frames left."""

    def __init__(self, frames: int) -> None:
        self.unsent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.frames = frames
        self.ended = False


def work(port: int, size: int) -> None:
    """Run a worker. It sends each stream one frame at a time, round robin, as fast as the clients read."""
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
            if stream.ended and not stream.unsent:
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
        received = ready.recv(65_536)
    except ConnectionError:
        received = b""
    if not received:
        selector.unregister(ready)
        requests.pop(ready)
        streams.pop(ready, None)
        ready.close()
        return
    requests[ready] += received
    _, end, body = requests[ready].partition(b"\r\n\r\n")
    if end and body.endswith(b"}"):
        requests[ready] = b""
        streams[ready] = Stream(json.loads(body)["frames"])


def send_one(connection: socket.socket, stream: Stream, chunk: bytes) -> None:
    if not stream.unsent:
        stream.unsent = chunk if stream.frames else b"0\r\n\r\n"
        stream.ended = not stream.frames
        stream.frames -= 1
    with contextlib.suppress(BlockingIOError):
        stream.unsent = stream.unsent[connection.send(stream.unsent) :]


def send_request(url: str, frames: int) -> socket.socket:
    """Send a request for a stream. Return the connection."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    body = json.dumps({"model": "m", "frames": frames}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(f"{head}\r\n\r\n".encode() + body)
    return connection


def first_frame(url: str) -> float:
    """Return the seconds from the connection to the first frame, with one stream only."""
    started = time.perf_counter()
    with send_request(url, 1) as connection:
        received = b""
        while b"\0" not in received:
            received += connection.recv(65_536)
        return time.perf_counter() - started


def load(url: str, streams: int, frames: int) -> dict[str, float]:
    """Read all streams at the same time, round robin, so that the clients are not the bottleneck."""
    firsts = [first_frame(url) for _ in range(100)]
    started = time.perf_counter()
    reading = [send_request(url, frames) for _ in range(streams)]
    for connection in reading:
        connection.setblocking(False)
    received = 0
    while reading:
        for connection in list(reading):
            try:
                part = connection.recv(262_144)
            except BlockingIOError:
                continue
            received += part.count(b"\0")
            if not part or part.endswith(b"0\r\n\r\n"):
                connection.close()
                reading.remove(connection)
        time.sleep(0.005)
    took = time.perf_counter() - started
    return {"rate": received / took, "missing": streams * frames - received, "first": statistics.median(firsts)}


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
    """Start a forwarding process. Yield its URL and its process id."""
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
    raise SystemExit(f"No server listens on port {port} after 10 s.")


def memory(pid: int, field: str) -> float:
    """Return the memory of a process in KiB. `field` is VmRSS for the present, or VmHWM for the peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def cpu(pid: int) -> float:
    """Return the processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
                            output = subprocess.run(
                                [*on_core(1), *command], capture_output=True, text=True, check=True
                            ).stdout
                            grown, took = (memory(pid, "VmHWM") - before, cpu(pid) - spent) if pid else (0.0, 0.0)
                            figures = {"memory": grown / arguments.streams, "cpu": took / frames}
                            results[name].append({**json.loads(output), **figures})
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

    def median(name: str, figure: str) -> float:
        return statistics.median(run[figure] for run in results[name])

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
    parser.add_argument("--streams", type=int, default=500, help="number of concurrent streams (default: 500)")
    parser.add_argument("--frames", type=int, default=200, help="frames of each stream (default: 200)")
    parser.add_argument("--size", type=int, default=200, help="bytes of text in a frame (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument(
        "--libraries",
        nargs="*",
        choices=LIBRARIES,
        default=["aiohttp"],
        help="HTTP clients of the bare proxies (default: aiohttp, which ours uses)",
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
