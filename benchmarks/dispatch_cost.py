"""Measure the processor time that a feature adds to a dispatch over HTTP, with replicas that have it and that lack it.

    python benchmarks/dispatch_cost.py tokens [--rounds 12] [--requests 8000]
    python benchmarks/dispatch_cost.py viewers         ten pages are open, and one client reads /metrics each second
    python benchmarks/dispatch_cost.py against CLONE   this checkout, compared with another one

Each replica is a process with an embedded store. Clients keep their connections, and send what FastChat's clients send.
Both kinds of replicas are measured in turn. Processor time is measured, because other programs on the machine affect it
less than elapsed time. The result is the median of the ratios of the rounds.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psutil
from ports import free_port
from rich.progress import track

ROOT: Final = Path(__file__).parents[1]
VIEWERS: Final = 10
SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 - of this run only
CONNECTIONS = 16
WORKER = (
    b'{"worker_name":"http://127.0.0.1:1","check_heart_beat":false,'
    b'"worker_status":{"model_names":["m"],"speed":1,"queue_length":0}}'
)
DISPATCH = b'{"model":"m"}'


class Subject:
    """A replica, and the header with which its clients authenticate."""

    def __init__(self, process: psutil.Process, port: int, secret: str) -> None:
        self.process = process
        self.port = port
        self.header = f"Authorization: Basic {b64encode(f'web:{secret}'.encode()).decode()}\r\n" if secret else ""

    async def send(self, path: str, body: bytes, number: int) -> None:
        """Send a request `number` times on one connection."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: python-requests/2.32.3\r\nAccept: */*\r\n"
            f"Accept-Encoding: gzip, deflate\r\n{self.header}Content-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for _ in range(number):
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200"):
                raise RuntimeError(f"{path} was refused: {answer.decode()}")
            await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        writer.close()

    async def cost(self, requests: int) -> float:
        """Return the processor time of the replica for a dispatch, in microseconds."""
        before = sum(self.process.cpu_times()[:2])
        number = requests // CONNECTIONS
        await asyncio.gather(*(self.send("/get_worker_address", DISPATCH, number) for _ in range(CONNECTIONS)))
        return (sum(self.process.cpu_times()[:2]) - before) / (number * CONNECTIONS) * 1e6


@contextmanager
def replica(secret: str = "", root: Path = ROOT, flags: Sequence[str] = ()) -> Iterator[Subject]:
    """Start a replica of a checkout."""
    port = free_port()
    variables = {"PYTHONPATH": str(root), **({"CONTROLLER_ADMIN_TOKENS": f"ops={secret}"} if secret else {})}
    with tempfile.TemporaryDirectory(prefix="cb-") as directory:
        address = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", f"{directory}/data"]
        command = [sys.executable, "-m", "controller", "serve", *address, "--poll-interval", "0", *flags]
        process = subprocess.Popen(command, cwd=root, env={**os.environ, **variables}, stderr=subprocess.DEVNULL)
        try:
            yield Subject(psutil.Process(process.pid), port, secret)
        finally:
            process.terminate()
            process.wait()


async def ready(subject: Subject) -> None:
    while True:
        try:
            return await subject.send("/register_worker", WORKER, 1)
        except OSError:
            await asyncio.sleep(0.1)


async def follow(port: int, path: str) -> None:
    """Read one of the two streams of a page until cancelled."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
    try:
        while await reader.read(65536):
            pass
    finally:
        writer.close()


async def scrape(port: int) -> None:
    """Read the metrics of a replica each second until cancelled."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        await asyncio.sleep(1)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tokens", "viewers", "against"))
    parser.add_argument("clone", nargs="?", type=Path, help="the other checkout, for `against`")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--requests", type=int, default=8_000)
    arguments = parser.parse_args()
    if (arguments.what == "against") != (arguments.clone is not None):
        parser.error("`against` needs the path of the other checkout, and the others take none")
    with ExitStack() as stack:
        plain = stack.enter_context(replica(root=(arguments.clone or ROOT).resolve()))
        changed = stack.enter_context(replica(SECRET if arguments.what == "tokens" else ""))
        subjects = [plain, changed]
        for subject in subjects:
            await ready(subject)
        viewers = (
            [
                asyncio.create_task(follow(changed.port, path))
                for path in ("/events", "/overview")
                for _ in range(VIEWERS)
            ]
            if arguments.what == "viewers"
            else []
        )
        if viewers:
            viewers.append(asyncio.create_task(scrape(changed.port)))
        for subject in subjects:
            await subject.cost(arguments.requests)
        costs: list[tuple[float, float]] = []
        for number in track(range(arguments.rounds), "measuring"):
            order = (0, 1) if number % 2 else (1, 0)
            found = {which: await subjects[which].cost(arguments.requests) for which in order}
            costs.append((found[0], found[1]))
        for viewer in viewers:
            viewer.cancel()
        await asyncio.gather(*viewers, return_exceptions=True)
    plain_cost, changed_cost = (statistics.median(column) for column in zip(*costs, strict=True))
    ratios = sorted(each[0] / each[1] for each in costs)
    names = {"against": ("there", "here")}.get(arguments.what, ("without", f"with {arguments.what}"))
    print(f"processor time of a dispatch: {plain_cost:.1f} us {names[0]}, {changed_cost:.1f} us {names[1]} (medians)")
    share = f"{statistics.median(ratios):.3f} of those {names[0]}; rounds {ratios[0]:.3f} to {ratios[-1]:.3f}"
    print(f"dispatches per processor second {names[1]}: {share}")


if __name__ == "__main__":
    asyncio.run(main())
