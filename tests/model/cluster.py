"""Three replicas with one store. The test controls their clocks and faults."""

import asyncio
import contextlib
import time
from types import SimpleNamespace
from typing import Any, Final

import pytest
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from controller.availability import circuit_breaker, recovery, snapshots
from controller.availability.coalescer import Coalescer
from controller.fleet import membership
from controller.metrics import Metrics
from controller.replica import Replica
from controller.settings import Settings
from controller.store import keys, listings, workers
from controller.store.connection import connect
from controller.store.registry import Registry, WorkerList
from controller.upstream.client import WorkerClient
from tests.conftest import CLOCK
from tests.model.state import Observed
from tests.support.clients import Client
from tests.support.invariants import WholeState, check_invariants
from tests.support.outage import wait_for_recovery
from tests.support.replies import Replies
from tests.support.waiting import wait_until

REPLICAS: Final = 3
EXPIRATION: Final = 950.0  # seconds. Time passes in hundreds of seconds, so no heartbeat is near its expiration
DEADLINE: Final = 60.0
START: Final = 1_800_000_000_000

# Keys expire by Redis's own clock, which the test cannot set. So this script shortens all TTLs by ARGV[2] ms, less the
# time that has really passed since ARGV[1]. It returns the time of Redis.
EXPIRE_EARLIER: Final = """
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local earlier = ARGV[2] - (now - ARGV[1])
for _, name in ipairs(redis.call("KEYS", KEYS[1] .. "*")) do
  local left = redis.call("PTTL", name)
  if left >= 0 and left <= earlier then
    redis.call("DEL", name)
  elseif left >= 0 then
    redis.call("PEXPIRE", name, math.floor(left - earlier))
  end
end
return now
"""


class Link(Replies):
    """The connection between a replica and the store. It can lose replies, refuse all commands and hold scripts back.

    held_back: scripts that run later, as if they waited in the socket of an unresponsive server.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.refuses = False
        self.held_back: list[AsyncScript] = []
        self._held_runs: dict[tuple[Any, ...], None] = {}
        self._execute = client.execute_command
        client.execute_command = self._execute_command

    @property
    def is_cut(self) -> bool:
        return self.refuses or self.to_lose > 2

    def cut_off_after(self, script: AsyncScript) -> None:
        """Lose the replies of the next two runs of a script. Then refuse all commands."""

        async def refuse() -> None:
            self.refuses = not self.to_lose

        self.lose(2, between=refuse, script=script)

    async def run_held_back(self) -> None:
        """Run the scripts that were held back."""
        held, self._held_runs = self._held_runs, {}
        for args in held:
            with contextlib.suppress(NoScriptError):  # the script was never loaded
                await self._execute(*args)

    def restore(self) -> None:
        self.refuses = False
        self.held_back = []
        self.lose(0)

    async def _execute_command(self, *args: Any, **options: Any) -> Any:
        if self.refuses:
            raise RedisConnectionError("Connection refused.")
        if args[1:2] and args[1] in [script.sha for script in self.held_back]:
            self._held_runs[args] = None
            raise RedisConnectionError("No answer.")
        return await self._execute(*args, **options)


class Cluster:
    """Replicas with a common store.

    now: monotonic clock of the replicas, in seconds.
    clock: clock of the store, in milliseconds.
    admin: client of the test itself. It has no faults.
    binary: the same, for replies that are not text.
    """

    admin: Client
    binary: Client

    def __init__(self, url: str, namespace: str, decays: bool, booking_delay: float, patch: pytest.MonkeyPatch) -> None:
        self.now, self.clock = 1_000_000.0, START
        for module in (snapshots, recovery, circuit_breaker, membership, workers, listings):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        patch.setattr(circuit_breaker, "_PROBE_INTERVAL", 0.005)
        patch.setattr(membership, "_RETRY_INTERVAL", 0.005)
        self.namespace, self.decays = namespace, decays
        self.admin = connect(url, 60.0)
        self.binary = Redis(unix_socket_path=self.admin.connection_pool.connection_kwargs["path"])
        options = EXPIRATION, DEADLINE, decays, booking_delay
        self._observer = Registry(self.admin, namespace, *options)
        settings = Settings(heartbeat_expiration=EXPIRATION, register_timeout=60.0)
        clients = [connect(url, 60.0) for _ in range(REPLICAS)]
        self.links = [Link(client) for client in clients]
        self.replicas = [
            Replica(settings, Registry(client, namespace, *options), WorkerClient(60.0, 60.0), Metrics())
            for client in clients
        ]
        self._expired_at = 0

    async def open(self) -> None:
        await self.admin.flushall()
        await self._set_clock()
        self._expired_at = round(1000 * time.time())
        for replica in self.replicas:
            await replica.readiness.check()

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()
        await self.admin.flushall()
        await self.admin.aclose()
        await self.binary.aclose()

    # Time

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        await self.set_clock_by(seconds)

    async def set_clock_by(self, seconds: float) -> None:
        """Move the store's clock forward or back, as an operator can. Keys then expire earlier or later."""
        milliseconds = round(1000 * seconds)
        self.clock += milliseconds
        await self._set_clock()
        await self._expire_earlier(milliseconds)

    async def _set_clock(self) -> None:
        await self.admin.set(CLOCK, self.clock)

    async def _expire_earlier(self, milliseconds: int) -> None:
        prefix = keys.namespace(self.namespace)
        self._expired_at = await self.admin.eval(EXPIRE_EARLIER, 1, prefix, self._expired_at, milliseconds)

    # Loss of data

    async def flush(self) -> None:
        async with self.admin.pipeline(transaction=True) as commands:
            await commands.flushall().set(CLOCK, self.clock).execute()

    async def dump(self) -> list[tuple[bytes, int, bytes]]:
        """Return the name, the TTL in milliseconds and the serialized value of each key."""
        names = await self.binary.keys(f"{keys.namespace(self.namespace)}*")
        async with self.binary.pipeline(transaction=True) as commands:
            for name in names:
                commands.pttl(name).dump(name)
            replies = await commands.execute()
        return [
            (name, ttl, dump) for name, ttl, dump in zip(names, replies[::2], replies[1::2], strict=True) if ttl != -2
        ]

    async def fail_over(self, dumped: list[tuple[bytes, int, bytes]], age: float) -> None:
        """Replace the data of the store with a copy that is `age` seconds old, as a failover to an old copy does."""
        async with self.binary.pipeline(transaction=True) as commands:
            commands.flushall().set(CLOCK, self.clock)
            for name, ttl, dump in dumped:
                left = ttl if ttl < 0 else round(ttl - 1000 * age)
                if ttl < 0 or left > 0:
                    commands.restore(name, max(0, left), dump)
            await commands.execute()

    # Replicas

    def snapshot(self, replica: int) -> tuple[WorkerList | None, float]:
        """Return the last listing of the replica, and the age of its snapshot in seconds."""
        manager = self.replicas[replica].snapshots
        taken_at = manager._snapshot.taken_at if manager._snapshot is not None else -float("inf")
        return manager._listing, self.now - taken_at

    def failures(self, replica: int) -> float:
        """Return the number of failed store calls."""
        counter = self.replicas[replica].metrics.store_failures
        return counter._cells[counter._cell]

    def breaker_is_open(self, replica: int) -> bool:
        """Return True if the circuit breaker of the replica is open."""
        return self.replicas[replica].breaker.reason is not None

    async def refresh_snapshot(self, replica: int) -> None:
        await self.replicas[replica].snapshots.take_now()

    async def reconcile(self, replica: int) -> None:
        await self.replicas[replica].snapshots._return_to_redis()

    async def reconcile_and_cut_off(self, replica: int) -> None:
        """Let a replica reconcile, lose the reply of that call, and cut the connection."""
        link = self.links[replica]
        link.restore()
        link.cut_off_after(self.replicas[replica].registry._scripts["reconcile"])
        await wait_until(lambda: link.refuses, "the connection is cut", interval=0.001)

    def hold_back_dispatches(self, replica: int) -> None:
        scripts = self.replicas[replica].registry._scripts
        self.links[replica].held_back = [scripts["dispatch_shortest_queue"], scripts["dispatch_lottery"]]

    async def wait_for_recovery(self, replica: int) -> None:
        """Wait until a replica is out of degraded mode."""
        await wait_for_recovery(self.replicas[replica])

    async def wait_until_idle(self) -> None:
        """Wait until the replicas make no more calls, and the store has run all that it has received."""
        await wait_until(lambda: not any(map(self._busy, self.replicas)), "no call is running", interval=0.001)
        for _ in range(2):
            await self.admin.ping()

    def _busy(self, replica: Replica) -> bool:
        coalescers = [*vars(replica.dispatcher).values(), *vars(replica.batches).values()]
        return any(each._task is not None for each in coalescers if isinstance(each, Coalescer))

    async def break_connections(self) -> None:
        await self.admin.client_kill_filter(_type="normal", skipme=True)

    # The store

    async def observe(self) -> Observed:
        listed = await self._observer.list_workers()
        leases = await self.admin.zrange(keys.leases(self.namespace), 0, -1, withscores=True)
        return Observed(
            {worker.name: worker for worker in listed.workers}, {lease: round(ends_at) for lease, ends_at in leases}
        )

    async def check(self) -> WholeState:
        await self._expire_earlier(0)
        return await check_invariants(self.admin, self.namespace, self.decays, clock=self.clock, slack=10_000.0)


async def cancel_after(task: "asyncio.Task[Any]", iterations: int) -> None:
    """Cancel a task after some iterations of the event loop."""
    for _ in range(iterations):
        await asyncio.sleep(0)
    task.cancel()
