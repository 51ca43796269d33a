"""Measure what a replica and its Redis need: processor time of each request, memory of workers, leases, connections.

    python benchmarks/capacity.py [--workers 10000] [--leases 50000] [--connections 2000] [--requests 20000]

A replica with an embedded store runs as a process. Its Redis is a Valkey server. Processor time is measured, because
other programs on the machine affect it less than elapsed time. The capacity table of docs/guides/runbook.md has the
results.
"""

import argparse
import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import psutil
import redis.asyncio
from dispatch_cost import replica

AT_ONCE: Final = 32  # requests
FLAGS: Final = ("--registration-rate", "0", "--max-leases", "0", "--heartbeat-expiration", "86400")


@dataclass(frozen=True)
class State:
    """The resources that the two processes have used.

    replica_cpu, redis_cpu: processor time in seconds.
    replica_memory: resident memory in bytes.
    redis_memory: memory in bytes, without the buffers of connections and of the append-only file.
    files: open files and connections of the replica.
    """

    replica_cpu: float
    redis_cpu: float
    replica_memory: int
    redis_memory: int
    files: int


class Subject:
    """A replica and its Redis."""

    def __init__(self, process: psutil.Process, url: str, http: aiohttp.ClientSession) -> None:
        self._process = process
        self._url = url
        self._http = http

    async def start(self) -> None:
        """Wait until the replica is ready."""
        while True:
            try:
                async with self._http.get(f"{self._url}/readyz") as response:
                    if response.status == 200:
                        break
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        [self._store] = [child for child in self._process.children() if "valkey-server" in child.name()]
        [socket] = re.findall(r"unixsocket:(\S+)", " ".join(self._store.cmdline()))
        self._redis = redis.asyncio.Redis(unix_socket_path=socket)

    async def state(self) -> State:
        memory: dict[str, Any] = await self._redis.info("memory")
        return State(
            sum(self._process.cpu_times()[:2]),
            sum(self._store.cpu_times()[:2]),
            self._process.memory_info().rss,
            int(memory["used_memory"] - memory["mem_clients_normal"] - memory["mem_aof_buffer"]),
            self._process.num_fds(),
        )

    async def post(self, path: str, body: object) -> Any:
        async with self._http.post(self._url + path, json=body) as response:
            response.raise_for_status()
            return await response.json()

    async def send(self, path: str, bodies: Iterable[object]) -> list[Any]:
        """Send requests, 32 at once. The order of the answers is arbitrary."""
        waiting = iter(bodies)

        async def client() -> list[Any]:
            return [await self.post(path, body) for body in waiting]

        return list(itertools.chain(*await asyncio.gather(*(client() for _ in range(AT_ONCE)))))

    async def has_snapshot_of(self, workers: int) -> None:
        """Wait until the snapshot of the replica has that many workers."""
        known = 0.0
        while known < workers:
            await asyncio.sleep(0.5)
            known = max(await self.values("controller_cluster_model_workers"), default=0.0)

    async def values(self, metric: str) -> list[float]:
        """Return the values of a metric of the replica, one for each set of labels."""
        async with self._http.get(f"{self._url}/metrics") as response:
            text = await response.text()
        return [float(value) for value in re.findall(rf"(?m)^{metric}(?:{{.*}})? (\S+)$", text)]


def name(number: int) -> str:
    """Return a made-up worker address. Nothing listens there."""
    return f"http://127.{number // 62_500 + 1}.{number // 250 % 250}.{number % 250 + 1}:9"


def registration(number: int) -> dict[str, Any]:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    return {"worker_name": name(number), "check_heart_beat": True, "worker_status": status}


async def measure(subject: Subject, arguments: argparse.Namespace) -> None:
    """Print a row for each figure."""

    async def cpu(what: str, number: int, send: Callable[[], Awaitable[Any]]) -> Any:
        before = await subject.state()
        answers = await send()
        after = await subject.state()
        ours, theirs = (
            (after.replica_cpu - before.replica_cpu) / number * 1e6,
            (after.redis_cpu - before.redis_cpu) / number * 1e6,
        )
        print(f"{what}: {ours:.0f} us of a replica ({1e6 / ours:,.0f} a second on a core), {theirs:.0f} us of Redis")
        return answers

    workers, leases, requests = arguments.workers, arguments.leases, arguments.requests
    empty = await subject.state()
    print(f"a replica without workers: {empty.replica_memory / 2**20:.0f} MiB, {empty.files} files")
    await cpu("registration", workers, lambda: subject.send("/register_worker", map(registration, range(workers))))
    await subject.has_snapshot_of(workers)
    filled = await subject.state()
    of_redis = (filled.redis_memory - empty.redis_memory) / workers
    of_replica = (filled.replica_memory - empty.replica_memory) / workers
    print(f"a worker: {of_redis:,.0f} bytes of Redis, {of_replica:,.0f} bytes of each replica")
    idle = await subject.state()
    await asyncio.sleep(10)
    after = await subject.state()
    shares = (after.replica_cpu - idle.replica_cpu) * 10, (after.redis_cpu - idle.redis_cpu) * 10
    print(f"snapshots of {workers:,} workers: {shares[0]:.1f} % of a core for the replica, {shares[1]:.1f} % for Redis")
    await cpu("dispatch", requests, lambda: subject.send("/get_worker_address", ({"model": "m"},) * requests))
    [dispatched] = await subject.values("controller_dispatch_batch_size_sum")
    [calls] = await subject.values("controller_dispatch_batch_size_count")
    print(f"dispatches in one call to Redis: {dispatched / calls:.1f} on average")
    heartbeats = ({"worker_name": name(i % workers), "queue_length": 1} for i in range(requests))
    await cpu("heartbeat", requests, lambda: subject.send("/receive_heart_beat", heartbeats))
    before = await subject.state()
    wanted = itertools.repeat({"model": "m", "lease": True}, leases)
    granted = await cpu("dispatch with a lease", leases, lambda: subject.send("/get_worker_address", wanted))
    held = await subject.state()
    print(f"a lease: {(held.redis_memory - before.redis_memory) / leases:,.0f} bytes of Redis")
    released = ({"lease": answer["lease"]} for answer in granted)
    await cpu("release of a lease", leases, lambda: subject.send("/release_worker", released))


async def measure_connections(subject: Subject, port: int, number: int) -> None:
    """Open idle connections, and print what each needs."""
    before = await subject.state()
    writers = []
    for _ in range(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"}")
        writers.append(writer)
    after = await subject.state()
    memory = (after.replica_memory - before.replica_memory) / number
    files = (after.files - before.files) / number
    print(f"an open connection: {memory:,.0f} bytes of a replica, {files:.1f} files")
    for writer in writers:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--leases", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--requests", type=int, default=20_000)
    arguments = parser.parse_args()
    async with AsyncExitStack() as stack:
        started = stack.enter_context(replica(flags=FLAGS))
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        subject = Subject(started.process, f"http://127.0.0.1:{started.port}", http)
        await subject.start()
        await measure(subject, arguments)
        await measure_connections(subject, started.port, arguments.connections)


if __name__ == "__main__":
    asyncio.run(main())
