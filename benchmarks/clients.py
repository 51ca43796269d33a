"""Clients of a FastChat controller, all in one process. They arrive at planned times, even if others still wait.

    python benchmarks/clients.py plan.json results.json

benchmarks/confirmation.py writes the plan and reads the results. Each client requests a worker's address, with a lease
if the plan says so. It sends its request there, reads the response, and releases the lease. The address is the
controller's own with `--by-way`, and the request then passes through the controller. The run ends when every request
has a slot, and running requests are cancelled.
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
    """One request of the plan.

    arrives: seconds after the start of the run.
    service: seconds in a slot of speed 1.
    """

    arrives: float
    service: float
    leased: bool


@dataclass
class Results:
    """The results of a run.

    waits: seconds from the planned arrival to a slot, without the delay from the client to the worker, in order of
        arrival. With `--by-way`, the delay from the client to the worker is included, because the dispatch is a part
        of it.
    dispatch_times: seconds from the planned arrival to the response with the address. With `--by-way`, to the arrival
        of the request at the worker.
    degraded: number of dispatches from a snapshot.
    forwarded: number of requests that passed through the controller.
    """

    waits: list[float] = field(default_factory=list)
    dispatch_times: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    degraded: int = 0
    forwarded: int = 0
    largest_lag: float = 0.0  # largest delay of the clients' event loop
    cpu_share: float = 0.0  # processor time as a share of one core


class Clients:
    """All clients of one controller."""

    def __init__(self, http: aiohttp.ClientSession, controller: str, requests: Sequence[PlannedRequest]) -> None:
        self._http = http
        self._controller = controller
        self._requests = requests
        self._waits: list[float | None] = [None] * len(requests)
        self._pending = len(requests)
        self._all_done = asyncio.Event()
        self._results = Results()

    async def run(self) -> Results:
        loop = asyncio.get_running_loop()
        began, cpu_began = loop.time(), time.process_time()
        watch = asyncio.create_task(self._watch_lag())
        clients = []
        for number, request in enumerate(self._requests):
            await asyncio.sleep(max(0.0, began + request.arrives - loop.time()))
            clients.append(asyncio.create_task(self._client(number, request, began + request.arrives)))
        self._results.cpu_share = (time.process_time() - cpu_began) / (loop.time() - began)
        await self._all_done.wait()
        for task in (watch, *clients):
            task.cancel()
        await asyncio.gather(watch, *clients, return_exceptions=True)
        self._results.waits = [wait for wait in self._waits if wait is not None]
        return self._results

    async def _client(self, number: int, request: PlannedRequest, due: float) -> None:
        try:
            await self._use_worker(number, request, due)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            self._results.failed.append(f"{type(error).__name__}: {error}")
            if self._waits[number] is None:
                self._finish_one()

    async def _use_worker(self, number: int, request: PlannedRequest, due: float) -> None:
        address, lease = await self._dispatch(request.leased)
        dispatched_in = asyncio.get_running_loop().time() - due
        by_way = address == self._controller
        body = {"model": MODEL, "prompt": "", "service": request.service}
        sent = time.monotonic()
        async with self._http.post(f"{address}/worker_generate_stream", json=body) as response:
            frame = json.loads((await response.content.readuntil(b"\0"))[:-1])
            if by_way:
                dispatched_in += frame["arrived"] - sent
                self._results.forwarded += 1
                self._results.degraded += "X-Controller-Degraded" in response.headers
            self._results.dispatch_times.append(dispatched_in)
            self._waits[number] = dispatched_in + frame["waited"]
            self._finish_one()
            await response.content.read()
        if lease:
            await self._release(lease)

    async def _dispatch(self, leased: bool) -> tuple[str, str]:
        """Return a worker's address, and the lease or ""."""
        body = {"model": MODEL, "lease": True} if leased else {"model": MODEL}
        async with self._http.post(f"{self._controller}/get_worker_address", json=body) as response:
            dispatched = await response.json()
        self._results.degraded += "X-Controller-Degraded" in response.headers
        if not dispatched["address"]:
            raise ValueError("no worker")
        return dispatched["address"], dispatched.get("lease", "")

    async def _release(self, lease: str) -> None:
        async with self._http.post(f"{self._controller}/release_worker", json={"lease": lease}) as response:
            if not (await response.json())["released"]:
                raise ValueError("the lease was not active")

    def _finish_one(self) -> None:
        """Count a request that has a slot or has failed."""
        self._pending -= 1
        if not self._pending:
            self._all_done.set()

    async def _watch_lag(self) -> None:
        """Measure the delay of the event loop, because the clients would count it as waiting."""
        loop = asyncio.get_running_loop()
        while True:
            slept = loop.time()
            await asyncio.sleep(LAG_INTERVAL)
            self._results.largest_lag = max(self._results.largest_lag, loop.time() - slept - LAG_INTERVAL)


async def run_clients(controller: str, requests: Sequence[PlannedRequest]) -> Results:
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
    parser.add_argument("results", type=Path, help="file for the results")
    arguments = parser.parse_args()
    plan = json.loads(arguments.plan.read_text())
    requests = [PlannedRequest(**request) for request in plan["requests"]]
    with contextlib.suppress(KeyboardInterrupt):
        arguments.results.write_text(json.dumps(asdict(uvloop.run(run_clients(plan["controller"], requests)))))


if __name__ == "__main__":
    main()
