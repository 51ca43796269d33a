"""Checks of Redis, from what a replica reports about it."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from controller.cli.checks.finding import Finding, ok, problem, unknown, warning
from controller.cli.text import count

Facts = Mapping[str, Any]

_LEAST_VERSION: Final = 7
_MAX_SCRIPTS: Final = 1_000  # the controller has some dozens
_MAX_CLOCK_OFFSET: Final = 1.0  # seconds
_FULL: Final = 0.95
_ALMOST_FULL: Final = 0.8
_ACL: Final = "Give the user of Redis the rights in deploy/redis/users.acl."


def check_store(store: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is found in the part `store` of GET `/diagnosis`."""
    if store["unavailable"]:
        yield problem(
            "Redis",
            f"The replica cannot use Redis, and dispatches from its snapshot as long as that is fresh: "
            f"{store['unavailable']}",
            "Repair Redis, or the network to it. docs/guides/runbook.md has the steps.",
        )
    facts: Facts = store["facts"]
    if facts["round_trip"] is None and facts["version"] is None:
        return
    for check in _CHECKS:
        yield check(facts, store)
    for command, reason in sorted(store["unknown"].items()):
        yield unknown(
            f"Redis {command}", f"{reason.capitalize()}, so what it reports is unknown.", _ADVICE.get(command, _ACL)
        )


_ADVICE: Final = {
    "CONFIG GET": "This can be ignored. It only shows whether Redis takes snapshots (RDB).",
}


def _version(facts: Facts, _: Facts) -> Finding:
    version, product = facts["version"], facts["product"]
    if version is None:
        return unknown("Redis version", "The version of Redis is not known.")
    name = f"{'Valkey' if product == 'valkey' else 'Redis'} {version}"
    number = re.match(r"\d+", version)
    if product == "redis" and number and int(number[0]) < _LEAST_VERSION:
        return problem(
            "Redis version", f"{name} is older than the oldest that is tested.", "Run Redis 7 or later, or Valkey."
        )
    return ok("Redis version", name)


def _role(facts: Facts, store: Facts) -> Finding:
    role, replicas = facts["role"], facts["connected_replicas"]
    if role is None:
        return unknown("Redis role", "It is not known whether this Redis is a master.")
    if role != "master":
        return problem(
            "Redis role",
            "The controller is connected to a replica of Redis, which takes no writes.",
            "Let --redis-url name the master, or the Sentinels: redis+sentinel://host1,host2,host3/name.",
        )
    if not replicas and store["kind"] in ("sentinel", "cluster"):
        return warning(
            "Redis role",
            "The master has no connected replica, so nothing takes over if the master fails.",
            "Start its replicas.",
        )
    return ok("Redis role", f"master with {count(replicas or 0, 'replica')}")


def _memory(facts: Facts, _: Facts) -> Finding:
    used, limit, policy = facts["memory_used"], facts["memory_limit"], facts["eviction_policy"]
    if used is None or policy is None:
        return unknown("Redis memory", "The memory of Redis is not known.")
    if policy != "noeviction":
        return problem(
            "Redis memory",
            f"The maxmemory-policy is {policy}: a full Redis deletes heartbeats, and workers vanish.",
            "Set maxmemory-policy to noeviction.",
        )
    if facts["evicted_keys"]:
        return warning(
            "Redis memory",
            f"Redis has evicted {count(facts['evicted_keys'], 'key')} since its start, under an earlier policy.",
            "Nothing to do if no worker is missing.",
        )
    shown = f"{used / 2**20:,.1f} MiB"
    if not limit:
        return ok("Redis memory", f"{shown} in use, noeviction, no limit")
    share = used / limit
    text = f"{shown} of {limit / 2**20:,.0f} MiB in use"
    if share >= _FULL:
        return problem("Redis memory", f"{text}: Redis soon rejects writes.", "Raise maxmemory, or find what fills it.")
    if share >= _ALMOST_FULL:
        return warning("Redis memory", text, "Raise maxmemory before Redis rejects writes.")
    return ok("Redis memory", f"{text}, noeviction")


def _persistence(facts: Facts, _: Facts) -> Finding:
    if facts["append_only"] is None:
        return unknown("Redis persistence", "It is not known whether Redis saves its data.")
    if (facts["append_only"] and facts["append_only_failed"]) or facts["snapshot_failed"]:
        return problem(
            "Redis persistence",
            "The last attempt to save the data of Redis has failed. Redis may reject writes until it succeeds.",
            "Look at the log of Redis, and at the space on its disk.",
        )
    if facts["append_only"]:
        return ok("Redis persistence", "append-only file, last write succeeded")
    if facts["snapshots"]:
        return ok("Redis persistence", f"snapshots ({facts['snapshots']}), last one succeeded")
    if facts["snapshots"] is None:
        return ok("Redis persistence", "no append-only file. Whether it takes snapshots is not known")
    return warning(
        "Redis persistence",
        "Redis saves nothing. After its restart, the replicas restore workers, drains and tokens from their memory. If "
        "all replicas restart together with Redis, these are lost.",
        "Turn on appendonly, unless that is what you want.",
    )


def _clock(facts: Facts, _: Facts) -> Finding:
    offset = facts["clock_offset"]
    if offset is None:
        return unknown("Redis clock", "The clock of Redis is not known.")
    if abs(offset) > _MAX_CLOCK_OFFSET:
        return warning(
            "Redis clock",
            f"The clock of Redis is {abs(offset):,.1f} s {'ahead of' if offset > 0 else 'behind'} that of the replica. "
            "Only the clock of Redis decides when workers expire. But times in logs and events do not match.",
            "Let both machines use NTP.",
        )
    return ok("Redis clock", f"{abs(offset) * 1000:.1f} ms apart from the replica")


def _latency(facts: Facts, store: Facts) -> Finding:
    trip, limit = facts["round_trip"], store["timeout"]
    if trip is None:
        return unknown("Redis latency", "The time of a call to Redis is not known.")
    text = f"A PING takes {trip * 1000:.2f} ms, and --redis-timeout is {limit * 1000:g} ms"
    if trip > limit / 4:
        return problem(
            "Redis latency",
            f"{text}: calls that take longer count as an outage of Redis.",
            "Run Redis closer to the replicas, or raise --redis-timeout.",
        )
    fork = facts["fork_time"] or 0.0
    if fork > limit / 2:
        return warning(
            "Redis latency",
            f"{text}. The last fork of Redis, to save its data, has blocked Redis for {fork * 1000:.0f} ms. A longer "
            "fork counts as an outage.",
            "Raise --redis-timeout, let a replica of Redis save the data, or turn off huge pages on its machine.",
        )
    return ok("Redis latency", text)


def _clients(facts: Facts, _: Facts) -> Finding:
    clients, limit, rejected = facts["clients"], facts["max_clients"], facts["rejected_connections"]
    if clients is None or not limit:
        return unknown("Redis connections", "The number of connections to Redis is not known.")
    text = f"{clients:,} of {limit:,} connections to Redis"
    if clients > _ALMOST_FULL * limit:
        return problem("Redis connections", f"{text}: Redis soon refuses more.", "Raise maxclients of Redis.")
    if rejected:
        return warning(
            "Redis connections",
            f"{text}. Redis has refused {count(rejected, 'connection')} since its start.",
            "Raise maxclients of Redis, if this happens again.",
        )
    return ok("Redis connections", text)


def _scripts(facts: Facts, _: Facts) -> Finding:
    number = facts["cached_scripts"]
    if number is None:
        return unknown("Redis script cache", "The number of scripts in the cache of Redis is not known.")
    if number > _MAX_SCRIPTS:
        return warning(
            "Redis script cache",
            f"Redis has {number:,} scripts in its cache, which are never evicted. The controller needs some dozens, so "
            "another program sends scripts whose text varies.",
            "Find that program, or give the controller a Redis of its own.",
        )
    return ok("Redis script cache", count(number, "script"))


def _events(facts: Facts, _: Facts) -> Finding:
    failed = facts["failed_event_writes"]
    if failed is None:
        return unknown("events", "It is not known whether events are stored.")
    if failed:
        return warning(
            "events",
            f"Redis has refused {count(failed, 'XADD')} since its start, so events are missing. All else works.",
            f"{_ACL} If another program uses XADD on this Redis, that program may have caused it.",
        )
    return ok("events", "all stored since the start of Redis")


_CHECKS: Final[tuple[Callable[[Facts, Facts], Finding], ...]] = (
    _version, _role, _memory, _persistence, _clock, _latency, _clients, _scripts, _events,
)  # fmt: skip
