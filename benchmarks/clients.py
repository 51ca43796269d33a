"""Clients of a FastChat controller, all in one process: they arrive when a plan says so, whether others wait or not.

    python benchmarks/clients.py plan.json seen.json

Used by benchmarks/confirmation.py, which writes the plan and reads what was seen. Each client asks for a worker's
address, with a lease if the plan says so, sends its request there, reads the answer, and gives the lease back. What is
seen ends when every request has its slot: those that run then are broken off.
"""

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import uvloop
from sleeping_workers import MODEL

TIMEOUT = 60.0
LAG_INTERVAL = 0.01


@dataclass(frozen=True)
class PlannedRequest:
    """Arrives so many seconds after the beginning, and takes so many in a slot of speed 1."""

    arrives: float
    service: float
    leased: bool


@dataclass
class Seen:
    """Waits are in seconds, in order of arrival: from the planned arrival until there was a slot, but for the time on
    the way to the worker. degraded counts answers from a snapshot."""

    waits: list[float] = field(default_factory=list)
    dispatch_times: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    degraded: int = 0
    largest_lag: float = 0.0  # of the event loop
    cpu_share: float = 0.0  # of one core


class Clients:
    """All clients of one controller."""

    def __init__(self, http: aiohttp.ClientSession, controller: str, requests: Sequence[PlannedRequest]) -> None:
        self._http = http
        self._controller = controller
        self._requests = requests
        self._waits: list[float | None] = [None] * len(requests)
        self._unsettled = len(requests)
        self._all_settled = asyncio.Event()
        self._seen = Seen()

    async def run(self) -> Seen:
        loop = asyncio.get_running_loop()
        began, cpu_began = loop.time(), time.process_time()
        watch = asyncio.create_task(self._watch_lag())
        clients = []
        for number, request in enumerate(self._requests):
            await asyncio.sleep(max(0.0, began + request.arrives - loop.time()))
            clients.append(asyncio.create_task(self._client(number, request, began + request.arrives)))
        self._seen.cpu_share = (time.process_time() - cpu_began) / (loop.time() - began)
        await self._all_settled.wait()
        for task in (watch, *clients):
            task.cancel()
        await asyncio.gather(watch, *clients, return_exceptions=True)
        self._seen.waits = [wait for wait in self._waits if wait is not None]
        return self._seen

    async def _client(self, number: int, request: PlannedRequest, due: float) -> None:
        try:
            await self._use_worker(number, request, due)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            self._seen.failed.append(f"{type(error).__name__}: {error}")
            if self._waits[number] is None:
                self._settle()

    async def _use_worker(self, number: int, request: PlannedRequest, due: float) -> None:
        address, lease = await self._dispatch(request.leased)
        dispatched_in = asyncio.get_running_loop().time() - due
        self._seen.dispatch_times.append(dispatched_in)
        body = {"model": MODEL, "prompt": "", "service": request.service}
        async with self._http.post(f"{address}/worker_generate_stream", json=body) as answer:
            frame = json.loads((await answer.content.readuntil(b"\0"))[:-1])
            self._waits[number] = dispatched_in + frame["waited"]
            self._settle()
            await answer.content.read()
        if lease:
            await self._release(lease)

    async def _dispatch(self, leased: bool) -> tuple[str, str]:
        """A worker's address, and a lease if one was asked for."""
        body = {"model": MODEL, "lease": True} if leased else {"model": MODEL}
        async with self._http.post(f"{self._controller}/get_worker_address", json=body) as answer:
            told = await answer.json()
        self._seen.degraded += "X-Controller-Degraded" in answer.headers
        if not told["address"]:
            raise ValueError("no worker")
        return told["address"], told.get("lease", "")

    async def _release(self, lease: str) -> None:
        async with self._http.post(f"{self._controller}/release_worker", json={"lease": lease}) as answer:
            if not (await answer.json())["released"]:
                raise ValueError("the lease was not out")

    def _settle(self) -> None:
        """One more request has its slot, or will never have one."""
        self._unsettled -= 1
        if not self._unsettled:
            self._all_settled.set()

    async def _watch_lag(self) -> None:
        """A client that is late itself would count that as waiting."""
        loop = asyncio.get_running_loop()
        while True:
            slept = loop.time()
            await asyncio.sleep(LAG_INTERVAL)
            self._seen.largest_lag = max(self._seen.largest_lag, loop.time() - slept - LAG_INTERVAL)


async def use(controller: str, requests: Sequence[PlannedRequest]) -> Seen:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        raise_for_status=True,
    ) as http:
        return await Clients(http, controller, requests).run()


def write_plan(path: Path, controller: str, requests: Sequence[PlannedRequest]) -> None:
    path.write_text(json.dumps({"controller": controller, "requests": [asdict(request) for request in requests]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help='{"controller": URL, "requests": [{"arrives", "service", "leased"}]}')
    parser.add_argument("seen", type=Path, help="a file for what was seen")
    arguments = parser.parse_args()
    plan = json.loads(arguments.plan.read_text())
    requests = [PlannedRequest(**request) for request in plan["requests"]]
    with contextlib.suppress(KeyboardInterrupt):
        arguments.seen.write_text(json.dumps(asdict(uvloop.run(use(plan["controller"], requests)))))


if __name__ == "__main__":
    main()
