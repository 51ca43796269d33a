"""A soak: many workers come and go, replicas and Redis fail, and at the end nothing is left over.

The resources are measured twice when the cluster has no workers and no clients: after a warm-up, and at the end. The
names of the workers are never used twice, so a key or an object that is kept for a name shows up.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

from controller.store import keys
from controller.store.connection import MAX_CONNECTIONS
from tests.history.clients import Recorder
from tests.history.cluster import NAMESPACE, Cluster, cluster
from tests.history.faults import FAULTS, Faults
from tests.support.waiting import wait_until

REPLICAS: Final = 4
EXPIRATION: Final = 8.0  # seconds
HEARTBEAT_INTERVAL: Final = 3.0
LIFE: Final = 15.0  # mean seconds until a worker leaves
LEASE: Final = 5.0  # seconds. Clients that lose an answer cannot release its lease
LEAVING: Final = 3.0  # seconds in which all workers leave at the end. At once, they would delay the links to Redis
CLIENTS: Final = 8
FLAGS: Final = (
    *("--heartbeat-expiration", str(EXPIRATION), "--register-timeout", "3", "--sweep-interval", "1"),
    *("--redis-timeout", "1", "--poll-interval", "2", "--booking-decay", "on"),
)
# Few sets of models, all of which the warm-up uses: the time constant of a set is kept for an hour.
SETS: Final = [("a",), ("b",), ("c",), ("a", "b"), ("b", "c"), ("a", "b", "c")]
CALMING: Final = 60.0  # seconds after which everything must have expired

# Kinds of keys that there are without workers. Of two kinds there are several keys, which Redis keeps for an hour: the
# time constants of the sets, and the flags of workers that were draining when they expired.
KEPT: Final = {
    "sequence",
    "schema",
    "epoch",
    "sweep",
    "check",
    "replicas",
    "replica_descriptions",
    "listings",
    "job",
    "job_result",
    "decay",
    "draining",
    "events",
}

# What may grow between the two measurements.
MEMORY_FACTOR: Final = 1.15
REPLICA_SLACK: Final = 16 * 2**20
REDIS_SLACK: Final = 2 * 2**20
FILES_SLACK: Final = 4


@dataclass
class ReplicaUsage:
    """Resources of a replica. files: open file descriptors without connections to Redis."""

    memory: int
    files: int
    connections: int


@dataclass
class Usage:
    """Resources of a cluster without workers and clients."""

    keys: set[str]
    redis_memory: int
    replicas: list[ReplicaUsage]

    def __str__(self) -> str:
        replicas = ", ".join(
            f"{each.memory / 2**20:.0f} MiB {each.files} files {each.connections} connections" for each in self.replicas
        )
        return f"{len(self.keys)} keys, Redis {self.redis_memory / 2**20:.1f} MiB; replicas {replicas}"


@dataclass
class Summary:
    """The contents of a soak, and the resources before and after."""

    seed: int
    seconds: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    names: int = 0
    before: Usage | None = None
    after: Usage | None = None

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "none"

        return "\n".join(
            [
                f"SOAK_SEED={self.seed}: {self.names} workers came and went in {self.seconds:.0f} s",
                f"calls: {listed(self.calls)}",
                f"failed: {listed(self.failed)}",
                f"faults: {listed(self.faults)}",
                f"before: {self.before}",
                f"after:  {self.after}",
            ]
        )


class Soak:
    """A soak of one cluster. Its seed determines the faults, and what workers and clients do."""

    def __init__(self, cluster: Cluster, seed: int, workers: int) -> None:
        self.cluster = cluster
        self.summary = Summary(seed)
        self._rng = random.Random(seed)
        self._workers = workers
        self._faults = Faults(cluster, Recorder(cluster))
        self._http = cluster.http

    async def run(
        self, warm_up: float, seconds: float, fault_every: float, report: Callable[[str], None] = lambda _: None
    ) -> None:
        """Warm up, measure, run with faults, and measure again."""
        began = time.monotonic()
        await self._load(warm_up, fault_every, report)
        self.summary.before = await self._usage_when_calm()
        report(f"before: {self.summary.before}")
        await self._load(seconds, fault_every, report)
        self.summary.after = await self._usage_when_calm()
        self.summary.seconds = time.monotonic() - began

    async def _load(self, seconds: float, fault_every: float, report: Callable[[str], None]) -> None:
        stop = asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as self._http:
            tasks = [asyncio.create_task(self._be_workers(stop)) for _ in range(self._workers)]
            tasks += [asyncio.create_task(self._be_client(stop)) for _ in range(CLIENTS)]
            until = time.monotonic() + seconds
            try:
                while time.monotonic() + fault_every < until:
                    await asyncio.sleep(fault_every)
                    await self._bring_about_a_fault(report)
                await asyncio.sleep(max(0.0, until - time.monotonic()))
            finally:
                stop.set()
                await asyncio.gather(*tasks)
        await self._faults.close()
        await self.cluster.wait_for_recovery()

    async def _bring_about_a_fault(self, report: Callable[[str], None]) -> None:
        faults = [fault for fault in FAULTS.values() if fault.name != "none"]
        [fault] = self._rng.choices(faults, [fault.weight for fault in faults])
        self.summary.faults[fault.name] += 1
        report(fault.name)
        await fault.inject(self._faults, self._rng, 1.0)

    # Workers and clients

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON of the response of a random replica. None if the call failed, as it may during a fault."""
        replica = self._rng.choice(self.cluster.up)
        self.summary.calls[path] += 1
        try:
            async with self._http.post(replica.url + path, json=body) as response:
                if response.status == 200:
                    return await response.json()
                if response.status != 503:
                    self.summary.wrong.append(f"{path}: {response.status} {await response.text()}")
                self.summary.failed[str(response.status)] += 1
        except (aiohttp.ClientError, OSError) as error:
            self.summary.failed[type(error).__name__] += 1
        return None

    async def _be_workers(self, stop: asyncio.Event) -> None:
        """Be one worker after another, each with a new name."""
        await self._pause(self._rng.uniform(0.0, HEARTBEAT_INTERVAL), stop)
        while not stop.is_set():
            self.summary.names += 1
            name = f"http://127.0.0.1:1/w{self.summary.names}"
            ends = time.monotonic() + self._rng.expovariate(1 / LIFE)
            await self._register(name)
            while not stop.is_set() and time.monotonic() < ends:
                await self._pause(HEARTBEAT_INTERVAL * self._rng.uniform(0.8, 1.2), stop)
                if self._rng.random() < 0.02:
                    await self._post("/drain_worker", {"worker_name": name})
                body = {"worker_name": name, "queue_length": self._rng.randrange(4)}
                if await self._post("/receive_heart_beat", body) == {"exist": False}:
                    await self._register(name)
            if stop.is_set():
                await asyncio.sleep(self._rng.uniform(0.0, LEAVING))
            if stop.is_set() or self._rng.random() < 0.5:
                # A resumed worker does not drain again, so nothing has to be kept of it.
                await self._post("/resume_worker", {"worker_name": name})
                await self._post("/remove_worker", {"worker_name": name})

    async def _register(self, name: str) -> None:
        status = {"model_names": self._rng.choice(SETS), "speed": 1, "queue_length": 0}
        await self._post("/register_worker", {"worker_name": name, "check_heart_beat": True, "worker_status": status})

    async def _be_client(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            body: dict[str, Any] = {"model": self._rng.choice("abc")}
            if self._rng.random() < 0.5:
                body["lease"] = LEASE
            chosen = await self._post("/get_worker_address", body) or {}
            await self._pause(self._rng.uniform(0.0, 0.2), stop)
            if chosen.get("lease"):
                await self._post("/release_worker", {"lease": chosen["lease"]})

    async def _pause(self, seconds: float, stop: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stop.wait()

    # Resources

    async def _usage_when_calm(self) -> Usage:
        """Measure when all that expires has expired, except what is kept for operators and for sets of models."""
        found: set[str] = set()

        async def is_calm() -> bool:
            nonlocal found
            found = await self._keys()
            return not left_over(found)

        with contextlib.suppress(AssertionError):  # problems() reports the keys that are left
            await wait_until(is_calm, "all workers, leases and replies have expired", CALMING, interval=0.5)
        async with self.cluster.client() as client:
            await client.execute_command("MEMORY", "PURGE")
            memory = int((await client.info("memory"))["used_memory"])
        return Usage(found, memory, [self._usage(replica.pid) for replica in self.cluster.up])

    async def _keys(self) -> set[str]:
        async with self.cluster.client() as client:
            return {name async for name in client.scan_iter(count=1000)}

    def _usage(self, pid: int) -> ReplicaUsage:
        process = psutil.Process(pid)
        ports = {replica.link.port for replica in self.cluster.replicas}
        to_redis = [each for each in process.net_connections() if each.raddr and each.raddr.port in ports]
        return ReplicaUsage(process.memory_info().rss, process.num_fds() - len(to_redis), len(to_redis))


def left_over(found: Iterable[str]) -> set[str]:
    """Return the keys that should not be there without workers and clients."""
    names = {name.removeprefix(f"{keys.namespace(NAMESPACE)}:") for name in found}
    return {name for name in names if name.partition(":")[0] not in KEPT}


def problems(summary: Summary) -> list[str]:
    """Return what is not flat, and what was answered that should not have been."""
    before, after = summary.before, summary.after
    assert before is not None
    assert after is not None
    found = list(summary.wrong[:10])
    if left := left_over(before.keys | after.keys):
        found.append(f"{len(left)} keys are left, such as {sorted(left)[:5]}")
    if more := [name for name in after.keys - before.keys if name.startswith(keys.decay(NAMESPACE, ""))]:
        found.append(f"{len(more)} more time constants: {sorted(more)}")
    if after.redis_memory > before.redis_memory * MEMORY_FACTOR + REDIS_SLACK:
        found.append("the memory of Redis has grown")
    most = max(each.memory for each in before.replicas)
    files = max(each.files for each in before.replicas)
    for number, each in enumerate(after.replicas):
        if each.memory > most * MEMORY_FACTOR + REPLICA_SLACK:
            found.append(f"the memory of replica {number} has grown")
        if each.files > files + FILES_SLACK:
            found.append(f"replica {number} has more open files")
        if each.connections > MAX_CONNECTIONS:
            found.append(f"replica {number} has {each.connections} connections to Redis")
    return found


async def run_soak(
    directory: Path,
    seed: int,
    *,
    workers: int = 500,
    warm_up: float = 60.0,
    seconds: float = 1_800.0,
    fault_every: float = 20.0,
    source: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Run a soak in a directory. The caller checks the summary with problems().

    source: as in Cluster.
    """
    async with cluster(directory, REPLICAS, FLAGS, source) as opened:
        soak = Soak(opened, seed, workers)
        await soak.run(warm_up, seconds, fault_every, report)
        return soak.summary
