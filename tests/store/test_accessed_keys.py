"""Test that script headers list exactly the keys that the scripts access.

The calls below reach the rare paths of all scripts. test_oracle.py checks the other paths.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest

from controller.domain.capacity import CapacityTarget
from controller.domain.dispatch import DispatchMethod
from controller.domain.events import FIRST
from controller.domain.worker import Registration
from controller.security.tokens import Plane, encode_token, token_of
from controller.store import keys
from controller.store.connection import connect
from controller.store.entries import EntryList, ListName
from controller.store.reconciliation import split
from controller.store.registry import Find, NewEvent, Registry, Request
from tests.conftest import CLOCK
from tests.support.clients import Client
from tests.support.dispatches import dispatch, dispatch_lottery, dispatch_shortest_queue, leases_of
from tests.support.headers import listed_accesses
from tests.support.key_accesses import record_accesses, recorded_accesses
from tests.support.pools import allow_sets
from tests.support.samples import A, B, C, reports, worker

NOW = 1_800_000_000_000
LEASE_MS = 60_000


@pytest.fixture
async def client(embedded_url: str) -> AsyncIterator[Client]:
    client: Client = connect(embedded_url, 60.0)
    await client.set(CLOCK, NOW)
    yield client
    await client.flushall()
    await client.aclose()


def of_token(name: str, *models: str) -> Registration:
    return replace(worker(name, *models), registered_by="rack-1")


def asks(models: Iterable[str], lease_ms: int = 0) -> list[Request]:
    """Return a request for each model. Those with a lease count for a token."""
    return [Request(model, lease_ms, "chat" if lease_ms else "") for model in models]


class Calls:
    """A registry and its namespace, in which the test lets workers expire."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.registry = Registry(
            client,
            namespace,
            90.0,
            60.0,
            booking_decay=True,
            draw=lambda: 0.5,
            max_workers=99,
            max_leases=99,
            max_workers_per_token=99,
            max_leases_per_token=99,
            max_affinity_keys=2,
        )

    async def expired(self, name: str, *models: str) -> None:
        """Register a worker that was drawn once, and let its heartbeat expire."""
        await self.registry.register(of_token(name, *models))
        await dispatch_lottery(self.registry, asks(models[:1]))
        await self.client.delete(keys.heartbeat(self.namespace, name))

    async def drained(self, name: str, *models: str) -> None:
        await self.expired(name, *models)
        await self.client.set(keys.heartbeat(self.namespace, name), "1", px=90_000)
        await self.registry.drain(name)
        await self.client.delete(keys.heartbeat(self.namespace, name))

    async def expire_and_find(self) -> None:
        """Call each script that purges workers while some have expired."""
        registry = self.registry
        for models in (["m"], ["m", "n"]):
            await self.expired(A, *models)
            await dispatch_shortest_queue(registry, asks(["m"]))
            await self.expired(A, *models)
            await dispatch_lottery(registry, asks(["m"]))
            await self.expired(A, *models)
            await registry.heartbeat(reports([(A, 1)]))
            await self.expired(A, *models)
            await registry.drain(A, False)
            await self.expired(A, *models)
            await registry.restore(worker(A, *models))
            await self.expired(A, *models)
            await self.client.zadd(keys.workers(self.namespace), {A: 0})
            await registry.sweep(0.001)
            for purge in (
                lambda: registry.heartbeat(reports([(A, 1)])),
                lambda: registry.register(of_token(A)),
                lambda: registry.restore(worker(A)),
                lambda: registry.remove(A),
                lambda: self.client.zadd(keys.workers(self.namespace), {A: 0}),
            ):
                await self.drained(A, *models)
                await purge()
                await self.client.delete(keys.sweep(self.namespace))
                await registry.sweep(60.0)
                await registry.drain(A, False)
            await registry.remove(A)

    async def use(self) -> None:
        """Use a worker with a set of models and one with a capacity."""
        registry, client = self.registry, self.client
        await registry.register(worker(A, "m", "n"))
        await registry.register(worker(B, "m", capacity=4))
        await registry.take_poll_answers(reports([(A, 0), (B, 0)]))
        leases = []
        for method in DispatchMethod:
            for _ in range(4):
                leases += leases_of(await dispatch(registry, method, asks(["m", "n"], LEASE_MS)))
                await dispatch(registry, method, asks(["m", "m", "n", "absent"]))
                await client.incrby(CLOCK, 60)
        for number in range(3):
            affine = [Request("m", LEASE_MS, "chat", (f"key-{number}", "all"))]
            leases += leases_of(await dispatch_shortest_queue(registry, affine))
        await registry.renew(leases[0])
        await registry.release(leases[:6])
        await registry.report_failure(A)
        await registry.report_failure(B, of_polls=True)
        await dispatch_lottery(registry, asks(["n"]))
        await registry.find_workers([Find("n"), Find("m")])
        await registry.rank_workers("m")
        await dispatch_shortest_queue(registry, asks(["n", "m"]))
        await registry.heartbeat(reports([(A, 2), (B, 2)]))
        await registry.drain(A)
        await registry.drain(A, False)
        await registry._run("dispatch_shortest_queue", "unanswered", 60_000, 1, 0, "m", f"{LEASE_MS}@chat@99", "m", 0)
        await client.incrby(CLOCK, 60)
        await dispatch_shortest_queue(registry, asks(["m"] * 3))
        for part in split({A: 1}, ["unanswered"], 1_000_000):
            await registry.reconcile(part)
        known = {each.name: each for each in (await registry.list_workers()).workers}
        for name, models in ((A, ["o"]), (B, ["m", "n"])):
            await registry.refresh(of_token(name, *models), known[name].registration)
        known = {each.name: each for each in (await registry.list_workers()).workers}
        await registry.refresh(worker(B, "m"), known[B].registration)
        await registry.register(worker(B, "m", "n"))
        await self.set_capacities()
        token = token_of("ops", Plane.ADMIN, "0123456789abcdef")
        await registry.set_token("ops", token)
        await registry.restore_entries(ListName.TOKENS, EntryList(9, "change", {"ops": encode_token(token)}))
        await registry.list_entries(ListName.TOKENS)
        await registry.set_token("ops", None)
        for name in (ListName.ENGINES, ListName.ROUTES):
            await registry.set_entry(name, "a", "{}", limit=1)
            await registry.restore_entries(name, EntryList(9, "change", {"a": "{}"}))
            await registry.list_entries(name)
            await registry.set_entry(name, "a", "", limit=1)
        await registry.register(worker(B, "p"))
        await registry.restore(of_token(C, "m", "n"))
        await registry.remove(C)
        await registry.restore(worker(C))
        await registry.list_models()
        await registry.list_models(multimodal=False)
        await client.zadd(keys.leases(self.namespace), dict.fromkeys(leases, NOW))
        for call in (
            lambda: dispatch_shortest_queue(registry, asks(["p"], LEASE_MS)),
            lambda: dispatch_lottery(registry, asks(["p"], LEASE_MS)),
            lambda: registry.heartbeat(reports([(B, 1)])),
            lambda: registry.sweep(0.001),
        ):
            [lease] = leases_of(await dispatch_shortest_queue(registry, asks(["p"], LEASE_MS)))
            await client.incrby(CLOCK, 60)
            await dispatch_shortest_queue(registry, asks(["p"]))  # adds a checkpoint that counts the lease
            await client.zadd(keys.leases(self.namespace), {lease: NOW})
            await client.delete(keys.sweep(self.namespace))
            await call()

    async def set_capacities(self) -> None:
        registry = self.registry
        await registry.set_capacity(CapacityTarget(model="m"), 3)
        await registry.apply_capacities((await registry.list_workers()).workers)
        capacities = await registry.list_capacities()
        await registry.restore_capacities(capacities._replace(version=capacities.version + 1))
        await registry.set_capacity(CapacityTarget(model="m"), None)

    async def coordinate(self) -> None:
        registry = self.registry
        await registry.check()
        await registry.correct_heartbeats({A: 1_000.0})
        await self.client.pexpire(keys.heartbeat(self.namespace, A), 1_000)
        await registry.correct_heartbeats({A: 30.0})
        await dispatch_shortest_queue(registry, asks(["p"], LEASE_MS))
        await self.client.incrby(CLOCK, -10_000)
        await registry.shorten_leases()
        for ttl in (60.0, 0.0):
            await registry.mark_listing("replica", 0, 1)
            await registry.join_replicas("replica", ttl)
            await registry.list_replicas()
        await registry.acquire_job("job", "replica", 60.0)
        await registry.complete_job("job", "replica", 1.0, "result", 60.0)
        await registry.record_events([NewEvent("store_recovered", {"reason": "a"})])
        await registry.list_events("", 10)
        await registry.list_events(FIRST, 10)


@pytest.mark.usefixtures("store_clock")
async def test_headers_list_the_keys_that_scripts_access(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    record_accesses(monkeypatch)
    for sets in (24, 0):
        with monkeypatch.context() as patch:
            allow_sets(patch, sets)
            calls = Calls(client, f"keys-{sets}")
        await calls.expire_and_find()
        await calls.use()
        await calls.coordinate()
    accesses = await recorded_accesses(client)
    assert sorted(accesses - listed_accesses()) == []
    assert sorted(listed_accesses() - accesses) == []
