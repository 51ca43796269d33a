"""Reads facts about the Redis server, as far as the permissions of its user allow."""

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from redis.exceptions import NoPermissionError, ResponseError

from controller.domain.diagnosis import StoreFacts
from controller.store.errors import FAILURES, store_error
from controller.store.runner import ScriptRunner

Result = TypeVar("Result")

_PINGS: Final = 5


class DiagnosisStore(ScriptRunner):
    """Reads facts about the server that has our keys."""

    async def diagnose(self) -> tuple[StoreFacts, Mapping[str, str]]:
        """Return what is known about the server, and the reason for each command that it does not permit or have.

        Raises StoreError after any other failure.
        """
        unknown: dict[str, str] = {}
        node = self._own_node()
        round_trips = []
        for _ in range(_PINGS):
            began = time.perf_counter()
            await self._call("PING", self._ping, unknown)
            round_trips.append(time.perf_counter() - began)
        sent_at = time.time()
        clock: tuple[int, int] | None = await self._call("TIME", lambda: self._client.time(**node), unknown)
        middle = (sent_at + time.time()) / 2
        info = await self._call("INFO", lambda: self._client.info("everything", **node), unknown) or {}
        config = await self._call("CONFIG GET", lambda: self._client.config_get("save", **node), unknown) or {}
        facts = StoreFacts(
            **_facts(info),
            snapshots=config.get("save"),
            clock_offset=None if clock is None else round(clock[0] + clock[1] / 1e6 - middle, 6),
            round_trip=None if "PING" in unknown else round(statistics.median(round_trips), 6),
        )
        return facts, unknown

    async def _call(self, name: str, call: Callable[[], Awaitable[Result]], unknown: dict[str, str]) -> Result | None:
        """Return the reply to a command. If the server refuses it, note why and return None."""
        try:
            return await self._calls.run(call)
        except FAILURES as error:
            if isinstance(error, NoPermissionError):
                unknown[name] = "not permitted"
                return None
            if isinstance(error, ResponseError) and "unknown command" in str(error).lower():
                unknown[name] = "this server has no such command"
                return None
            raise store_error(error) from error


def _facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of StoreFacts that INFO has."""
    valkey = info.get("valkey_version")
    fork = info.get("latest_fork_usec")
    xadd: Mapping[str, int] = info.get("cmdstat_xadd", {})
    return {
        "product": None if not info else "valkey" if valkey else "redis",
        "version": str(valkey or info["redis_version"]) if info else None,
        "role": info.get("role"),
        "connected_replicas": info.get("connected_slaves"),
        "memory_used": info.get("used_memory"),
        "memory_limit": info.get("maxmemory"),
        "eviction_policy": info.get("maxmemory_policy"),
        "evicted_keys": info.get("evicted_keys"),
        "append_only": _flag(info, "aof_enabled", 1),
        "append_only_failed": _flag(info, "aof_last_write_status", "err"),
        "snapshot_failed": _flag(info, "rdb_last_bgsave_status", "err"),
        "fork_time": None if fork is None else fork / 1e6,
        "clients": info.get("connected_clients"),
        "max_clients": info.get("maxclients"),
        "rejected_connections": info.get("rejected_connections"),
        "cached_scripts": info.get("number_of_cached_scripts"),
        "failed_event_writes": xadd.get("rejected_calls", 0) + xadd.get("failed_calls", 0) if info else None,
    }


def _flag(info: Mapping[str, Any], name: str, value: object) -> bool | None:
    return None if name not in info else bool(info[name] == value)
