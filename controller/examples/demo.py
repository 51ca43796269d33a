"""The cluster at work for half a minute, live in the terminal: a controller, three workers, a load, and a death.

    make demo            or            python -m controller.examples.demo --seconds 30

Everything is real and runs on this machine: `controller serve` with its embedded store, three times
`controller.examples.worker` at different speeds, and clients that ask for a worker and use it.
"""

import argparse
import asyncio
import contextlib
import io
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

EXPIRATION = 4.0
HEARTBEAT_INTERVAL = 1.0
SPEEDS = (1, 2, 4)
REQUESTS_PER_SECOND = 3.5  # the living can serve 3.8 after the death
PROMPT = "every worker takes its share of the load as fast as it can"
WORKER = "controller.examples.worker"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


class Demo:
    """What is running, and what has been seen of it."""

    def __init__(self, seconds: float, directory: Path, bar: str) -> None:
        self.seconds = seconds
        self.bar = bar
        self.directory = directory
        self.started = time.monotonic()
        self.controller = f"http://localhost:{free_port()}"
        self.speeds: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.chosen: Counter[str] = Counter()
        self.since_death: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.workers: dict[str, dict[str, Any]] = {}
        self.events: list[str] = []
        self.victim = ""
        self.killed_at: float | None = None
        self.gone_at: float | None = None

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    def tell(self, text: str) -> None:
        self.events.append(f"{self.now:5.1f} s  {text}")

    def start(self, name: str, *command: str) -> None:
        log = (self.directory / f"{name.rpartition(':')[2]}.log").open("wb")
        self.processes[name] = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)

    def start_all(self) -> None:
        port = self.controller.rpartition(":")[2]
        flags = ["--port", port, "--data-dir", str(self.directory / "data"), "--heartbeat-expiration", str(EXPIRATION)]
        self.start(self.controller, "-m", "controller", "serve", *flags)
        for speed in SPEEDS:
            port = str(free_port())
            name = f"http://localhost:{port}"
            self.speeds[name] = speed
            flags = ["--port", port, "--speed", str(speed), "--heartbeat-interval", str(HEARTBEAT_INTERVAL)]
            self.start(name, "-m", WORKER, *flags, "--controller-address", self.controller)
        self.victim = list(self.speeds)[1]

    def stop_all(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()

    async def watch(self, http: aiohttp.ClientSession) -> None:
        """See who is there, five times a second."""
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{self.controller}/workers") as answer:
                    seen = {worker["worker_name"]: worker for worker in (await answer.json())["workers"]}
                for name in seen.keys() - self.workers.keys():
                    self.tell(f"{name} has registered")
                for name in self.workers.keys() - seen.keys():
                    self.gone_at = self.gone_at or self.now
                    silence = self.gone_at - (self.killed_at or 0)
                    self.tell(f"{name} is gone, {silence:.1f} s after it was killed")
                self.workers = seen
            await asyncio.sleep(0.2)

    async def request(self, http: aiohttp.ClientSession) -> None:
        """One request, as a client makes it: ask for a worker, then use it."""
        async with http.post(f"{self.controller}/get_worker_address", json={"model": "echo"}) as answer:
            address = (await answer.json())["address"]
        if not address:
            return
        self.chosen[address] += 1
        if self.gone_at:
            self.since_death[address] += 1
        try:
            body = {"model": "echo", "prompt": PROMPT}
            async with http.post(f"{address}/worker_generate_stream", json=body) as answer:
                await answer.read()
        except aiohttp.ClientError:
            self.failed[address] += 1

    async def load(self, http: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as requests:
            while True:
                await asyncio.sleep(random.expovariate(REQUESTS_PER_SECOND))
                requests.create_task(self.request(http))

    async def story(self) -> None:
        await asyncio.sleep(self.seconds / 2)
        self.processes[self.victim].kill()
        self.killed_at = self.now
        self.tell(f"{self.victim} is killed")
        await asyncio.sleep(self.seconds / 2)

    def view(self) -> Group:
        title = f"{self.controller}   {min(self.now, self.seconds):.0f} of {self.seconds:.0f} s"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("worker", no_wrap=True)
        table.add_column("speed", justify="right", no_wrap=True, min_width=5)
        table.add_column("queue", min_width=10, no_wrap=True)
        for heading in ("heartbeat", "sent", "share", "sent since"):
            table.add_column(heading, justify="right", no_wrap=True)
        total = self.chosen.total() or 1
        for name, speed in self.speeds.items():
            worker = self.workers.get(name)
            table.add_row(
                name.removeprefix("http://"),
                str(speed),
                Text(f"{worker['queue_length']:2d} " + self.bar * min(worker["queue_length"], 7)) if worker else "",
                f"{worker['heartbeat_age']:.1f} s ago" if worker else Text("gone" if self.workers else "starting"),
                str(self.chosen[name]),
                f"{self.chosen[name] / total:.0%}",
                str(self.since_death[name]) if self.gone_at else "",
                style="" if worker else "red" if self.gone_at else "dim",
            )
        rule = f"A worker whose last heartbeat is {EXPIRATION:g} s ago is dead. Sent since: after one was gone."
        return Group(table, Text(rule, style="dim"), Text("\n".join(self.events)))

    async def run(self, console: Console) -> bool:
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            tasks = [asyncio.create_task(self.watch(http))]
            with Live(self.view(), console=console, get_renderable=self.view, refresh_per_second=8):
                while len(self.workers) < len(SPEEDS) and self.now < 15:
                    await asyncio.sleep(0.05)
                tasks.append(asyncio.create_task(self.load(http)))
                await self.story()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return len(self.workers) == len(SPEEDS) - 1 and not self.since_death[self.victim]

    def summary(self) -> str:
        shares = ", ".join(f"{self.chosen[name] / self.chosen.total():.0%}" for name in self.speeds)
        return (
            f"{self.chosen.total()} requests; speeds {', '.join(map(str, SPEEDS))} took {shares}.\n"
            f"To the dead worker went {self.failed[self.victim]} before its heartbeat lapsed and "
            f"{self.since_death[self.victim]} after."
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long to show it (default: 30)")
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may lack a character
    console = Console()
    directory = Path(tempfile.mkdtemp(prefix="controller-demo-"))
    demo = Demo(arguments.seconds, directory, "▆" if console.encoding.startswith("utf") else "#")
    try:
        demo.start_all()
        told = asyncio.run(demo.run(console))
        console.print("\n" + demo.summary())
    except KeyboardInterrupt:
        told = True
    finally:
        demo.stop_all()
        shutil.rmtree(directory, ignore_errors=True)
    return 0 if told else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"The demo cannot run: {error}.")
