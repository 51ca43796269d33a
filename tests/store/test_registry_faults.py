"""Test the registry on a store that rejects calls, is full, is misconfigured, or holds keys of other programs."""

from dataclasses import replace

import pytest

from controller.domain.errors import StoreIncompatible, StoreRejection, StoreUnavailable
from controller.store import keys
from controller.store.connection import connect
from controller.store.registry import SCHEMA, Registry
from tests.conftest import Store
from tests.support.dispatches import dispatch_shortest_queue
from tests.support.invariants import whole_state
from tests.support.samples import A, B, C, asks, reports, worker

D = "http://d:1"


async def test_check_passes_on_a_writable_store(store: Store, registry: Registry) -> None:
    await registry.check()
    assert await store.client.ping()


async def test_check_rejects_a_store_that_refuses_writes(store: Store, registry: Registry) -> None:
    if store.kind == "fakeredis":
        pytest.skip("fakeredis has neither a memory limit nor replication")
    for option, value, back in (("maxmemory", "1", "0"), ("replica-read-only", "yes", "yes")):
        if option == "replica-read-only":
            await store.client.replicaof("127.0.0.1", "1")
        await store.client.config_set(option, value)
        try:
            with pytest.raises(StoreUnavailable, match=r"OutOfMemory|ReadOnly"):
                await registry.check()
        finally:
            await store.client.config_set(option, back)
            await store.client.replicaof("NO", "ONE")
    await registry.check()


@pytest.mark.parametrize("token", ["", "rack-1"])
async def test_full_store_rejects_writes_without_partial_changes_and_still_purges(
    store: Store, registry: Registry, token: str
) -> None:
    if store.kind == "fakeredis":
        pytest.skip("fakeredis has no memory limit")
    for name in (A, B, C, D):
        await registry.register(replace(worker(name), registered_by=token))
    for name in (A, B):
        await store.expire_heartbeat(name)
    await store.client.zadd(keys.workers(store.namespace), {C: 1}, xx=True)  # so that the sweep reaches it first
    before = await whole_state(store.client, store.namespace)
    await store.client.config_set("maxmemory", "1")
    try:
        for refused in (
            registry.register(worker(A, "other")),
            registry.register(worker("http://new:1")),
            registry.heartbeat(reports([(A, 1), (C, 1)])),
            registry.heartbeat(reports([(C, 1), (A, 1)])),
            dispatch_shortest_queue(registry, asks(["m"])),
        ):
            with pytest.raises(StoreUnavailable, match="OutOfMemory"):
                await refused
            assert await whole_state(store.client, store.namespace) == before
        assert await registry.heartbeat(reports([(A, 1)])) == [False]
        assert await registry.sweep(0.001) == [B]
        assert await registry.sweep(0.001) == []
        assert await registry.remove(D)
        assert [known.name for known in (await registry.list_workers()).workers] == [C]
        assert await store.client.hgetall(keys.token_workers(store.namespace)) == ({token: "1"} if token else {})
    finally:
        await store.client.config_set("maxmemory", "0")


async def test_check_passes_for_a_user_without_the_info_command(store: Store, registry: Registry) -> None:
    if store.kind == "fakeredis":
        pytest.skip("fakeredis does not deny INFO")
    await store.client.acl_setuser("few", enabled=True, nopass=True, keys="*", commands=["+@all", "-info"])
    client = connect(store.url, timeout=60.0)
    await client.execute_command("AUTH", "few", "")
    try:
        registry = Registry(client, store.namespace, 90.0, booking_decay=False, booking_delay=0.0)
        await registry.check()
        assert (await registry.list_workers()).workers == []
    finally:
        await client.aclose()
        await store.client.acl_deluser("few")


async def test_key_of_a_wrong_type_raises_store_rejection(store: Store, registry: Registry) -> None:
    await store.client.set(keys.workers(store.namespace), "not a set")
    with pytest.raises(StoreRejection, match="WRONGTYPE"):
        (await registry.list_workers()).workers
    await store.client.delete(keys.workers(store.namespace))


async def test_check_rejects_another_key_layout_and_changes_nothing(store: Store, registry: Registry) -> None:
    await registry.check()
    assert await store.client.get(keys.schema(store.namespace)) == SCHEMA
    await store.client.set(keys.schema(store.namespace), "999")
    with pytest.raises(StoreIncompatible, match=f"key layout version 999. This program needs version {SCHEMA}"):
        await registry.check()
    assert await store.client.get(keys.schema(store.namespace)) == "999"


async def test_check_rejects_an_eviction_policy(store: Store, registry: Registry) -> None:
    if store.kind == "fakeredis":
        pytest.skip("fakeredis has no eviction policy")
    await store.client.config_set("maxmemory-policy", "volatile-lru")
    try:
        with pytest.raises(StoreUnavailable, match="Set it to noeviction"):
            await registry.check()
    finally:
        await store.client.config_set("maxmemory-policy", "noeviction")


INVALID_REGISTRATIONS = [  # each replaces arguments of a valid registration
    {"heartbeat_ttl": "x"},
    {"heartbeat_ttl": "1.5"},
    {"speed": "0", "models": '["m"]'},
    {"speed": "nan"},
    {"speed": "inf"},
    {"queue_length": "-1"},
    {"queue_length": "0.5"},
    {"queue_length": "9007199254740994"},
    {"multimodal": "2"},
    {"multimodal": ""},
    {"models": "[{}]"},
    {"models": "[1]"},
    {"models_digest": "digest"},
    {"models": '["m","n"]'},
    {"capacity": "0"},
    {"capacity": "1.5"},
    {"default_capacity": "0"},
    {"default_capacity": "x"},
    {"reply_ttl": "0"},
]


def registration(**changed: str) -> list[str]:
    """Return the arguments of a valid registration with the given changes."""
    valid = {"request_id": "id", "reply_ttl": "1", "name": A, "heartbeat_ttl": "1", "speed": "1", "queue_length": "0",
             "multimodal": "0", "models": "[]", "models_digest": "", "capacity": "",
             "default_capacity": "", "registered_by": "", "engine": ""}  # fmt: skip
    return list({**valid, **changed}.values())


AFFINITIES = [
    *("#", "#x", "#999#9#x", "#1000#0#x", "#1000#9#", "#1000#9#x,,y", "#1000#9#x y", "#1000#9#x#y", "#1.5#9#x"),
    *("@#1000#9#x", "#1000#9#,", "#1000#9#{n}:worker", "x#1000#9#x", "#1000#9#" + "x" * 65),
    "#1000#9#" + ",".join("abcdefghijklmnopq"),
]
INVALID = [
    ("drain", ["id", "1", "0", A, "2", "0", "", ""]),
    ("drain", ["id", "1", "0", A, "1", "2", "", ""]),
    ("drain", ["id", "1", "0", A, "", "0", "", ""]),
    *(("register", ["0", "0", "0", *registration(**changed)]) for changed in INVALID_REGISTRATIONS),
    ("register", ["0", "0", "0"]),
    ("register", ["0", "x", "0", *registration()]),
    ("register", ["0", "0", "x", *registration()]),
    ("register", ["0", "0", "0", *registration()[:-1]]),
    ("refresh", ["0", "0", *registration(speed="nan"), "1", "0"]),
    ("refresh", ["0", "x", *registration(), "1", "0"]),
    ("refresh", ["0", "0", *registration(), "1", "-1"]),
    ("refresh", ["0", "0", *registration(), "1"]),
    ("restore", ["0", "0", *registration(speed="nan"), "0", "0"]),
    ("restore", ["0", "0", *registration(), "0", "yes"]),
    ("restore", ["0", "0", *registration(), "yes", "0"]),
    ("restore", ["0", "0", *registration(), "0"]),
    ("restore", ["0", "x", *registration(), "0", "0"]),
    ("heartbeat", ["id", "0", "1", "0", "0", "0", A, "1", "0"]),
    ("heartbeat", ["id", "1", "0", "0", "0", "0", A, "1", "0"]),
    ("heartbeat", ["id", "1", "x", "0", "0", "0", A, "1", "0"]),
    ("heartbeat", ["id", "1", "1", "0", "0", "x", A, "1", "0"]),
    ("heartbeat", ["id", "1", "1", "0", "0", "0", A, "1"]),
    ("heartbeat", ["id", "1", "1", "0", "0", "0", A, "-1", "0"]),
    ("heartbeat", ["id", "1", "1", "0", "0", "0", A, "1", "0", B, "x", "0"]),
    ("heartbeat", ["id", "1", "1", "0", "0", "0", A, "1", "0", B, "1", "-1"]),
    ("dispatch_shortest_queue", ["id", "0", "0", "0", "m", "0"]),
    ("dispatch_shortest_queue", ["id", "1", "0", "0"]),
    ("dispatch_shortest_queue", ["id", "1", "0", "0", "m"]),
    ("dispatch_shortest_queue", ["id", "1", "0", "0", "m", "0", "m", "x"]),
    ("dispatch_shortest_queue", ["id", "1", "0", "-1", "m", "1"]),
    *(("dispatch_shortest_queue", ["id", "1", "0", "0", "m", f"0{affinity}"]) for affinity in AFFINITIES),
    ("dispatch_lottery", ["id", "0", "0", "0", "m", "0", "0.5"]),
    ("dispatch_lottery", ["id", "1", "0", "0"]),
    ("dispatch_lottery", ["id", "1", "0", "x", "m", "1", "0.5"]),
    ("dispatch_lottery", ["id", "1", "0", "0", "m", "0"]),
    ("dispatch_lottery", ["id", "1", "0", "0", "m", "0", "-1"]),
    ("dispatch_lottery", ["id", "1", "0", "0", "m", "0", "-0.1"]),
    ("dispatch_lottery", ["id", "1", "0", "0", "m", "0", "1"]),
    ("dispatch_lottery", ["id", "1", "0", "0", "m", "0", "0.5", "m", "0", "x"]),
    ("dispatch_lottery", ["id", "1", "0", "0", "m", "0", "0.5", "m", "x", "0.5"]),
    ("find_workers", []),
    ("find_workers", ["m"]),
    ("find_workers", ["m", "0.5"]),
    ("find_workers", ["m", "1", ""]),
    ("find_workers", ["m", "x", ""]),
    ("report_failure", ["id", "1", "0", A, "unknown"]),
    ("report_failure", ["id", "0", "0", A, "polls"]),
    ("report_failure", ["id", "1", "0", A]),
    ("drain", ["id", "1", "0", A]),
    ("drain", ["id", "0", "0", A, "1", "0", "", ""]),
    ("join_replicas", ["id", "x", "{}"]),
    ("join_replicas", ["id", "1"]),
    ("mark_listing", ["id", "x", "1"]),
    ("mark_listing", ["id", "0", "0"]),
    ("acquire_job", ["job", "id", "0", "0", "1"]),
    ("acquire_job", ["job", "id", "1", "0", "0"]),
    ("correct_heartbeats", ["0", A, "1"]),
    ("correct_heartbeats", ["1", A]),
    ("correct_heartbeats", ["1", A, "1", B, "0"]),
    ("shorten_leases", ["x", "1"]),
    ("shorten_leases", ["0", "0"]),
    ("complete_job", ["job", "id", "0", "", "1"]),
    ("complete_job", ["job", "id", "1", "", "0"]),
    ("complete_job", ["job", "id", "1", "", "x"]),
    ("remove", ["id", "0", "1", A, "", "", ""]),
    ("remove", ["id", "1", "0", A, "", "", ""]),
    ("remove", ["id", "1", "1", A]),
    ("list_models", ["x", "1"]),
    ("list_models", ["0", "0"]),
    ("list_models", ["0", "1", "m"]),
    ("list_models", ["0", "1", "m", "x"]),
    ("list_models_by_kind", ["x", "1", "0"]),
    ("list_models_by_kind", ["0", "0", "0"]),
    ("list_models_by_kind", ["0", "1", "2"]),
    ("list_workers", ["x", "1", "0"]),
    ("list_workers", ["0", "0", "0"]),
    ("reconcile", ["id", "0", "0", "0"]),
    ("reconcile", ["id", "1", "x", "0"]),
    ("reconcile", ["id", "1", "0", "0", A]),
    ("reconcile", ["id", "1", "0", "0", A, "-1"]),
    ("reconcile", ["id", "1", "0", "0", A, "1", B, "0.5"]),
    ("sweep", ["0", "0"]),
    ("set_capacity", ["id", "0", "1", "model:m", "1"]),
    ("set_capacity", ["id", "1", "0", "model:m", "1"]),
    ("set_capacity", ["id", "1", "1", "version", "1"]),
    ("set_capacity", ["id", "1", "1", "worker:", "1"]),
    ("set_capacity", ["id", "1", "1", "model:m", "0"]),
    ("apply_capacities", ["id", "1", "0"]),
    ("apply_capacities", ["id", "0", "0", A, "1", ""]),
    ("apply_capacities", ["id", "1", "0", A, "1", "0.5"]),
    ("apply_capacities", ["id", "1", "0", A, "1"]),
    ("list_capacities", ["x", "1"]),
    ("list_capacities", ["0", "0"]),
    ("restore_capacities", ["0", "1", "1"]),
    ("restore_capacities", ["1", "1", "1", "model:m"]),
    ("restore_capacities", ["1", "1", "1", "model:m", "0"]),
    ("restore_capacities", ["1", "1", "1", "model:m", "1", "version", "1"]),
    ("restore_capacities", ["1", "1", "1", "model:m", "1", "model:n", "x"]),
    ("set_entry", ["id", "0", "tokens", "1", "0", "ops", "{}"]),
    ("set_entry", ["id", "1", "workers", "1", "0", "ops", "{}"]),
    ("set_entry", ["id", "1", "tokens", "0", "0", "ops", "{}"]),
    ("set_entry", ["id", "1", "tokens", "1", "yes", "ops", "{}"]),
    ("set_entry", ["id", "1", "tokens", "1", "0", "", "{}"]),
    ("set_entry", ["id", "1", "tokens", "1", "0", "ops"]),
    ("list_entries", ["workers", "0", ""]),
    ("list_entries", ["tokens", "0"]),
    ("restore_entries", ["workers", "1", "change"]),
    ("restore_entries", ["tokens", "0", "change"]),
    ("restore_entries", ["tokens", "1"]),
    ("restore_entries", ["tokens", "1", "change", "ops"]),
    ("restore_entries", ["tokens", "1", "change", "ops", "{}", "", "{}"]),
    ("restore_entries", ["tokens", "1", "change", "ops", "{}", "web", ""]),
]


# Most of the invalid calls differ from one of these in one argument.
VALID = [
    ("drain", ["id", "1", "0", A, "1", "0", "", ""]),
    ("register", ["0", "0", "0", *registration()]),
    ("refresh", ["0", "0", *registration(), "1", "0"]),
    ("restore", ["0", "0", *registration(), "0", "0"]),
    ("heartbeat", ["id", "1", "1", "0", "0", "0", A, "1", "0"]),
    ("heartbeat", ["id", "1", "", "1", "0", "0", A, "", "0"]),
    ("dispatch_shortest_queue", ["id", "1", "0", "0", "m", "0"]),
    ("dispatch_shortest_queue", ["id", "1", "0", "0", "m", "0#1000#9#x"]),
    ("dispatch_shortest_queue", ["id", "1", "0", "0", "m", "0#1000#9#" + ",".join("abcdefghijklmnop")]),
    ("dispatch_lottery", ["id", "1", "0", "0", "m", "0", "0.5"]),
    ("find_workers", ["m", "0.5", ""]),
    ("report_failure", ["id", "1", "0", A, "polls"]),
    ("join_replicas", ["id", "1", "{}"]),
    ("mark_listing", ["id", "0", "1"]),
    ("acquire_job", ["job", "id", "1", "0", "1"]),
    ("complete_job", ["job", "id", "1", "", "1"]),
    ("correct_heartbeats", ["1", A, "1"]),
    ("shorten_leases", ["0", "1"]),
    ("remove", ["id", "1", "1", A, "", "", ""]),
    ("list_models", ["0", "1"]),
    ("list_models", ["0", "1", "m", "0"]),
    ("list_models_by_kind", ["0", "1", "0"]),
    ("list_workers", ["0", "1", "0"]),
    ("reconcile", ["id", "1", "0", "0", A, "1"]),
    ("sweep", ["1", "0"]),
    ("set_capacity", ["id", "1", "1", "model:m", "1"]),
    ("apply_capacities", ["id", "1", "0", A, "1", ""]),
    ("list_capacities", ["0", "1"]),
    ("restore_capacities", ["1", "1", "1", "model:m", "1"]),
    ("set_entry", ["id", "1", "tokens", "1", "0", "ops", "{}"]),
    ("list_entries", ["tokens", "0", ""]),
    ("restore_entries", ["tokens", "1", "change", "ops", "{}"]),
]


@pytest.mark.parametrize(("script", "arguments"), VALID, ids=[f"{s}-{' '.join(a)}" for s, a in VALID])
async def test_scripts_accept_what_the_invalid_calls_are_made_of(
    store: Store, script: str, arguments: list[str]
) -> None:
    """Otherwise an invalid call might be refused for a reason other than the one that it tests."""
    registry = store.registry("-of-valid-calls")
    await registry.register(worker(A))
    await registry._run(script, *arguments)


@pytest.mark.slow_on_fakeredis
@pytest.mark.parametrize(("script", "arguments"), INVALID, ids=[f"{s}-{' '.join(a)}" for s, a in INVALID])
async def test_scripts_validate_arguments_before_they_write(
    store: Store, registry: Registry, script: str, arguments: list[str]
) -> None:
    await registry.register(worker(A))
    keys = sorted(await store.client.keys(f"{{{store.namespace}}}*"))
    before = await whole_state(store.client, store.namespace)
    with pytest.raises(StoreRejection, match="INVALID"):
        await registry._run(script, *arguments)
    assert await whole_state(store.client, store.namespace) == before
    assert sorted(await store.client.keys(f"{{{store.namespace}}}*")) == keys
