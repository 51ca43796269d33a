"""What must hold in Redis after anything: indexes, registry and worker hashes agree, and no key is left behind."""

import json
import re
from dataclasses import dataclass

from redis.asyncio import Redis

TTL_KINDS = {"reply", "removed", "sweep", "refresh", "check"}


@dataclass
class WholeState:
    """Everything a namespace holds, except what goes by itself."""

    hashes: dict[str, dict[str, str]]
    heartbeats: set[str]
    workers: dict[str, float]
    models: set[str]
    indexes: dict[str, list[tuple[str, float]]]
    lotteries: dict[str, dict[str, float]]


async def whole_state(client: Redis, namespace: str) -> WholeState:
    """Read a namespace, asserting that each of its keys is of a known kind and has a TTL if it should."""
    state = WholeState({}, set(), {}, set(), {}, {})
    for key in await client.keys(f"{{{namespace}}}*"):
        kind, _, rest = key.removeprefix(f"{{{namespace}}}:").partition(":")
        if kind == "worker":
            state.hashes[rest] = await client.hgetall(key)
        elif kind == "heartbeat":
            state.heartbeats.add(rest)
        elif key == f"{{{namespace}}}:workers":
            state.workers = dict(await client.zrange(key, 0, -1, withscores=True))
        elif key == f"{{{namespace}}}:models":
            state.models = await client.smembers(key)
        elif kind == "model":
            state.indexes[rest] = await client.zrange(key, 0, -1, withscores=True)
        elif kind == "lottery":
            state.lotteries[rest] = dict(await client.zrange(key, 0, -1, withscores=True))
        elif kind in TTL_KINDS:
            assert await client.pttl(key) != -1, f"{key} would stay for ever"
        else:
            assert (kind in ("sequence", "schema", "epoch"), rest) == (True, ""), f"{key} is a key of no known kind"
    return state


async def check_invariants(client: Redis, namespace: str) -> WholeState:
    """Assert that all parts of a namespace agree; returns what it holds."""
    state = await whole_state(client, namespace)
    indexed: dict[str, dict[str, float]] = {}
    for name, fields in state.hashes.items():
        turn, load = int(fields["turn"]), int(fields["queue_length"]) / float(fields["speed"])
        for model in json.loads(fields["models"]):
            indexed.setdefault(model, {})[f"{turn:016d}{name}"] = load
            assert name in state.lotteries[model]
        if name in state.heartbeats:
            ttl = await client.pttl(f"{{{namespace}}}:heartbeat:{name}")
            assert (ttl == -1) == (fields["check_heart_beat"] == "0"), f"{name} expires in {ttl} ms"
            if ttl == -1:
                assert state.workers[name] == float("inf")
            else:
                seconds, microseconds = await client.time()
                due = state.workers[name] - (seconds * 1000 + microseconds / 1000)
                assert abs(due - ttl) < 1000, f"{name} expires in {ttl} ms, and is looked for in {due} ms"
    assert set(state.workers) == set(state.hashes)
    assert state.heartbeats <= set(state.hashes)
    assert {model: dict(members) for model, members in state.indexes.items()} == indexed
    assert state.models == set(indexed)
    assert set(state.lotteries) == set(indexed)
    for model, tickets in state.lotteries.items():
        assert set(tickets) == {"", *(re.sub(r"^\d{16}", "", member) for member in indexed[model])}
        assert all(ticket >= tickets[""] for ticket in tickets.values())
    return state


async def check_nothing_leaks(client: Redis, namespace: str) -> None:
    """Assert that without workers a namespace keeps nothing but the sequence and what expires by itself."""
    state = await whole_state(client, namespace)
    assert state == WholeState({}, set(), {}, set(), {}, {})
