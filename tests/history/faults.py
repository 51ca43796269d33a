"""Faults that a round injects while its clients make calls."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tests.history.clients import Recorder
from tests.history.cluster import REDIS_TIMEOUT, Cluster
from tests.support.waiting import wait_until

Inject = Callable[["Faults", random.Random, float], Awaitable[None]]


class Faults:
    """Injects faults into a cluster. Each method takes about `seconds`.

    The fault has ended when the method returns, but a killed replica may still be starting then.
    """

    def __init__(self, cluster: Cluster, recorder: Recorder) -> None:
        self.cluster = cluster
        self.recorder = recorder
        self._starting: list[asyncio.Task[None]] = []

    async def none(self, _: random.Random, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def flush_scripts(self, rng: random.Random, seconds: float) -> None:
        async with self.cluster.client() as client:
            for _ in range(5):
                await asyncio.sleep(seconds / 5 * rng.uniform(0.7, 1.3))
                await client.script_flush()

    async def lose_replies(self, rng: random.Random, seconds: float) -> None:
        """Drop some replies with their connections. The replicas send these calls again."""
        for replica in self.cluster.up:
            replica.link.lose = rng.randint(7, 20)
        await asyncio.sleep(seconds)
        for replica in self.cluster.up:
            replica.link.lose = 0

    async def lose_many_replies(self, rng: random.Random, seconds: float) -> None:
        """Drop every reply to one replica for a while, so that repeated calls fail, too."""
        link = rng.choice(self.cluster.up).link
        await asyncio.sleep(seconds / 4)
        link.lose = 1
        await asyncio.sleep(seconds / 2)
        link.lose = 0
        await asyncio.sleep(seconds / 4)

    async def reset_connections(self, rng: random.Random, seconds: float) -> None:
        for _ in range(4):
            await asyncio.sleep(seconds / 4 * rng.random())
            for replica in self.cluster.up:
                replica.link.cut()

    async def cut_one_off(self, rng: random.Random, seconds: float) -> None:
        """Let the link of one replica hang."""
        link = rng.choice(self.cluster.up).link
        await asyncio.sleep(seconds / 3)
        link.hang()
        await asyncio.sleep(REDIS_TIMEOUT * rng.uniform(0.5, 2.5))
        link.resume()
        await asyncio.sleep(seconds / 3)

    async def stop_redis(self, rng: random.Random, seconds: float) -> None:
        """SIGSTOP, and SIGCONT a while later."""
        await asyncio.sleep(seconds / 3)
        self.cluster.master.pause()
        await asyncio.sleep(REDIS_TIMEOUT * rng.uniform(0.2, 2.5))
        self.cluster.master.resume()
        await asyncio.sleep(seconds / 3)

    async def kill_replica(self, rng: random.Random, seconds: float) -> None:
        """SIGKILL. The replica is started again, and serves some rounds later."""
        await asyncio.sleep(seconds / 2 * rng.random())
        if len(self.cluster.up) < 2:
            return
        victim = rng.choice(self.cluster.up)
        victim.kill()
        # Calls that it had sent may still run, until the link has passed them on and Redis has read them.
        await wait_until(victim.link_is_closed, "the link is closed")
        await self.cluster.wait_until_redis_is_idle()
        ran = time.monotonic()
        await asyncio.sleep(seconds / 4)  # until the clients have noticed
        for replica, operation in self.recorder.lost:
            if replica is victim:
                operation.latest = max(ran, operation.start)
        victim.start()
        self._starting.append(asyncio.create_task(self.cluster.wait_until_up(victim)))

    async def fail_over(self, _: random.Random, seconds: float) -> None:
        """Fail over as operators do it: pause the writes, wait for the standby, and promote it."""
        await asyncio.sleep(seconds / 3)
        old = self.cluster.master
        await old.execute("CLIENT", "PAUSE", "60000", "WRITE")
        await self.cluster.wait_until_copied()
        await self.cluster.standby.execute("REPLICAOF", "NO", "ONE")
        self.cluster.swap()
        await old.execute("REPLICAOF", "127.0.0.1", str(self.cluster.master.port))
        await old.execute("CLIENT", "UNPAUSE")
        await asyncio.sleep(seconds / 3)

    async def close(self) -> None:
        for task in self._starting:
            await task


@dataclass(frozen=True)
class Fault:
    """A kind of fault. weight: how often it is chosen, relative to the others."""

    name: str
    weight: int
    inject: Inject


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("none", 2, Faults.none),
        Fault("SCRIPT FLUSH", 2, Faults.flush_scripts),
        Fault("single replies lost", 4, Faults.lose_replies),
        Fault("many replies lost", 2, Faults.lose_many_replies),
        Fault("connections reset", 2, Faults.reset_connections),
        Fault("replica cut off", 1, Faults.cut_one_off),
        Fault("Redis stopped", 3, Faults.stop_redis),
        Fault("replica killed", 4, Faults.kill_replica),
        Fault("planned failover", 1, Faults.fail_over),
    )
}
LOSSY_FAILOVER: Final = "failover that loses data"
