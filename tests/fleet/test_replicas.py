"""The replicas of a cluster: they join, leave or expire, and are listed with what they are."""

import json
from typing import Any

import pytest

from controller import __version__
from controller.store import keys
from tests.conftest import Open, Store

pytestmark = pytest.mark.usefixtures("store")


async def kinds(store: Store) -> list[tuple[str, str, str]]:
    """Return kind, replica and reason of the events of replicas."""
    events = (await store.registry().list_events("", 100)).events
    found = [(event.kind, event.fields.get("replica", ""), event.fields.get("reason", "")) for event in events]
    return [each for each in found if each[0].startswith("replica")]


async def described(store: Store) -> dict[str, Any]:
    return {replica: json.loads(text or "{}") for replica, text in await store.registry().list_replicas()}


async def test_a_replica_joins_with_its_description_and_leaves_at_once(store: Store, replica: Open) -> None:
    """A replica that does not poll workers joins, too."""
    controller = replica(poll_interval=0.0, port=21001)
    replicas = controller.replicas
    await replicas.join()
    assert list(replicas.ids) == [replicas.id]
    [description] = (await described(store)).values()
    assert (description["name"], description["version"]) == (replicas.name, __version__)
    assert description["settings"]["poll_interval"] == 0.0
    assert not {"redis_url", "worker_tokens", "client_tokens", "admin_tokens"} & set(description["settings"])
    member_until = await store.client.zscore(keys.replicas(store.namespace), replicas.id)
    seconds, microseconds = await store.client.time()
    left = member_until / 1000 - (seconds + microseconds / 1e6)
    assert left <= 3.0, "if it dies, others take over its workers within seconds"
    await replicas.close()
    assert await described(store) == {}
    assert await kinds(store) == [
        ("replica_joined", replicas.name, ""),
        ("replica_left", replicas.name, "it has ended"),
    ]


async def test_a_dead_replica_is_a_member_until_its_ttl_has_passed(store: Store) -> None:
    registry = store.registry()
    assert await registry.join_replicas("dying", 60.0, '{"name": "gpu-1"}') == ["dying"]
    assert set(await registry.join_replicas("live", 60.0)) == {"dying", "live"}
    await store.client.zadd(keys.replicas(store.namespace), {"dying": 1.0})  # as if its membership had expired
    assert list(await described(store)) == ["live"]
    assert await registry.join_replicas("live", 60.0) == ["live"]
    assert await store.client.hkeys(keys.replica_descriptions(store.namespace)) == ["live"]
    assert (await kinds(store))[-1] == ("replica_left", "gpu-1", "its heartbeat has expired")


async def test_a_late_heartbeat_begins_no_membership(store: Store, replica: Open) -> None:
    """Redis hangs with a heartbeat of a replica, and executes it when the membership has expired."""
    registry, replicas = store.registry(), replica().replicas
    await replicas.join()
    assert await registry.join_replicas(replicas.id, 60.0, "") == [replicas.id]
    await store.client.zadd(keys.replicas(store.namespace), {replicas.id: 1.0})
    assert await registry.join_replicas(replicas.id, 60.0, "") == []
    assert await registry.list_replicas() == []
    await replicas.join()
    assert replicas.ids == [replicas.id]
    assert list(await described(store)) == [replicas.id]
    await store.client.zadd(keys.replicas(store.namespace), {replicas.id: 1.0})
    await replicas.join()
    assert replicas.ids == [replicas.id], "it joins at once if its own membership has expired"


async def test_a_replica_of_an_older_version_is_listed_without_description(store: Store) -> None:
    """Its script does not store one."""
    registry = store.registry()
    await registry.join_replicas("old", 60.0)
    await store.client.hdel(keys.replica_descriptions(store.namespace), "old")
    assert await registry.list_replicas() == [("old", "")]
    await registry.leave_replicas("old")
    assert (await kinds(store))[-1] == ("replica_left", "old", "it has ended")


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"name": 1}', "3"])
async def test_a_description_without_a_name_is_kept(store: Store, text: str) -> None:
    registry = store.registry()
    await registry.join_replicas("odd", 60.0, text)
    assert await registry.list_replicas() == [("odd", text)]
    assert await kinds(store) == [("replica_joined", "odd", "")]
