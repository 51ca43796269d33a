"""Show a controller, three workers and a load in the terminal for half a minute. After half of the time, kill a worker.

    make demo            or            python -m controller.examples.demo --seconds 30

All processes run on this machine: `controller serve` with its embedded store, three times `controller.examples.worker`
at different speeds, and clients that request a worker and use it.
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
START_LIMIT = 60.0  # seconds
REQUESTS_PER_SECOND = 3.5  # the two remaining workers can serve 3.8
PROMPT = "every worker takes its share of the load as fast as it can"
WORKER = "controller.examples.worker"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


class Demo:
    """Starts the processes, sends requests, and counts where they went."""

    def __init__(self, seconds: float, directory: Path, bar: str) -> None:
        self.seconds = seconds
        self.bar = bar
        self.directory = directory
        self.started = time.monotonic()
        self.controller = f"http://localhost:{free_port()}"
        self.speeds: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.chosen: Counter[str] = Counter()
        self.chosen_since: Counter[str] = Counter()  # since the killed worker expired
        self.failed: Counter[str] = Counter()
        self.workers: dict[str, dict[str, Any]] = {}
        self.events: list[str] = []
        self.killed_worker = ""
        self.killed_at: float | None = None
        self.expired_at: float | None = None

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    def add_event(self, text: str) -> None:
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
        self.killed_worker = list(self.speeds)[1]

    def stop_all(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()

    async def watch(self, http: aiohttp.ClientSession) -> None:
        """List the workers five times a second."""
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{self.controller}/workers") as response:
                    workers = {worker["worker_name"]: worker for worker in (await response.json())["workers"]}
                for name in workers.keys() - self.workers.keys():
                    self.add_event(f"{name} has registered")
                for name in self.workers.keys() - workers.keys():
                    self.expired_at = self.expired_at or self.now
                    delay = self.expired_at - (self.killed_at or 0)
                    self.add_event(f"{name} has expired, {delay:.1f} s after it was killed")
                self.workers = workers
            await asyncio.sleep(0.2)

    async def request(self, http: aiohttp.ClientSession) -> None:
        """Send one request as a client does: get the address of a worker, then use the worker."""
        async with http.post(f"{self.controller}/get_worker_address", json={"model": "echo"}) as response:
            address = (await response.json())["address"]
        if not address:
            return
        self.chosen[address] += 1
        if self.expired_at:
            self.chosen_since[address] += 1
        try:
            body = {"model": "echo", "prompt": PROMPT}
            async with http.post(f"{address}/worker_generate_stream", json=body) as response:
                await response.read()
        except aiohttp.ClientError:
            self.failed[address] += 1

    async def load(self, http: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as requests:
            while True:
                await asyncio.sleep(random.expovariate(REQUESTS_PER_SECOND))
                requests.create_task(self.request(http))

    async def kill_one_worker(self) -> None:
        """Wait, kill a worker, and wait again."""
        await asyncio.sleep(self.seconds / 2)
        self.processes[self.killed_worker].kill()
        self.killed_at = self.now
        self.add_event(f"{self.killed_worker} was killed")
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
                f"{worker['heartbeat_age']:.1f} s ago" if worker else Text("expired" if self.workers else "starting"),
                str(self.chosen[name]),
                f"{self.chosen[name] / total:.0%}",
                str(self.chosen_since[name]) if self.expired_at else "",
                style="" if worker else "red" if self.expired_at else "dim",
            )
        rule = f"A worker expires {EXPIRATION:g} s after its last heartbeat. Sent since: requests after the expiry."
        return Group(table, Text(rule, style="dim"), Text("\n".join(self.events)))

    async def run(self, console: Console) -> bool:
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            tasks = [asyncio.create_task(self.watch(http))]
            with Live(self.view(), console=console, get_renderable=self.view, refresh_per_second=8):
                while len(self.workers) < len(SPEEDS) and self.now < START_LIMIT:
                    await asyncio.sleep(0.05)
                if len(self.workers) == len(SPEEDS):
                    tasks.append(asyncio.create_task(self.load(http)))
                    await self.kill_one_worker()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return len(self.workers) == len(SPEEDS) - 1 and not self.chosen_since[self.killed_worker]

    def summary(self) -> str:
        if not self.chosen:
            return f"The workers did not register within {START_LIMIT:g} s, so nothing was shown. Is the machine busy?"
        shares = ", ".join(f"{self.chosen[name] / self.chosen.total():.0%}" for name in self.speeds)
        return (
            f"{self.chosen.total()} requests. Workers of speed {', '.join(map(str, SPEEDS))} received {shares}.\n"
            f"{self.failed[self.killed_worker]} requests to the killed worker failed. After it expired, "
            f"{self.chosen_since[self.killed_worker]} more were sent to it."
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long the demo runs (default: 30)")
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal's encoding may lack a character
    console = Console()
    directory = Path(tempfile.mkdtemp(prefix="controller-demo-"))
    demo = Demo(arguments.seconds, directory, "▆" if console.encoding.startswith("utf") else "#")
    try:
        demo.start_all()
        succeeded = asyncio.run(demo.run(console))
        console.print("\n" + demo.summary())
    except KeyboardInterrupt:
        succeeded = True
    finally:
        demo.stop_all()
        shutil.rmtree(directory, ignore_errors=True)
    return 0 if succeeded else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"The demo cannot run: {error}.")
