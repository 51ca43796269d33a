"""Rules that hold in Redis after any calls: indexes and worker hashes agree, and no key is left behind."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from controller.domain.events import KINDS
from tests.model.load import Load
from tests.model.lottery import speed_bands
from tests.support.clients import Client

OVERFLOW = "\x1f"
_TOKEN_OF_LEASE = re.compile(r"(?:\d+-){3}\d+-([^@]+)@")
TTL_KINDS = {"reply", "removed", "draining", "sweep", "refresh", "check", "job", "job_result"}


@dataclass
class WholeState:
    """All that a namespace holds, except what expires."""

    hashes: dict[str, dict[str, str]]
    heartbeats: set[str]
    workers: dict[str, float]
    models: set[str]
    indexes: dict[str, list[tuple[str, float]]]
    decay_indexes: dict[str, dict[str, float]]
    decay_clocks: dict[str, str]
    lotteries: dict[str, dict[str, float]]
    lotteries_failing: dict[str, dict[str, float]] = field(default_factory=dict)
    pools: dict[str, list[str]] = field(default_factory=dict)
    checkpoints: dict[str, list[str]] = field(default_factory=dict)
    overflow: set[str] = field(default_factory=set)
    capacities: dict[str, int] = field(default_factory=dict)
    lists: dict[str, dict[str, str]] = field(default_factory=dict)
    token_counts: dict[str, dict[str, str]] = field(default_factory=dict, compare=False)
    heads: dict[str, dict[str, str]] = field(default_factory=dict)
    affinity: dict[str, dict[str, str]] = field(default_factory=dict, compare=False)  # expires
    odds: dict[str, str] = field(default_factory=dict, compare=False)  # a cache of the lotteries
    leases: list[str] = field(default_factory=list, compare=False)  # those of removed workers expire


async def whole_state(client: Client, namespace: str) -> WholeState:
    """Read a namespace, asserting that each of its keys is of a known kind and has a TTL if it should."""
    state = WholeState({}, set(), {}, set(), {}, {}, {}, {})
    for key in await client.keys(f"{{{namespace}}}*"):
        kind, _, rest = key.removeprefix(f"{{{namespace}}}:").partition(":")
        if kind == "worker":
            state.hashes[rest] = await client.hgetall(key)
        elif kind == "heartbeat":
            state.heartbeats.add(rest)
        elif kind == "checkpoints":
            written = await client.get(key) or ""  # on a cluster in use, it may be deleted meanwhile
            state.checkpoints[rest] = written.split(";")[:-1]
        elif key == f"{{{namespace}}}:workers":
            state.workers = dict(await client.zrange(key, 0, -1, withscores=True))
        elif key == f"{{{namespace}}}:models":
            state.models = await client.smembers(key)
        elif kind == "cost_index":
            state.indexes[rest] = await client.zrange(key, 0, -1, withscores=True)
        elif kind == "decay_index":
            state.decay_indexes[rest] = dict(await client.zrange(key, 0, -1, withscores=True))
        elif kind == "decay":
            if await client.pttl(key) == -1:  # otherwise the pool has no worker
                state.decay_clocks[rest] = await client.get(key)
        elif kind == "affinity":
            assert await client.pttl(key) != -1, f"{key} would never expire"
            state.affinity[rest] = await client.hgetall(key)
        elif kind == "leases":
            assert await client.pttl(key) != -1, f"{key} would never expire"
            state.leases = [lease for lease, _ in await client.zrange(key, 0, -1, withscores=True)]
        elif kind == "lottery":
            state.lotteries[rest] = dict(await client.zrange(key, 0, -1, withscores=True))
        elif kind == "lottery_failing":
            state.lotteries_failing[rest] = dict(await client.zrange(key, 0, -1, withscores=True))
        elif kind == "pools":
            state.pools[rest] = (await client.get(key)).split("\n")[:-1]
        elif key == f"{{{namespace}}}:overflow":
            state.overflow = await client.smembers(key)
        elif kind in ("cost_heads", "decay_heads"):
            state.heads[kind] = await client.hgetall(key)
        elif key == f"{{{namespace}}}:capacities":
            state.capacities = {target: int(capacity) for target, capacity in (await client.hgetall(key)).items()}
        elif kind in ("tokens", "engines", "routes"):
            state.lists[kind] = await client.hgetall(key)
        elif kind in ("token_leases", "token_workers"):
            assert (await client.pttl(key) == -1) == (kind == "token_workers"), f"{key} has a wrong TTL"
            state.token_counts[kind] = await client.hgetall(key)
        elif kind == "odds":
            state.odds[rest] = await client.get(key)
        elif kind == "events":
            for _, fields in await client.xrange(key):
                assert fields["kind"] in KINDS, f"{fields} has an unknown kind"
        elif key == f"{{{namespace}}}:replicas":
            replicas = set(await client.zrange(key, 0, -1))
            described = set(await client.hkeys(f"{{{namespace}}}:replica_descriptions"))
            assert described <= replicas, "a replica that has left is still described"
        elif key == f"{{{namespace}}}:replica_descriptions":
            pass  # compared with the replicas
        elif key == f"{{{namespace}}}:listings":
            assert all(int(number) >= 1 for number in await client.hvals(key))
        elif kind in TTL_KINDS:
            assert await client.pttl(key) != -1, f"{key} would never expire"
        else:
            assert (kind in ("sequence", "schema", "epoch"), rest) == (True, ""), f"{key} is of an unknown kind"
    return state


def pools_of(fields: dict[str, str]) -> list[str]:
    """Return the pools of a worker: see lua/include/pools/pools_of.lua."""
    return fields["pools"].split("\n") if fields["pools"] else []


def load_of(fields: dict[str, str], checkpoints: Sequence[str] = ()) -> Load:
    """Return the load of a worker from its hash and its checkpoints."""
    parsed = [checkpoint.split(":") for checkpoint in checkpoints]
    assert (fields["untracked_own_rate"] == "") == (fields["capacity"] == "")
    leases = [int(count) for count in (fields["leases"] or "0 0 0 0 0 0").split(" ")]
    leased, finished, leased_since_report, released_since_report, least, peak = leases
    return Load(
        speed=float(fields["speed"]),
        capacity=int(fields["capacity"]) if fields["capacity"] else None,
        leased=leased,
        finished=finished,
        untracked=float(fields["untracked"]),
        untracked_own_rate=float(fields["untracked_own_rate"] or fields["untracked"]),
        decayed_at=float(fields["decayed_at"]),
        failing=bool(fields["failing"]),
        reported=int(fields["reported"]),
        reported_at=float(fields["reported_at"]),
        own=int(fields["own"]),
        work=float(fields["work"]),
        dispatched=int(fields["dispatched"]),
        dispatched_by_lottery=int(fields["dispatched_by_lottery"]),
        leased_since_report=leased_since_report,
        released_since_report=released_since_report,
        least=least,
        peak=peak,
        least_before=int(fields.get("least_before", 0)),
        peak_before=int(fields.get("peak_before", 0)),
        peak_since=float(fields.get("peak_since", 0)),
        checkpoint_at=float(fields["checkpoint_at"]),
        checkpoints=[(float(at), int(dispatched), int(leased)) for at, dispatched, leased in parsed],
    )


async def ttl_and_time(client: Client, key: str) -> tuple[int, float]:
    """The TTL of a key and the time of the store, both in milliseconds and of the same moment."""
    async with client.pipeline(transaction=True) as both:
        ttl, (seconds, microseconds) = await both.pttl(key).time().execute()
    return ttl, seconds * 1000 + microseconds / 1000


def close(a: dict[str, float], b: dict[str, float]) -> bool:
    return a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=1e-9, abs_tol=1e-6) for k in a)


async def check_invariants(
    client: Client, namespace: str, decays: bool = False, clock: float | None = None, slack: float = 1_000.0
) -> WholeState:
    """Assert that all parts of a namespace agree. Return what it holds.

    slack: in milliseconds, for the time at which the sweep looks for a worker.
    """
    state = await whole_state(client, namespace)
    indexed: dict[str, dict[str, float]] = {}
    decay_indexes: dict[str, dict[str, float]] = {}
    serving: dict[str, set[str]] = {}  # the pools, by model
    overflow: set[str] = set()
    clocks: set[str] = set()
    lotteries: dict[bool, dict[str, dict[str, float]]] = {False: {}, True: {}}  # by whether the workers are failing
    for name, fields in state.hashes.items():
        load = load_of(fields, state.checkpoints.get(name, []))
        lease_of_worker = re.compile(rf"(\d+-){{3}}{fields['incarnation']}(-[^@]+)?@{re.escape(name)}")
        leases = [lease for lease in state.leases if lease_of_worker.fullmatch(lease)]
        assert load.leased == len(leases), f"{name} has {load.leased} leases, and these are active: {leases}"
        assert 0 <= load.finished <= load.leased
        assert load.leased_since_report >= 0
        assert all(
            0 <= dispatched <= load.dispatched and 0 <= leased <= load.leased_since_report
            for _, dispatched, leased in load.checkpoints
        )
        is_draining = fields["draining"] != "0"
        needs_extension = bool(load.capacity or load.failing or is_draining)
        assert (fields["extended"] == "1") == needs_extension, f"the flag of {name} is wrong"
        assert fields["leases"] != "0 0 0 0 0 0"
        assert load.least <= load.leased <= load.peak
        pools = [] if is_draining else pools_of(fields)
        for model in json.loads(fields["models"]) if pools else []:
            serving.setdefault(model, set()).update(pools if len(pools) == 1 else {pools[0][0] + model})
        if pools and pools[0][0] == OVERFLOW:
            overflow.add(name)
        for pool in pools:
            decay_clock = OVERFLOW if pool[0] == OVERFLOW else pool
            if fields.get("engine"):  # its load does not decay
                assert decay_clock == OVERFLOW or decay_clock not in state.decay_clocks
            else:
                clocks.add(decay_clock)
                assert not decays or decay_clock in state.decay_clocks
            indexed.setdefault(pool, {})[f"{int(fields['index_seq']):016d}{name}"] = load.index_cost(
                load.decayed_at, 1.0, decays
            )
            score = state.decay_indexes.get(pool, {}).get(name)
            decay_indexes.setdefault(pool, {})[name] = score if score is not None else math.nan
            if score is not None and load.failing:
                assert score >= 2**53, f"{name} is failing, but not deprioritised"
                score -= 2**54
            if score is not None and decays and load.untracked > 0:
                assert score > -1e9
                assert math.isclose(score / 1e6, math.log(load.untracked / load.speed) + load.decayed_at, abs_tol=5e-6)
            elif score is not None:
                has_decayed = score > -1e9 and score / 1e6 - load.decayed_at < -700  # to 0, as a number
                assert has_decayed or -(2**53) <= score <= -1e9, f"{name} has no untracked load"
            lotteries[load.failing].setdefault(pool, {})[name] = load.speed
        if name in state.heartbeats:
            ttl, now = await ttl_and_time(client, f"{{{namespace}}}:heartbeat:{name}")
            if ttl == -2:
                continue  # it has expired since its name was read
            assert (ttl == -1) == (fields["check_heart_beat"] == "0"), f"{name} expires in {ttl} ms"
            if ttl == -1:
                assert state.workers[name] == float("inf")
            else:
                due = state.workers[name] - (now if clock is None else clock)
                assert abs(due - ttl) < slack, f"{name} expires in {ttl} ms, and the sweep looks for it in {due} ms"
    tokens = Counter(fields["registered_by"] for fields in state.hashes.values() if fields["registered_by"])
    assert {token: int(count) for token, count in state.token_counts.get("token_workers", {}).items()} == tokens
    holders = Counter(lease[1] for lease in map(_TOKEN_OF_LEASE.match, state.leases) if lease)
    assert {token: int(count) for token, count in state.token_counts.get("token_leases", {}).items()} == holders
    assert set(state.workers) == set(state.hashes)
    assert state.heartbeats <= set(state.hashes)
    assert state.checkpoints.keys() <= state.hashes.keys()
    assert state.indexes.keys() == indexed.keys()
    assert all(close(dict(state.indexes[model]), indexed[model]) for model in indexed), (state.indexes, indexed)
    assert state.decay_indexes == decay_indexes
    assert state.decay_clocks.keys() == (clocks if decays else set())
    sets = [pool for pool in indexed if pool.startswith("\x1e")]
    first = {pool: state.indexes[pool][0] for pool in sets}
    second = {pool: min((score, name) for name, score in state.decay_indexes[pool].items()) for pool in sets}
    heads = {pool: head.split() for pool, head in state.heads.get("cost_heads", {}).items()}
    expected: dict[str, Any] = {pool: (pytest.approx(score), member[:16]) for pool, (member, score) in first.items()}
    assert {pool: (float(score), seq) for pool, (score, seq) in heads.items()} == expected
    assert {pool: float(score) for pool, score in state.heads.get("decay_heads", {}).items()} == {
        pool: score for pool, (score, _) in second.items()
    }
    assert state.models == set(serving)
    assert state.overflow == overflow
    assert all(len(set(pools)) == len(pools) for pools in state.pools.values())
    assert {model: set(state.pools.get(model, [model])) for model in serving} == serving
    assert state.pools.keys() <= serving.keys()
    assert (state.lotteries, state.lotteries_failing) == (lotteries[False], lotteries[True])
    for model, cached in state.odds.items():
        weight, *numbers = map(float, cached.split())
        bands = speed_bands(sorted(state.lotteries[model].values()))
        assert numbers == [number for band in bands for number in band]
        assert weight == pytest.approx(sum(band.top * band.size for band in bands))
    return state


async def check_nothing_leaks(client: Client, namespace: str) -> None:
    """Assert that without workers a namespace keeps nothing but the sequence and what expires."""
    state = await whole_state(client, namespace)
    state.capacities, state.lists = {}, {}  # they are kept until they are removed
    assert state == WholeState({}, set(), {}, set(), {}, {}, {}, {})
    assert state.odds == {}
