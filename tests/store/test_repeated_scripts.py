"""Test that a script sent again after a lost reply leaves the same state and returns the same reply.

Each case calls a method of the registry once. From the same state, it then calls the method with its reply lost, so
that redis-py sends the same EVALSHA again. The test compares the type, value and TTL in minutes of all keys.
"""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio import Redis

from controller.domain.capacity import CapacityList, CapacityTarget
from controller.domain.worker import Worker
from controller.security.tokens import Plane, encode_token, token_of
from controller.store import keys, scripts
from controller.store.connection import connect
from controller.store.entries import EntryList, ListName
from controller.store.reconciliation import split
from controller.store.registry import Find, NewEvent, Registry, Request
from tests.conftest import CLOCK, STORES_WITH_RIGHTS
from tests.support import rights
from tests.support.clients import Client
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, leases_of
from tests.support.replies import Replies
from tests.support.samples import A, B, C, asks, reports, worker

NOW = 1_800_000_000_000
LEASE_MS = 60_000
NAMESPACE = "repeated"
NEW, EXPIRED = "http://127.0.0.1:1/new", "http://127.0.0.1:1/expired"
SERVERS = [store for store in STORES_WITH_RIGHTS if store != "fakeredis"]
READERS: dict[str, Callable[[Any, str], Any]] = {
    "string": lambda client, key: client.get(key),
    "hash": lambda client, key: client.hgetall(key),
    "set": lambda client, key: client.smembers(key),
    "stream": lambda client, key: client.xrange(key),
    "zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
}


@dataclass
class Replica:
    """A replica's registry, and the name with which it joins the fleet and acquires singleton jobs."""

    registry: Registry
    name: str


@dataclass
class Fleet:
    """A namespace with workers and two replicas. The replies to the first replica can be lost."""

    first: Replica
    second: Replica
    replies: Replies
    client: Client
    binary: Client  # reads the binary output of DUMP
    leases: list[str] = field(default_factory=list)
    registration: int = 0  # of worker A
    workers: list[Worker] = field(default_factory=list)
    saved: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    request_ids: "itertools.count[int]" = field(default_factory=itertools.count)
    draws: "itertools.count[int]" = field(default_factory=itertools.count)

    async def save(self) -> None:
        names = await self.binary.keys("*")
        async with self.binary.pipeline() as commands:
            for name in names:
                commands.pttl(name).dump(name)
            replies = await commands.execute()
        self.saved = {
            name: (max(0, ttl), dump)
            for name, ttl, dump in zip(names, replies[::2], replies[1::2], strict=True)
            if dump is not None  # the key that checks for writes expires after a second
        }

    async def reset(self) -> None:
        """Restore the saved state. Reset request ids and draws, so that each run repeats them."""
        self.request_ids, self.draws = itertools.count(1_000), itertools.count(1_000)
        async with self.binary.pipeline() as commands:
            commands.flushall()
            for name, (ttl, dump) in self.saved.items():
                commands.restore(name, ttl, dump)
            await commands.execute()

    async def keys(self) -> dict[str, Any]:
        """Return the type, value and TTL in minutes of each key, by its name without the namespace."""
        prefix = keys.namespace(NAMESPACE)
        check = keys.check(NAMESPACE)  # may expire at any moment
        names = [name for name in await self.client.keys(f"{prefix}*") if name != check]
        async with self.client.pipeline() as commands:
            for name in names:
                commands.type(name).pttl(name)
            replies = await commands.execute()
            for name, kind in zip(names, replies[::2], strict=True):
                READERS[kind](commands, name)
            values = await commands.execute()
        return {
            name.removeprefix(prefix): (
                kind,
                _without_ids(value) if kind == "stream" else value,
                ttl if ttl < 0 else round(ttl / 60_000),
            )
            for name, kind, ttl, value in zip(names, replies[::2], replies[1::2], values, strict=True)
        }


def _without_ids(events: list[tuple[str, dict[str, str]]]) -> list[dict[str, str]]:
    """Return the fields of events. Their ids contain the time."""
    return [fields for _, fields in events]


TOKEN = token_of("ops", Plane.ADMIN, "0123456789abcdef")
Call = Callable[[Registry, Replica, Fleet], Awaitable[Any]]


async def reconcile(registry: Registry) -> None:
    [reconciliation] = split({A: 2, B: 1}, [], 100)
    await registry.reconcile(reconciliation)


# By the name of the script, followed by the variant of the call.
CALLS: dict[str, Call] = {
    "check": lambda registry, *_: registry.check(),
    "correct_heartbeats": lambda registry, *_: registry.correct_heartbeats({A: 70.0, B: 800.0}),
    "dispatch_lottery": lambda registry, *_: dispatch_lottery(registry, asks(["m", "m", "n"])),
    "dispatch_lottery, leased": lambda registry, *_: dispatch_lottery(registry, asks(["m", "n"], LEASE_MS)),
    "dispatch_shortest_queue": lambda registry, *_: dispatch_shortest_queue(registry, asks(["m", "m", "n"])),
    "dispatch_shortest_queue, leased": lambda r, *_: dispatch_shortest_queue(r, asks(["m", "n"], LEASE_MS)),
    "dispatch_shortest_queue, affine": lambda r, *_: dispatch_shortest_queue(
        r, [Request("m", LEASE_MS, "", ("x", "y")), Request("m", 0, "", ("z", "y"))]
    ),
    "drain": lambda registry, *_: registry.drain(A),
    "drain, to resume": lambda registry, *_: registry.drain(A, drain=False),
    "complete_job": lambda registry, replica, _: registry.complete_job("held", replica.name, 600.0, "sent", 6_000.0),
    "complete_job, not done": lambda registry, replica, _: registry.complete_job(
        "held", replica.name, 600.0, "", 6_000.0
    ),
    "heartbeat": lambda registry, *_: registry.heartbeat(reports([(A, 3), (B, 0)])),
    "heartbeat, of served requests": lambda registry, *_: registry.clear_failures([A, B]),
    "heartbeat, of polls": lambda registry, *_: registry.take_poll_answers(reports([(A, 3), (B, 0)])),
    "record_events": lambda registry, *_: registry.record_events([NewEvent("store_recovered", {"reason": "a"})]),
    "list_events": lambda registry, *_: registry.list_events("", 100),
    "find_workers": lambda registry, *_: registry.find_workers([Find("n"), Find("absent")]),
    "rank_workers": lambda registry, *_: registry.rank_workers("m"),
    "list_models": lambda registry, *_: registry.list_models(),
    "list_models_by_kind": lambda registry, *_: registry.list_models_by_kind(False),
    "list_workers": lambda registry, *_: registry.list_workers(),
    "list_replicas": lambda registry, *_: registry.list_replicas(),
    "join_replicas": lambda registry, replica, _: registry.join_replicas(replica.name, 600.0),
    "join_replicas, to leave": lambda registry, replica, _: registry.leave_replicas(replica.name),
    "mark_listing": lambda registry, replica, _: registry.mark_listing(replica.name, 1, 2),
    "mark_listing, lost": lambda registry, replica, _: registry.mark_listing(replica.name, 2, 3),
    "register": lambda registry, *_: registry.register(worker(A, "m", "o", queue_length=1)),
    "register, new": lambda registry, *_: registry.register(worker(NEW, "m")),
    "refresh": lambda registry, _, fleet: registry.refresh(worker(A, "m", "o", queue_length=1), fleet.registration),
    "restore": lambda registry, *_: registry.restore(worker(NEW, "m"), draining=True),
    "release": lambda registry, _, fleet: registry.release(fleet.leases),
    "remove": lambda registry, *_: registry.remove(A),
    "remove, after a probe": lambda registry, _, fleet: registry.remove(A, only_if=fleet.registration),
    "renew": lambda registry, _, fleet: registry.renew(fleet.leases[0]),
    "report_failure": lambda registry, *_: registry.report_failure(A),
    "report_failure, of polls": lambda registry, *_: registry.report_failure(A, of_polls=True),
    "reconcile": lambda registry, *_: reconcile(registry),
    "shorten_leases": lambda registry, *_: registry.shorten_leases(),
    "sweep": lambda registry, *_: registry.sweep(600.0),
    "set_capacity": lambda registry, *_: registry.set_capacity(CapacityTarget(model="m"), 2),
    "set_capacity, to remove": lambda registry, *_: registry.set_capacity(CapacityTarget(worker_name=B), None),
    "apply_capacities": lambda registry, _, fleet: registry.apply_capacities(fleet.workers),
    "list_capacities": lambda registry, *_: registry.list_capacities(),
    "restore_capacities": lambda registry, *_: registry.restore_capacities(
        CapacityList(9, {CapacityTarget(model="m"): 4})
    ),
    "set_entry": lambda registry, *_: registry.set_token("web", TOKEN),
    "set_entry, to remove": lambda registry, *_: registry.set_token(TOKEN.name, None),
    "list_entries": lambda registry, *_: registry.list_entries(ListName.TOKENS),
    "restore_entries": lambda registry, *_: registry.restore_entries(
        ListName.TOKENS, EntryList(9, "change", {TOKEN.name: encode_token(TOKEN)})
    ),
    "acquire_job": lambda registry, replica, _: registry.acquire_job("free", replica.name, 600.0),
}
READ_ONLY = (
    "find_workers",
    "list_capacities",
    "list_entries",
    "list_events",
    "list_models",
    "list_models_by_kind",
    "list_replicas",
    "list_workers",
    "rank_workers",
)

# Replies that a second run changes, with the consequence. Remove a case from here once it passes.
REPLY_CHANGES = {
    "complete_job": "the replica assumes that its lock had expired, and sends its heartbeat to the parents again",
    "complete_job, not done": "the same as complete_job",
    "release": "the client reads that its lease was not active",
    "sweep": "the removed workers are neither logged nor counted",
}


def cases(faults: Mapping[str, str]) -> list[Any]:
    """Return all calls as parameters. Calls with a known fault are expected to fail."""
    return [
        pytest.param(case, marks=[pytest.mark.xfail(reason=faults[case], strict=True)] if case in faults else [])
        for case in CALLS
    ]


@pytest.fixture(params=SERVERS)
async def fleet(
    request: pytest.FixtureRequest, store_clock: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fleet]:
    url = request.getfixturevalue(f"{request.param.replace('-', '_')}_url")
    has_users = request.param == "redis-server-acl"
    replica, admin = (rights.as_user(url, user) if has_users else url for user in ("controller", "admin"))
    clients: list[Client] = [connect(each, timeout=60.0) for each in (replica, replica, admin)]

    def registry(client: Client) -> Registry:
        return Registry(client, NAMESPACE, 80.0, 60.0, True, 0.2, lambda: next(made.draws) % 10 / 10)

    options = clients[2].connection_pool.connection_kwargs
    binary = Redis(unix_socket_path=options["path"], username=options["username"], password=options["password"])
    replicas = Replica(registry(clients[0]), "first"), Replica(registry(clients[1]), "second")
    made = Fleet(*replicas, Replies(clients[0]), clients[2], binary)
    monkeypatch.setattr("secrets.token_hex", lambda size: f"{next(made.request_ids):0{2 * size}x}")
    await binary.flushall()
    await fill(made)
    await made.save()
    yield made
    await binary.flushall()
    for client in (*clients, binary):
        await client.aclose()


async def fill(fleet: Fleet) -> None:
    """Register workers: A with two leases, B with bookings, C draining, and one whose heartbeat has expired."""
    registry = fleet.first.registry
    await fleet.client.set(CLOCK, NOW)
    await registry.check()
    await registry.register(worker(A, "m", "n", capacity=4))
    for name, models in ((B, ["m"]), (C, ["m", "n"]), (EXPIRED, ["m"])):
        await registry.register(worker(name, *models))
    await registry.drain(C)
    await registry.take_poll_answers(reports([(A, 1)]))
    await registry.set_capacity(CapacityTarget(worker_name=B), 3)  # not applied yet
    await registry.set_token(TOKEN.name, TOKEN)
    await fleet.client.incrby(CLOCK, 1_000)
    fleet.leases = leases_of(await dispatch_shortest_queue(registry, asks(["n", "n"], LEASE_MS)))
    await dispatch_shortest_queue(registry, asks(["m"] * 4))
    await registry.acquire_job("held", fleet.first.name, 600.0)
    await registry.join_replicas(fleet.second.name, 600.0)
    await registry.mark_listing(fleet.first.name, 0, 1)
    await fleet.client.delete(keys.heartbeat(NAMESPACE, EXPIRED))
    await fleet.client.zadd(keys.workers(NAMESPACE), {EXPIRED: 1.0})
    fleet.workers = (await registry.list_workers()).workers
    fleet.registration = int(await fleet.client.hget(keys.worker(NAMESPACE, A), "registration"))
    await fleet.client.incrby(CLOCK, 100)


async def call(case: str, replica: Replica, fleet: Fleet) -> Any:
    return await CALLS[case](replica.registry, replica, fleet)


async def after_one_run(fleet: Fleet, case: str, other: str | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the reply of a call, and all keys after it and the later call of another replica."""
    await fleet.reset()
    reply = await call(case, fleet.first, fleet)
    if other:
        await call(other, fleet.second, fleet)
    return reply, await fleet.keys()


async def after_two_runs(fleet: Fleet, case: str, other: str | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the same for a call whose reply is lost. The other replica calls before the second run."""
    await fleet.reset()
    fleet.replies.lose(between=(lambda: call(other, fleet.second, fleet)) if other else None)
    reply = await call(case, fleet.first, fleet)
    assert fleet.replies.lost == 1
    return reply, await fleet.keys()


def test_each_script_has_a_case() -> None:
    assert {case.partition(",")[0] for case in CALLS} == set(scripts.names())


@pytest.mark.parametrize("case", cases({}))
async def test_second_run_changes_nothing(fleet: Fleet, case: str) -> None:
    _, once = await after_one_run(fleet, case)
    _, twice = await after_two_runs(fleet, case)
    assert twice == once


@pytest.mark.parametrize("case", cases(REPLY_CHANGES))
async def test_second_run_returns_the_same_reply(fleet: Fleet, case: str) -> None:
    once, _ = await after_one_run(fleet, case)
    twice, _ = await after_two_runs(fleet, case)
    if case == "correct_heartbeats":
        return  # the second run counts a heartbeat again if a millisecond has passed
    if case == "list_workers":
        once, twice = once._replace(clock=None), twice._replace(clock=None)
        once.workers[:], twice.workers[:] = ([each.name for each in listed.workers] for listed in (once, twice))
    assert twice == once


@pytest.mark.slow
@pytest.mark.parametrize("fleet", ["embedded"], indirect=True)
@pytest.mark.parametrize("case", cases({}))
async def test_second_run_does_not_undo_calls_of_another_replica(fleet: Fleet, case: str) -> None:
    differing = []
    for other in CALLS.keys() - set(READ_ONLY):
        _, once = await after_one_run(fleet, case, other)
        _, twice = await after_two_runs(fleet, case, other)
        if twice != once:
            differing.append((other, [key for key in {**once, **twice} if once.get(key) != twice.get(key)]))
    assert not differing
