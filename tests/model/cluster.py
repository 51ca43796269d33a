"""Three replicas on one server, with a clock and faults that the test controls."""

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
from controller.store import keys, workers
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
EXPIRATION: Final = 950.0  # of heartbeats; time passes in hundreds of seconds, so none expires at about the same time
DEADLINE: Final = 60.0
START: Final = 1_800_000_000_000

# Keys expire by Redis' own clock: by `ARGV[2]` - (what has passed of it since `ARGV[1]`) ms earlier from now on.
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


class Line(Replies):
    """Between a replica and the store: besides losing replies, it can refuse all commands, or hold scripts back.

    held_back are the scripts of which the runs are held back, as in the socket of a server that hangs.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.refuses = False
        self.held_back: list[AsyncScript] = []
        self._held: dict[tuple[Any, ...], None] = {}
        self._execute = client.execute_command
        client.execute_command = self._execute_command

    @property
    def is_cut(self) -> bool:
        return self.refuses or self.to_lose > 2

    def cut_off_after(self, script: AsyncScript) -> None:
        """Lose the replies of a script, and refuse all commands after that."""

        async def refuse() -> None:
            self.refuses = not self.to_lose

        self.lose(2, between=refuse, script=script)

    async def let_through(self) -> None:
        """Run what was held back."""
        held, self._held = self._held, {}
        for args in held:
            with contextlib.suppress(NoScriptError):  # it never ran before
                await self._execute(*args)

    def mend(self) -> None:
        self.refuses = False
        self.held_back = []
        self.lose(0)

    async def _execute_command(self, *args: Any, **options: Any) -> Any:
        if self.refuses:
            raise RedisConnectionError("Connection refused.")
        if args[1:2] and args[1] in [script.sha for script in self.held_back]:
            self._held[args] = None
            raise RedisConnectionError("No answer.")
        return await self._execute(*args, **options)


class Cluster:
    """now is the replicas' monotonic clock in seconds, clock the store's in milliseconds."""

    aside: Client
    binary: Client

    def __init__(self, url: str, namespace: str, fades: bool, booking_delay: float, patch: pytest.MonkeyPatch) -> None:
        self.now, self.clock = 1_000_000.0, START
        for module in (snapshots, recovery, circuit_breaker, membership, workers):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        patch.setattr(circuit_breaker, "_PROBE_INTERVAL", 0.005)
        patch.setattr(membership, "_RETRY_INTERVAL", 0.005)
        self.namespace, self.fades = namespace, fades
        self.aside = connect(url, 60.0)
        self.binary = Redis(unix_socket_path=self.aside.connection_pool.connection_kwargs["path"])
        options = EXPIRATION, DEADLINE, fades, booking_delay
        self._observer = Registry(self.aside, namespace, *options)
        settings = Settings(heartbeat_expiration=EXPIRATION, register_timeout=60.0)
        clients = [connect(url, 60.0) for _ in range(REPLICAS)]
        self.lines = [Line(client) for client in clients]
        self.replicas = [
            Replica(settings, Registry(client, namespace, *options), WorkerClient(60.0, 60.0), Metrics())
            for client in clients
        ]
        self._expired_at = 0

    async def open(self) -> None:
        await self.aside.flushall()
        await self._set_clock()
        self._expired_at = round(1000 * time.time())
        for replica in self.replicas:
            await replica.readiness.check()

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()
        await self.aside.flushall()
        await self.aside.aclose()
        await self.binary.aclose()

    # Time

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        await self.set_clock_by(seconds)

    async def set_clock_by(self, seconds: float) -> None:
        """Set the store's clock, as an operator would: what expires by it does so earlier, or later."""
        milliseconds = round(1000 * seconds)
        self.clock += milliseconds
        await self._set_clock()
        await self._expire_earlier(milliseconds)

    async def _set_clock(self) -> None:
        await self.aside.set(CLOCK, self.clock)

    async def _expire_earlier(self, milliseconds: int) -> None:
        prefix = keys.namespace(self.namespace)
        self._expired_at = await self.aside.eval(EXPIRE_EARLIER, 1, prefix, self._expired_at, milliseconds)

    # Loss of data

    async def forget_everything(self) -> None:
        async with self.aside.pipeline(transaction=True) as commands:
            await commands.flushall().set(CLOCK, self.clock).execute()

    async def dump(self) -> list[tuple[bytes, int, bytes]]:
        """Return all keys with the milliseconds that they have left, as a replica of the store gets them."""
        names = await self.binary.keys(f"{keys.namespace(self.namespace)}*")
        async with self.binary.pipeline(transaction=True) as commands:
            for name in names:
                commands.pttl(name).dump(name)
            told = await commands.execute()
        return [(name, ttl, dump) for name, ttl, dump in zip(names, told[::2], told[1::2], strict=True) if ttl != -2]

    async def fail_over(self, dumped: list[tuple[bytes, int, bytes]], age: float) -> None:
        """Go on with an older state, `age` seconds old."""
        async with self.binary.pipeline(transaction=True) as commands:
            commands.flushall().set(CLOCK, self.clock)
            for name, ttl, dump in dumped:
                left = ttl if ttl < 0 else round(ttl - 1000 * age)
                if ttl < 0 or left > 0:
                    commands.restore(name, max(0, left), dump)
            await commands.execute()

    # Replicas

    def snapshot(self, replica: int) -> tuple[WorkerList | None, float]:
        """Return what the replica knows, and the age of that in seconds."""
        keeper = self.replicas[replica].snapshots
        taken_at = keeper._snapshot.taken_at if keeper._snapshot is not None else -float("inf")
        return keeper._listing, self.now - taken_at

    def failures(self, replica: int) -> float:
        """Return how many calls the store did not serve."""
        counter = self.replicas[replica].metrics.store_failures
        return counter._row[counter._cell]

    def refuses_calls(self, replica: int) -> bool:
        """Return True if the replica knows that the store does not serve."""
        return self.replicas[replica].breaker.reason is not None

    async def look(self, replica: int) -> None:
        await self.replicas[replica].snapshots.refresh()

    async def settle(self, replica: int) -> None:
        await self.replicas[replica].snapshots._return_to_redis()

    async def settle_and_be_cut_off(self, replica: int) -> None:
        """Let a replica settle, lose the reply to that, and cut it off."""
        line = self.lines[replica]
        line.mend()
        line.cut_off_after(self.replicas[replica].registry._scripts["reconcile"])
        await wait_until(lambda: line.refuses, "it is cut off", interval=0.001)

    def hold_dispatches_back(self, replica: int) -> None:
        scripts = self.replicas[replica].registry._scripts
        self.lines[replica].held_back = [scripts["dispatch_shortest_queue"], scripts["dispatch_lottery"]]

    async def use_store(self, replica: int) -> None:
        """Wait until the replica uses the store again."""
        await wait_for_recovery(self.replicas[replica])

    async def rest(self) -> None:
        """Wait until nothing is under way any more, on the replicas or in the sockets of the store."""
        await wait_until(lambda: not any(map(self._busy, self.replicas)), "nothing is under way", interval=0.001)
        for _ in range(2):
            await self.aside.ping()

    def _busy(self, replica: Replica) -> bool:
        coalescers = [*vars(replica.dispatcher).values(), *vars(replica.batches).values()]
        return any(each._task is not None for each in coalescers if isinstance(each, Coalescer))

    async def break_connections(self) -> None:
        await self.aside.client_kill_filter(_type="normal", skipme=True)

    # The store

    async def observe(self) -> Observed:
        listed = await self._observer.list_workers()
        leases = await self.aside.zrange(keys.leases(self.namespace), 0, -1, withscores=True)
        return Observed(
            {worker.name: worker for worker in listed.workers}, {lease: round(ends_at) for lease, ends_at in leases}
        )

    async def check(self) -> WholeState:
        await self._expire_earlier(0)
        return await check_invariants(self.aside, self.namespace, self.fades, clock=self.clock, slack=10_000.0)


async def cancel_after(task: "asyncio.Task[Any]", steps: int) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
