"""Workers for a FastChat controller that sleep instead of computing: several in a process, each on a port of its own.

    python benchmarks/sleeping_workers.py --controller-address http://localhost:21001 --speeds 1 1 2 --slots 8

Used by benchmarks/confirmation.py. A request says how long it takes at speed 1 (`service`, in seconds). It waits for a
slot in order of arrival; the first frame of the answer tells how long it did, the second ends the answer. Each worker
registers and sends heartbeats as FastChat's do. "ready" is printed when all are registered.
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
    """Serves `slots` requests at once. It tells the controller so if `tells_capacity`."""

    def __init__(self, speed: float, slots: int, tells_capacity: bool) -> None:
        self.name = ""
        self._speed = speed
        self._slots = asyncio.Semaphore(slots)
        self._capacity = {"capacity": slots} if tells_capacity else {}
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
        async with controller.post("/register_worker", json=body) as answer:
            answer.raise_for_status()

    async def beat_forever(self, controller: aiohttp.ClientSession, interval: float, first_in: float) -> None:
        await asyncio.sleep(first_in)
        while True:
            body = {"worker_name": self.name, "queue_length": self._queue_length}
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # the next one will tell
                async with controller.post("/receive_heart_beat", json=body) as answer:
                    known = (await answer.json())["exist"]
                if not known:
                    await self.register(controller)
            await asyncio.sleep(interval)

    async def _get_status(self, _: web.Request) -> web.Response:
        return web.json_response(self.status)

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        arrived = time.perf_counter()
        service = (await request.json())["service"]
        self._queue_length += 1
        try:
            async with self._slots:
                waited = time.perf_counter() - arrived
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(_frame(waited=waited))
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
    tells_capacity: bool,
    heartbeat_interval: float,
    first_heartbeats: Sequence[float],
) -> None:
    """Run workers until they are cancelled."""
    workers = [SleepingWorker(speed, slots, tells_capacity) for speed in speeds]
    async with contextlib.AsyncExitStack() as resources:
        for worker in workers:
            resources.push_async_callback((await worker.open()).cleanup)
        controller = await resources.enter_async_context(aiohttp.ClientSession(controller_address))
        for worker in workers:
            await worker.register(controller)
        print("ready", flush=True)
        await asyncio.gather(
            *(
                worker.beat_forever(controller, heartbeat_interval, first)
                for worker, first in zip(workers, first_heartbeats, strict=True)
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controller-address", default="http://localhost:21001", help="(default: %(default)s)")
    parser.add_argument("--speeds", type=float, nargs="+", default=[1.0], help="one for each worker (default: 1)")
    parser.add_argument("--slots", type=int, default=8, help="requests that a worker serves at once (default: 8)")
    parser.add_argument("--tell-capacity", action="store_true", help="tell the controller how many slots there are")
    parser.add_argument("--heartbeat-interval", type=float, default=45.0, help="in seconds (default: 45)")
    parser.add_argument(
        "--first-heartbeats", type=float, nargs="+", help="after how many seconds, of each worker (default: at random)"
    )
    arguments = parser.parse_args()
    interval = arguments.heartbeat_interval
    # Workers that were started at other times send their heartbeats at other times.
    first_heartbeats = arguments.first_heartbeats or [random.uniform(0, interval) for _ in arguments.speeds]
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(
            serve(
                arguments.controller_address,
                arguments.speeds,
                arguments.slots,
                arguments.tell_capacity,
                interval,
                first_heartbeats,
            )
        )


if __name__ == "__main__":
    main()
