"""Many workers on loopback addresses of their own, which answer polls and send heartbeats."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
from ports import free_port

from controller.tasks import end
from tests.support.waiting import wait_until
from tests.support.workers import stop_accepting

_BUSY = (1, 3, 2, 0)  # the queue lengths that a busy worker reports, one after the other


class Fleet:
    """Workers at 127.0.1.1, 127.0.1.2 and so on, on one port.

    queues: by name, the queue length that a worker always reports. A worker that is not in it is busy.
    """

    def __init__(self, number: int) -> None:
        self.port = free_port()
        self.hosts = [f"127.0.1.{i + 1}" for i in range(number)]
        self.names = [f"http://{host}:{self.port}" for host in self.hosts]
        self.queues: dict[str, int] = {}
        self._reports = {name: itertools.cycle(_BUSY) for name in self.names}
        self._writers: set[asyncio.StreamWriter] = set()

    def status(self, name: str) -> dict[str, Any]:
        queue_length = self.queues.get(name)
        return {
            "model_names": ["vicuna-7b"],
            "speed": 1,
            "queue_length": next(self._reports[name]) if queue_length is None else queue_length,
            "capacity": 5,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a poll."""
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            host, port = writer.get_extra_info("sockname")
            body = json.dumps(self.status(f"http://{host}:{port}")).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self._writers.discard(writer)

    async def close(self, servers: Sequence[asyncio.Server]) -> None:
        """Close the servers and all connections."""
        for server in servers:
            await stop_accepting(server)
            server.close()
        for writer in self._writers:
            writer.transport.abort()
        await wait_until(lambda: not self._writers, "all connections are closed")

    async def register(self, controller: str) -> None:
        async with httpx.AsyncClient(base_url=controller) as http:
            for name in self.names:
                body = {"worker_name": name, "check_heart_beat": True, "worker_status": self.status(name)}
                (await http.post("/register_worker", json=body, timeout=60)).raise_for_status()

    async def send_heartbeats(self, controller: str) -> None:
        """Send heartbeats until cancelled."""
        async with httpx.AsyncClient(base_url=controller) as http:
            while True:
                for name in self.names:
                    report = {"worker_name": name, "queue_length": self.status(name)["queue_length"]}
                    with contextlib.suppress(httpx.HTTPError):
                        await http.post("/receive_heart_beat", json=report, timeout=60)
                await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def fleet(controller: str, number: int, stuck: int, queue_length: int) -> AsyncIterator[Fleet]:
    """Run a fleet, registered at a controller. The worker with the number `stuck` always reports `queue_length`."""
    workers = Fleet(number)
    workers.queues[workers.names[stuck - 1]] = queue_length
    servers = [await asyncio.start_server(workers.serve, host, workers.port) for host in workers.hosts]
    try:
        await workers.register(controller)
        heartbeats = asyncio.create_task(workers.send_heartbeats(controller))
        try:
            yield workers
        finally:
            await end([heartbeats])
    finally:
        await workers.close(servers)
