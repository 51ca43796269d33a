"""Workers for a FastChat controller that sleep instead of computing. One process runs several, each on its own port.

    python benchmarks/sleeping_workers.py --controller-address http://localhost:21001 --speeds 1 1 2 --slots 8

benchmarks/confirmation.py uses it. A request has its service time at speed 1 (`service`, in seconds). Requests wait for
a slot in order of arrival. The first frame of a response has the time of the request's arrival, by the monotonic clock
that all processes of a machine share, and the time that the request waited. The second frame ends the response. Each
worker registers and sends heartbeats as FastChat's workers do. The process prints "ready" when all are registered.
"""

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections.abc import Sequence

import aiohttp
import uvloop
from aiohttp import web

MODEL = "m"


class SleepingWorker:
    """Serves `slots` requests at a time. With `reports_capacity`, its status has the number of slots."""

    def __init__(self, speed: float, slots: int, reports_capacity: bool) -> None:
        self.name = ""
        self._speed = speed
        self._slots = asyncio.Semaphore(slots)
        self._capacity = {"capacity": slots} if reports_capacity else {}
        self._queue_length = 0

    @property
    def status(self) -> dict[str, object]:
        return {"model_names": [MODEL], "speed": self._speed, "queue_length": self._queue_length, **self._capacity}

    async def open(self) -> web.AppRunner:
        """Listen on a free port."""
        app = web.Application()
        app.router.add_post("/worker_get_status", self._get_status)
        app.router.add_post("/worker_generate_stream", self._generate_stream)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.name = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def register(self, controller: aiohttp.ClientSession) -> None:
        body = {"worker_name": self.name, "check_heart_beat": True, "worker_status": self.status}
        async with controller.post("/register_worker", json=body) as response:
            response.raise_for_status()

    async def send_heartbeats(self, controller: aiohttp.ClientSession, interval: float, first_in: float) -> None:
        await asyncio.sleep(first_in)
        while True:
            body = {"worker_name": self.name, "queue_length": self._queue_length}
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # the next heartbeat may succeed
                async with controller.post("/receive_heart_beat", json=body) as response:
                    known = (await response.json())["exist"]
                if not known:
                    await self.register(controller)
            await asyncio.sleep(interval)

    async def _get_status(self, _: web.Request) -> web.Response:
        return web.json_response(self.status)

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        service = (await request.json())["service"]
        self._queue_length += 1
        try:
            async with self._slots:
                waited = time.monotonic() - arrived
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(_frame(arrived=arrived, waited=waited))
                await asyncio.sleep(service / self._speed)
        finally:
            self._queue_length -= 1
        await response.write(_frame(text="done"))
        return response


def _frame(**fields: object) -> bytes:
    return json.dumps({"text": "", "error_code": 0, **fields}).encode() + b"\0"


async def serve(
    controller_address: str,
    speeds: Sequence[float],
    slots: int,
    reports_capacity: bool,
    heartbeat_interval: float,
    first_heartbeats: Sequence[float],
) -> None:
    """Run workers until they are cancelled."""
    workers = [SleepingWorker(speed, slots, reports_capacity) for speed in speeds]
    async with contextlib.AsyncExitStack() as resources:
        for worker in workers:
            resources.push_async_callback((await worker.open()).cleanup)
        controller = await resources.enter_async_context(aiohttp.ClientSession(controller_address))
        for worker in workers:
            await worker.register(controller)
        print("ready", flush=True)
        await asyncio.gather(
            *(
                worker.send_heartbeats(controller, heartbeat_interval, first)
                for worker, first in zip(workers, first_heartbeats, strict=True)
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controller-address", default="http://localhost:21001", help="(default: %(default)s)")
    parser.add_argument("--speeds", type=float, nargs="+", default=[1.0], help="speed of each worker (default: 1)")
    parser.add_argument("--slots", type=int, default=8, help="requests that a worker serves at a time (default: 8)")
    parser.add_argument("--report-capacity", action="store_true", help="report the number of slots to the controller")
    parser.add_argument("--heartbeat-interval", type=float, default=45.0, help="in seconds (default: 45)")
    parser.add_argument(
        "--first-heartbeats",
        type=float,
        nargs="+",
        help="seconds until each worker's first heartbeat (default: random)",
    )
    arguments = parser.parse_args()
    interval = arguments.heartbeat_interval
    # Real workers start at different times, so their heartbeats are spread over the interval.
    first_heartbeats = arguments.first_heartbeats or [random.uniform(0, interval) for _ in arguments.speeds]
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(
            serve(
                arguments.controller_address,
                arguments.speeds,
                arguments.slots,
                arguments.report_capacity,
                interval,
                first_heartbeats,
            )
        )


if __name__ == "__main__":
    main()
