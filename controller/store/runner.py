"""Runs the Lua scripts of one namespace."""

import secrets
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from redis.asyncio import RedisCluster
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from controller.domain.capacity import DefaultCapacities
from controller.store import keys, scripts
from controller.store.client import StoreCalls
from controller.store.connection import StoreClient
from controller.store.errors import FAILURES, store_error

Item = TypeVar("Item")

_MIN_REPLY_TTL_MS: Final = 6_000
_FIRST_WEIGHT: Final = 64  # of the items in the first run for any number of items
_MAX_WEIGHT: Final = 1_024
_MAX_FLUSHES: Final = 3  # of Redis's scripts during one call


def new_id() -> str:
    """Return a random id for a call."""
    return secrets.token_hex(12)


class ScriptRunner:
    """Runs scripts and other calls to Redis. The parts of the registry derive from it.

    heartbeat_expiration, engine_expiration: in seconds.
    deadline: in seconds, see StoreCalls.
    booking_decay, booking_delay, default_capacities, max_workers, max_leases, max_workers_per_token,
    max_leases_per_token, affinity_ttl, max_affinity_keys: as in the settings.
    on_run: called after each run of a script, with its name and the seconds that it took. It must not raise.
    """

    def __init__(
        self,
        client: StoreClient,
        namespace: str,
        heartbeat_expiration: float,
        deadline: float = 5.0,
        booking_decay: bool = True,
        booking_delay: float = 0.2,
        default_capacities: DefaultCapacities | None = None,
        max_workers: int = 0,
        max_leases: int = 0,
        max_workers_per_token: int = 0,
        max_leases_per_token: int = 0,
        engine_expiration: float = 10.0,
        affinity_ttl: float = 1800.0,
        max_affinity_keys: int = 200_000,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._keys = [keys.namespace(namespace)]
        self._expiration_ms = max(1, round(heartbeat_expiration * 1000))
        self._engine_expiration_ms = max(1, round(engine_expiration * 1000))
        self._decays = int(booking_decay)
        self._in_flight_window_ms = round(booking_delay * 1000)
        self._default_capacities = default_capacities or DefaultCapacities()
        self._max_workers = max_workers
        self._max_leases = max_leases
        self._max_workers_per_token = max_workers_per_token
        self._max_leases_per_token = max_leases_per_token
        self._affinity_ttl_ms = max(1000, round(affinity_ttl * 1000))
        self._max_affinity_keys = max_affinity_keys
        self._calls = StoreCalls(self._ping, deadline)
        self.on_run: Callable[[str, float], None] = lambda _script, _seconds: None
        # Replies are kept for repeated calls and for the reconciler. Both may come as late as a replica takes to find
        # Redis again.
        self._reply_ttl_ms = max(_MIN_REPLY_TTL_MS, round(6_000 * deadline))
        self._scripts: dict[str, AsyncScript] = {
            name: client.register_script(scripts.source(name)) for name in scripts.names()
        }

    def _repeatable(self) -> tuple[str, int]:
        """Return the first two arguments of a repeatable script: the id of the call, and the TTL of its reply in ms.

        A repeated call with the same id gets the first reply and changes nothing.
        """
        return new_id(), self._reply_ttl_ms

    def _default_capacity(self, models: Sequence[str]) -> str | int:
        """Return the script argument for the capacity that the settings give to a worker of these models."""
        capacity = self._default_capacities.of(models)
        return "" if capacity is None else capacity

    async def _run_each(
        self,
        script: str,
        common: Callable[[], Sequence[str | int]],
        items: Sequence[Item],
        arguments: Callable[[Item], Sequence[str | int]],
        weight: Callable[[Item], int] = lambda _: 1,
    ) -> list[Any]:
        """Run a script for items, as often as it takes to reach all of them.

        `common` returns the arguments before those of the items. Each run handles as many items as its budget allows,
        so that other calls run in between. A run gets about as many items as the one before it could handle, because
        Redis reads the arguments of all items first.

        weight: returns how much there is to read for an item.
        """
        results: list[Any] = []
        most = _FIRST_WEIGHT
        while len(results) < len(items):
            some: list[Item] = []
            total = 0
            for item in islice(items, len(results), None):
                total += weight(item)
                if some and total > most:
                    break
                some.append(item)
            handled = await self._run(script, *common(), *(argument for item in some for argument in arguments(item)))
            results += handled
            is_all = len(handled) == len(some)
            most = min(2 * most, _MAX_WEIGHT) if is_all else max(1, sum(map(weight, some[: len(handled)])))
        return results

    async def _run(self, script: str, *arguments: str | int) -> Any:
        began = time.perf_counter()
        try:
            return await self._calls.run(lambda: self._evaluate(script, arguments))
        except FAILURES as error:
            raise store_error(error) from error
        finally:
            self.on_run(script, time.perf_counter() - began)

    async def _evaluate(self, script: str, arguments: Sequence[str | int]) -> Any:
        """Run a script. redis-py loads it if Redis does not know it, but a flush may follow before it runs."""
        for _ in range(_MAX_FLUSHES):
            try:
                return await self._scripts[script](keys=self._keys, args=arguments)
            except NoScriptError:
                continue
        return await self._scripts[script](keys=self._keys, args=arguments)

    async def _ping(self) -> object:
        return await self._client.ping(**self._own_node())

    def _own_node(self) -> dict[str, Any]:
        """Return the argument that sends a command to the node of a Redis Cluster that has our keys."""
        if isinstance(self._client, RedisCluster):
            return {"target_nodes": self._client.get_node_from_key(self._keys[0])}
        return {}
