"""The real parts of a history: two Redis servers, replicas of `controller serve`, and a link between each and Redis."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

import aiohttp
from ports import free_port
from redis.asyncio import Redis

from controller.store import keys
from tests.history.operations import Observation, ObservedWorker
from tests.support.faults import TcpProxy
from tests.support.waiting import wait_until
from tests.support.workers import stop_accepting
from tests.system.processes import ControllerProcess
from tests.system.servers import Server

NAMESPACE: Final = "controller"
EXPIRATION: Final = 1.0  # seconds
SNAPSHOT_INTERVAL: Final = 0.1
REDIS_TIMEOUT: Final = 0.5
FLAGS: Final = (
    *("--heartbeat-expiration", str(EXPIRATION), "--snapshot-interval", str(SNAPSHOT_INTERVAL)),
    *("--redis-timeout", str(REDIS_TIMEOUT), "--register-timeout", "20", "--sweep-interval", "2"),
    *("--poll-interval", "0"),  # nothing listens at the addresses of the workers
)


class Replica:
    """A replica and its link to Redis."""

    def __init__(self, directory: Path, number: int, link: TcpProxy, flags: Sequence[str], source: Path | None) -> None:
        self.number = number
        self.link = link
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.is_up = False
        self._directory = directory / f"replica-{number}"
        self._flags = flags
        self._source = source
        self._process: ControllerProcess | None = None

    def start(self) -> None:
        redis = self.link.url.replace("http:", "redis:")
        path = {"PYTHONPATH": str(self._source), "PYTHONSAFEPATH": "1"} if self._source else {}
        self._process = ControllerProcess(self._directory, "--redis-url", redis, *self._flags, port=self.port, **path)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.popen.pid

    def link_is_closed(self) -> bool:
        return not self.link.connections

    @property
    def log(self) -> str:
        return self._process.log if self._process is not None else ""

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        self.is_up = False
        if self._process is not None:
            self._process.kill()


class Cluster:
    """Replicas that reach one Redis server over a link each, and a second Redis server to fail over to.

    source: a directory with other versions of `controller` and `lua` for the replicas to run.
    """

    def __init__(
        self, directory: Path, replicas: int, flags: Sequence[str] = FLAGS, source: Path | None = None
    ) -> None:
        options = ("--save", "", "--repl-diskless-sync-delay", "0")
        self.master, self.standby = (Server(directory, *options) for _ in range(2))
        self.replicas = [
            Replica(directory, number, TcpProxy(free_port(), self.master.port), flags, source)
            for number in range(replicas)
        ]
        self.http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=30), connector=aiohttp.TCPConnector(limit=0)
        )
        self._servers: list[asyncio.Server] = []

    async def open(self) -> None:
        for server in (self.master, self.standby):
            await wait_until(server.answers, "Redis replies")
        await self.follow()
        for replica in self.replicas:
            self._servers.append(await replica.link.listen())
            replica.start()
        for replica in self.replicas:
            await self.wait_until_up(replica)

    async def close(self) -> None:
        await self.http.close()
        for replica in self.replicas:
            replica.kill()
        for server in self._servers:
            await stop_accepting(server)
            server.close()
        for replica in self.replicas:
            replica.link.cut()
            await wait_until(replica.link_is_closed, "the connections are closed")
        for redis in (self.master, self.standby):
            redis.resume()
            redis.kill()

    @property
    def up(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.is_up]

    # Replicas

    async def wait_until_up(self, replica: Replica) -> None:
        await wait_until(lambda: self.serves(replica), f"replica {replica.number} is ready:\n{replica.log}")
        replica.is_up = True

    async def serves(self, replica: Replica) -> bool:
        """Return True if a replica is ready and not in degraded mode."""
        try:
            async with self.http.get(f"{replica.url}/readyz") as response:
                return bool(await response.json() == {"ready": True})
        except (OSError, aiohttp.ClientError):
            return False

    async def wait_for_recovery(self) -> None:
        for replica in self.up:
            await wait_until(partial(self.serves, replica), f"replica {replica.number} uses Redis again")

    async def failures(self) -> dict[int, float]:
        """Return how many calls to Redis have failed, by process of a replica."""
        failures = {}
        for replica in self.up:
            async with self.http.get(f"{replica.url}/metrics") as response:
                found = re.findall(
                    r"^controller_store_failures_total ([0-9.e+]+)$", await response.text(), re.MULTILINE
                )
            failures[replica.pid] = sum(map(float, found))
        return failures

    async def answer_within(self, seconds: float, watched_for: float) -> bool:
        """Return True if all replicas answer each request within some seconds for a while."""
        began = time.monotonic()
        while (sent_at := time.monotonic()) < began + watched_for:
            await asyncio.gather(*map(self.serves, self.up))
            if time.monotonic() > sent_at + seconds:
                return False
        return True

    # Redis

    @contextlib.asynccontextmanager
    async def client(self, server: Server | None = None) -> AsyncIterator[Redis]:
        client = (server or self.master).client()
        try:
            yield client
        finally:
            await client.aclose()

    async def follow(self) -> None:
        """Let the standby copy the master."""
        await self.standby.execute("REPLICAOF", "127.0.0.1", str(self.master.port))
        await self.wait_until_copied()

    async def wait_until_copied(self) -> None:
        await wait_until(self._is_copied, "the standby has copied the master")

    async def _is_copied(self) -> bool:
        async with self.client() as master, self.client(self.standby) as standby:
            ours, theirs = await master.info("replication"), await standby.info("replication")
        return theirs.get("master_link_status") == "up" and ours["master_repl_offset"] == theirs["slave_repl_offset"]

    def swap(self) -> None:
        """Let the links lead to the other server, which is the master from now on."""
        self.master, self.standby = self.standby, self.master
        for replica in self.replicas:
            replica.link.retarget(self.master.port)
            replica.link.cut()

    async def wait_until_redis_is_idle(self) -> None:
        """Wait until Redis has run all commands that it has received."""
        async with self.client() as client:
            for _ in range(2):
                await client.ping()

    async def observe(self, names: Iterable[str]) -> Observation:
        names = list(names)
        before = time.monotonic()
        async with self.client() as client, client.pipeline(transaction=True) as commands:
            commands.zrange(keys.leases(NAMESPACE), 0, -1)
            for name in names:
                commands.hgetall(keys.worker(NAMESPACE, name))
                commands.pttl(keys.heartbeat(NAMESPACE, name))
                commands.exists(keys.draining(NAMESPACE, name))
            leases, *replies = await commands.execute()
        at = before, time.monotonic()
        workers, drained = {}, set()
        for name, fields, ttl, is_kept in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True):
            if ttl != -2 and fields:
                workers[name] = _worker(fields, ttl, at)
            elif is_kept or fields.get("draining", "0") != "0":
                drained.add(name)
        return Observation(at, workers, drained, set(leases))


def _worker(fields: dict[str, Any], ttl: int, at: tuple[float, float]) -> ObservedWorker:
    leased, finished, *_ = map(int, (fields["leases"] or "0 0 0 0 0 0").split())
    return ObservedWorker(
        models=tuple(_models(fields["models"])),
        speed=float(fields["speed"]),
        draining=fields["draining"] != "0",
        checks=fields["check_heart_beat"] == "1",
        load=leased - finished + round(float(fields["untracked"])),
        finished=finished,
        seq=int(fields["index_seq"]),
        incarnation=fields["incarnation"],
        expires=(inf, inf) if ttl == -1 else (at[0] + ttl / 1000, at[1] + ttl / 1000),
    )


def _models(text: str) -> Sequence[str]:
    return re.findall(r'"([^"]*)"', text)


@contextlib.asynccontextmanager
async def cluster(
    directory: Path, replicas: int, flags: Sequence[str] = FLAGS, source: Path | None = None
) -> AsyncIterator[Cluster]:
    opened = Cluster(directory, replicas, flags, source)
    try:
        await opened.open()
        yield opened
    finally:
        await opened.close()
