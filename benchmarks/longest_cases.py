"""The calls that benchmarks/longest_scripts.py measures, in groups. Each group is a part of a round."""

from collections.abc import Awaitable, Callable
from typing import Final

from longest_fleets import BATCH, BATCHES, LEASE_MS, NAMESPACE, Subject, batches

from controller.domain.capacity import MAX_CAPACITIES, CapacityTarget
from controller.domain.dispatch import DispatchMethod
from controller.domain.model_route import MAX_FALLBACKS, MAX_ROUTES, MAX_TARGETS, ModelRoute
from controller.security.tokens import Plane, encode_token, token_of
from controller.store import keys
from controller.store.entries import EntryList, ListName
from controller.store.reconciliation import Reconciliation, split
from controller.store.registry import (
    DrainCall,
    FailureCall,
    Find,
    NewEvent,
    RemoveCall,
    Report,
)
from controller.store.runner import new_id
from controller.store.tokens import MAX_STORED

RELEASED_AT_ONCE: Final = 1_000  # by the Reconciler after an outage
RECONCILED_AT_ONCE: Final = 1_000
SINGLE_CALLS: Final = 64  # calls of a kind that is never batched
SWEPT_LEASES: Final = 10_000


async def dispatches(s: Subject) -> None:
    for method in DispatchMethod:
        for case, requests in (("256 of many models", s.requests), ("256 of one model", s.requests_of_one_model)):
            with s.registry.case(case):
                for _ in range(BATCHES):
                    await s.dispatch(method, requests())
            with s.registry.case(f"{case}, leased"):
                choices = [choice for _ in range(BATCHES) for choice in await s.dispatch(method, requests(LEASE_MS))]
            leases = [choice.lease for choice in choices]
            with s.registry.case(case):
                for some in batches(leases):
                    await s.registry.renew_many(some)
                    await s.registry.release(some)
    with s.registry.case("256 with affinities"):
        for number in range(BATCHES):
            affine = [
                request._replace(affinity=tuple(f"{number}-{i}-{key}" for key in range(12)))
                for i, request in enumerate(s.requests_of_one_model())
            ]
            await s.dispatch(DispatchMethod.SHORTEST_QUEUE, affine)
    leases = await s.grant(min(RELEASED_AT_ONCE, s.fleet.leases))
    with s.registry.case("1,000 after an outage"):
        await s.registry.release(leases)
    with s.registry.case("256 of many models"):
        for _ in range(BATCHES):
            await s.registry.find_workers([Find(request.model) for request in s.requests()])
    with s.registry.case("100 models"):
        for request in s.requests()[:100]:
            await s.registry.rank_workers(request.model)


async def reports(s: Subject) -> None:
    for of_polls in (False, True):
        with s.registry.case("256 polls" if of_polls else "256 heartbeats"):
            for some in batches(s.first):
                reports = [Report(each, i % 7) for i, each in enumerate(some)]
                await (s.registry.take_poll_answers if of_polls else s.registry.heartbeat)(reports)
    with s.registry.case("256 failures"):
        for some in batches(s.first):
            await s.registry.report_failure_many([FailureCall(each) for each in some])
    with s.registry.case("256 heartbeats of failing"):
        for some in batches(s.first):
            await s.registry.heartbeat([Report(each, 0) for each in some])
    with s.registry.case("100 in a page"):
        await s.registry.correct_heartbeats(dict.fromkeys(s.names, 80_000.0))


async def operations(s: Subject) -> None:
    for drain in (True, False):
        with s.registry.case("256 to drain" if drain else "256 to resume"):
            for some in batches(s.first):
                await s.registry.drain_many([DrainCall(each, drain) for each in some])
    with s.registry.case("256 removals"):
        for some in batches(s.first):
            await s.registry.remove_many([RemoveCall(each) for each in some])
    with s.registry.case("256 new"):
        await s.register(s.first)
    with s.registry.case("256 known"):
        await s.register(s.first)
    registered = {worker.name: worker.registration for worker in (await s.registry.list_workers()).workers}
    single = s.first[:SINGLE_CALLS]
    with s.registry.case("one"):
        for registration, _ in s.registrations(single):
            await s.registry.refresh(registration, registered[registration.name])
    await s.expire_heartbeats(single)
    with s.registry.case("one, expired"):
        for registration, _ in s.registrations(single):
            await s.registry.restore(registration)


async def listings(s: Subject) -> None:
    with s.registry.case("100 in a page"):
        await s.registry.list_workers()
        await s.registry.list_models()
        for multimodal in (False, True):
            await s.registry.list_models(multimodal)


async def capacities(s: Subject) -> None:
    of_workers = {CapacityTarget(worker_name=each): 4 for each in s.names}
    of_models = {CapacityTarget(model=f"other-{i}"): 4 for i in range(MAX_CAPACITIES)}
    limited = dict([*of_workers.items(), *of_models.items()][: MAX_CAPACITIES - 1])
    workers = (await s.registry.list_workers()).workers
    with s.registry.case("100 in a page"):
        await s.configure(limited)
        await s.registry.list_capacities()
        await s.registry.apply_capacities(workers)
    with s.registry.case("one"):
        await s.registry.set_capacity(CapacityTarget(model=s.fleet.models(0)[0]), 4)
    with s.registry.case("256 known, capacities"):
        await s.register(s.first)
    s.version += 1  # of set_capacity()
    await s.configure({})
    await s.registry.apply_capacities(workers)


async def outages(s: Subject) -> None:
    with s.registry.case("1,000 bookings"):
        for part in split(dict.fromkeys(s.names[:RECONCILED_AT_ONCE], 1), [], 0):
            await s.registry.reconcile(part)
    with s.registry.case("1,000 unknown calls"):
        await s.registry.reconcile(Reconciliation(new_id(), 0, [new_id() for _ in range(1_000)], {}))
    for case, lease_ms in (("calls of 256", 0), ("calls of 256, leased", LEASE_MS)):
        unanswered: list[str] = []
        for method in DispatchMethod:
            for requests in (s.requests(lease_ms), s.requests_of_one_model(lease_ms)):
                await s.dispatch(method, requests)
                unanswered.append(s.registry.last_id)
        with s.registry.case(case):
            await s.registry.reconcile(Reconciliation(new_id(), 0, unanswered, {}))


async def tokens(s: Subject) -> None:
    patterns = [f"model-of-team-{i}-*" for i in range(64)]
    created = [token_of(f"token-{i}", Plane.WORKER, "0" * 32, models=patterns) for i in range(MAX_STORED - 1)]
    with s.registry.case(f"{MAX_STORED:,} tokens"):
        s.tokens_version += 3  # set_token() adds 2
        records = {token.name: encode_token(token) for token in created}
        await s.registry.restore_entries(ListName.TOKENS, EntryList(s.tokens_version, "change", records))
        await s.registry.set_token("token", created[0])
        await s.registry.list_entries(ListName.TOKENS)
        await s.registry.set_token("token", None)


async def routes(s: Subject) -> None:
    targets = {f"organisation/model-{i}": i + 1 for i in range(MAX_TARGETS)}
    record = ModelRoute(targets, tuple(f"organisation/fallback-{i}" for i in range(MAX_FALLBACKS))).encode()
    records = {f"organisation/name-{i}": record for i in range(MAX_ROUTES - 1)}
    with s.registry.case(f"{MAX_ROUTES:,} routes"):
        s.routes_version += 3  # set_entry() adds 2
        await s.registry.restore_entries(ListName.ROUTES, EntryList(s.routes_version, "change", records))
        await s.registry.set_entry(ListName.ROUTES, "name", record, limit=MAX_ROUTES)
        await s.registry.list_entries(ListName.ROUTES)
        await s.registry.set_entry(ListName.ROUTES, "name", "", limit=MAX_ROUTES)


async def coordination(s: Subject) -> None:
    with s.registry.case("100 replicas"):
        for i in range(100):
            await s.registry.join_replicas(f"replica-{i}", 60.0)
            await s.registry.list_replicas()
            await s.registry.mark_listing(f"replica-{i}", 0, 1)
            await s.registry.check()
            await s.registry.acquire_job("job", f"replica-{i}", 60.0)
            await s.registry.complete_job("job", f"replica-{i}", 0.001, "result", 60.0)
    with s.registry.case("1,000 events"):
        for _ in range(10):
            await s.registry.record_events([NewEvent("parent_failing", {"reason": "x" * 1_000})] * 50)
        await s.registry.list_events("", 1_000)


async def expired_leases(s: Subject) -> None:
    leases, saved = keys.leases(NAMESPACE), f"{NAMESPACE}-saved"
    await s.grant(s.fleet.leases)
    with s.registry.case("100 in a page"):
        await s.registry.shorten_leases()
    await s.client.zunionstore(saved, {leases: 0.5})  # half of the present time is in the past

    async def measure(case: str, call: Callable[[], Awaitable[object]]) -> None:
        await s.client.copy(saved, leases, replace=True)
        with s.registry.case(case):
            for _ in range(BATCHES):
                await call()

    for method in DispatchMethod:
        await measure("1, expired leases", lambda: s.dispatch(method, s.requests(LEASE_MS)[:1]))  # noqa: B023 - it is called at once
        await measure("256, expired leases", lambda: s.dispatch(method, s.requests(LEASE_MS)))  # noqa: B023 - as above
    await measure("256, expired leases", lambda: s.registry.heartbeat([Report(each, 1) for each in s.first[:BATCH]]))
    await s.client.copy(saved, leases, replace=True)
    await s.client.zremrangebyrank(leases, SWEPT_LEASES, -1)  # the others would only take long
    with s.registry.case("expired leases"):
        await s.registry.sweep(0.001)
    await s.client.delete(saved, leases)
    await s.register(s.names)  # ends the leases that the workers count


async def expired_workers(s: Subject) -> None:
    """All heartbeats expire, one call after the other notices some, and all workers register again."""
    await s.expire_heartbeats(s.names)
    with s.registry.case("all expired"):
        await s.registry.list_workers()
        await s.registry.list_models()
        await s.registry.list_models(multimodal=False)
        await s.registry.find_workers([Find(request.model) for request in s.requests()])
        await s.registry.rank_workers(s.requests()[0].model)
        for method in DispatchMethod:
            await s.dispatch(method, s.requests())
            await s.dispatch(method, s.requests_of_one_model(LEASE_MS))
        for some in batches(s.first):
            await s.registry.heartbeat([Report(each, 1) for each in some])
    with s.registry.case("all expired"):
        await s.registry.sweep(0.001)
    await s.register(s.names)


GROUPS: Final = (
    dispatches,
    reports,
    operations,
    listings,
    capacities,
    outages,
    tokens,
    routes,
    coordination,
    expired_leases,
    expired_workers,
)
