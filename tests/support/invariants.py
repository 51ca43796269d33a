"""What must hold in Redis after anything: indexes, registry and worker hashes agree, and no key is left behind."""

import json
import math
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from controller.domain.dispatch import speed_bands
from controller.domain.load import Load

REST = "\x1f"
TTL_KINDS = {"reply", "removed", "draining", "sweep", "refresh", "check", "replicas", "duty", "told"}


@dataclass
class WholeState:
    """Everything a namespace holds, except what goes by itself."""

    hashes: dict[str, dict[str, str]]
    heartbeats: set[str]
    workers: dict[str, float]
    models: set[str]
    indexes: dict[str, list[tuple[str, float]]]
    fading: dict[str, dict[str, float]]
    fades: dict[str, str]
    lotteries: dict[str, dict[str, float]]
    lotteries_failing: dict[str, dict[str, float]] = field(default_factory=dict)
    pools: dict[str, list[str]] = field(default_factory=dict)
    rest: set[str] = field(default_factory=set)
    fronts: dict[str, dict[str, str]] = field(default_factory=dict)
    odds: dict[str, str] = field(default_factory=dict, compare=False)  # a cache of what lotteries tells
    leases: list[str] = field(default_factory=list, compare=False)  # those of workers that are gone end by themselves


async def whole_state(client: Redis, namespace: str) -> WholeState:
    """Read a namespace, asserting that each of its keys is of a known kind and has a TTL if it should."""
    state = WholeState({}, set(), {}, set(), {}, {}, {}, {})
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
        elif kind == "fading":
            state.fading[rest] = dict(await client.zrange(key, 0, -1, withscores=True))
        elif kind == "fade":
            if await client.pttl(key) == -1:  # else it goes by itself: no worker serves the model
                state.fades[rest] = await client.get(key)
        elif kind == "leases":
            assert await client.pttl(key) != -1, f"{key} would stay for ever"
            state.leases = [lease for lease, _ in await client.zrange(key, 0, -1, withscores=True)]
        elif kind == "lottery":
            state.lotteries[rest] = dict(await client.zrange(key, 0, -1, withscores=True))
        elif kind == "lottery_failing":
            state.lotteries_failing[rest] = dict(await client.zrange(key, 0, -1, withscores=True))
        elif kind == "pools":
            state.pools[rest] = (await client.get(key)).split("\n")[:-1]
        elif key == f"{{{namespace}}}:rest":
            state.rest = await client.smembers(key)
        elif kind.startswith("fronts_"):
            state.fronts[kind] = await client.hgetall(key)
        elif kind == "odds":
            state.odds[rest] = await client.get(key)
        elif kind in TTL_KINDS:
            assert await client.pttl(key) != -1, f"{key} would stay for ever"
        else:
            assert (kind in ("sequence", "schema", "epoch"), rest) == (True, ""), f"{key} is a key of no known kind"
    return state


def pools_of(fields: dict[str, str]) -> list[str]:
    """The pools of a worker: see lua/include/pools_of.lua."""
    models = json.loads(fields["models"])
    return [fields["pool"]] if len(fields["pool"]) > 1 else [fields["pool"] + model for model in models]


# The parts of the field "load", as lua/include/write_load.lua writes them.
LOAD = ["unleased", "expected", "phase", "turn", "place", "booked", "marked_at", "speed"]
MORE = ["leased", "ended", "lent", "done", "capacity", "failing", "draining"]


def parts_of(fields: dict[str, str]) -> dict[str, str]:
    """The parts of the field "load", also of a worker of which the second half is left out."""
    told = fields["load"].split()
    more = told[len(LOAD) :]
    assert more != ["0", "0", "0", "0", "-", "-", "0"], "what tells nothing is left out"
    return dict(zip([*LOAD, *MORE], [*told[: len(LOAD)], *(more or ["0", "0", "0", "0", "-", "-", "0"])], strict=True))


def load_of(fields: dict[str, str]) -> Load:
    """A worker's load as its hash tells it."""
    told = parts_of(fields)
    marks = [mark.split(":") for mark in fields["marks"].split(";")[:-1]]
    assert (told["expected"] == "-") == (told["capacity"] == "-")
    return Load(
        speed=float(told["speed"]),
        capacity=None if told["capacity"] == "-" else int(told["capacity"]),
        leased=int(told["leased"]),
        ended=int(told["ended"]),
        unleased=float(told["unleased"]),
        expected=float(told["unleased" if told["expected"] == "-" else "expected"]),
        faded_from=float(told["phase"]),
        failing=told["failing"] != "-",
        reported=int(fields["reported"]),
        reported_at=float(fields["reported_at"]),
        own=int(fields["own"]),
        work=float(fields["work"]),
        booked=int(told["booked"]),
        drawn=int(fields["drawn"]),
        lent=int(told["lent"]),
        done=int(told["done"]),
        marked_at=float(told["marked_at"]),
        marks=[(float(at), int(booked), int(lent)) for at, booked, lent in marks],
    )


async def ttl_and_time(client: Redis, key: str) -> tuple[int, float]:
    """The TTL of a key and the time of the store, both in milliseconds and of the same moment."""
    async with client.pipeline(transaction=True) as both:
        ttl, (seconds, microseconds) = await both.pttl(key).time().execute()
    return ttl, seconds * 1000 + microseconds / 1000


def close(a: dict[str, float], b: dict[str, float]) -> bool:
    return a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=1e-9, abs_tol=1e-6) for k in a)


async def check_invariants(
    client: Redis, namespace: str, fades: bool = False, clock: float | None = None, slack: float = 1_000.0
) -> WholeState:
    """Assert that all parts of a namespace agree; returns what it holds.

    slack is in milliseconds, for the time at which the sweep looks for a worker.
    """
    state = await whole_state(client, namespace)
    indexed: dict[str, dict[str, float]] = {}
    fading: dict[str, dict[str, float]] = {}
    serving: dict[str, set[str]] = {}  # the pools, by model
    rest: set[str] = set()
    clocks: set[str] = set()
    drawn_from: dict[bool, dict[str, dict[str, float]]] = {False: {}, True: {}}  # by whether they fail
    for name, fields in state.hashes.items():
        load = load_of(fields)
        told = parts_of(fields)
        assert (float(told["speed"]), told["capacity"]) == (float(fields["speed"]), fields["capacity"] or "-")
        leases = [lease for lease in state.leases if lease.endswith(f"-{fields['life']}@{name}")]
        assert load.leased == len(leases), f"{name} has {load.leased} leases, and these are out: {leases}"
        assert 0 <= load.ended <= load.leased
        assert load.lent >= 0
        assert all(0 <= booked <= load.booked and 0 <= lent <= load.lent for _, booked, lent in load.marks)
        pools = pools_of(fields) if told["draining"] == "0" else []
        for model in json.loads(fields["models"]) if pools else []:
            serving.setdefault(model, set()).update(pools if len(pools) == 1 else {pools[0][0] + model})
        if pools and pools[0][0] == REST:
            rest.add(name)
        for pool in pools:
            decay_clock = REST if pool[0] == REST else pool
            clocks.add(decay_clock)
            assert not fades or decay_clock in state.fades
            indexed.setdefault(pool, {})[f"{int(told['place']):016d}{name}"] = load.index_cost(
                load.faded_from, 1.0, fades
            )
            score = state.fading.get(pool, {}).get(name)
            fading.setdefault(pool, {})[name] = score if score is not None else math.nan
            if score is not None and load.failing:
                assert score >= 2**53, f"{name} fails, and is not behind the others"
                score -= 2**54
            if score is not None and fades and load.unleased > 0:
                assert score > -1e9
                assert math.isclose(score / 1e6, math.log(load.unleased / load.speed) + load.faded_from, abs_tol=5e-6)
            elif score is not None:
                has_faded_away = score > -1e9 and score / 1e6 - load.faded_from < -700  # to 0, as a number
                assert has_faded_away or -(2**53) <= score <= -1e9, f"{name} has nothing that fades"
            drawn_from[load.failing].setdefault(pool, {})[name] = load.speed
        if name in state.heartbeats:
            ttl, now = await ttl_and_time(client, f"{{{namespace}}}:heartbeat:{name}")
            if ttl == -2:
                continue  # it has expired since its name was read
            assert (ttl == -1) == (fields["check_heart_beat"] == "0"), f"{name} expires in {ttl} ms"
            if ttl == -1:
                assert state.workers[name] == float("inf")
            else:
                due = state.workers[name] - (now if clock is None else clock)
                assert abs(due - ttl) < slack, f"{name} expires in {ttl} ms, and is looked for in {due} ms"
    assert set(state.workers) == set(state.hashes)
    assert state.heartbeats <= set(state.hashes)
    assert state.indexes.keys() == indexed.keys()
    assert all(close(dict(state.indexes[model]), indexed[model]) for model in indexed), (state.indexes, indexed)
    assert state.fading == fading
    assert state.fades.keys() == (clocks if fades else set())
    sets = [pool for pool in indexed if pool.startswith("\x1e")]
    first = {pool: state.indexes[pool][0] for pool in sets}
    second = {pool: min((score, name) for name, score in state.fading[pool].items()) for pool in sets}
    seen = {pool: front.split() for pool, front in state.fronts.get("fronts_model", {}).items()}
    assert {pool: (float(score), turn) for pool, (score, turn) in seen.items()} == {
        pool: (pytest.approx(score), member[:16]) for pool, (member, score) in first.items()
    }
    assert {pool: float(score) for pool, score in state.fronts.get("fronts_fading", {}).items()} == {
        pool: score for pool, (score, _) in second.items()
    }
    assert state.models == set(serving)
    assert state.rest == rest
    assert all(len(set(pools)) == len(pools) for pools in state.pools.values())
    assert {model: set(state.pools.get(model, [model])) for model in serving} == serving
    assert state.pools.keys() <= serving.keys()
    assert (state.lotteries, state.lotteries_failing) == (drawn_from[False], drawn_from[True])
    for model, cached in state.odds.items():
        weight, *numbers = map(float, cached.split())
        bands = speed_bands(sorted(state.lotteries[model].values()))
        assert numbers == [number for band in bands for number in band]
        assert weight == pytest.approx(sum(band.top * band.size for band in bands))
    return state


async def check_nothing_leaks(client: Redis, namespace: str) -> None:
    """Assert that without workers a namespace keeps nothing but the sequence and what expires by itself."""
    state = await whole_state(client, namespace)
    assert state == WholeState({}, set(), {}, set(), {}, {}, {}, {})
    assert state.odds == {}
