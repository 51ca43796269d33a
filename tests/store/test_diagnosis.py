"""Facts about Redis, on all kinds of stores, and with few rights."""

import re
from pathlib import Path

import pytest

from controller.domain.errors import StoreUnavailable
from controller.store.connection import connect
from controller.store.registry import NewEvent, Registry
from tests.conftest import Store, redis_server, redis_version
from tests.store.test_rights import needs_redis
from tests.support import rights
from tests.support.samples import A, worker


async def test_each_store_reports_what_it_can(store: Store) -> None:
    registry = store.registry()
    await registry.register(worker(A, "m"))
    facts, unknown = await registry.diagnose()
    assert facts.round_trip is not None
    assert facts.round_trip > 0
    assert facts.clock_offset is not None
    assert abs(facts.clock_offset) < 60
    if store.kind == "fakeredis":
        assert unknown["INFO"] == "this server has no such command"
        assert (facts.version, facts.failed_event_writes) == (None, None)
        return
    assert facts.product in ("redis", "valkey")
    assert facts.version
    assert re.match(r"\d+\.\d+", facts.version)
    assert (facts.role, facts.connected_replicas, facts.eviction_policy) == ("master", 0, "noeviction")
    assert facts.memory_used
    assert facts.memory_used > 100_000
    assert facts.cached_scripts
    assert facts.clients
    assert facts.max_clients
    assert facts.failed_event_writes == 0
    if store.kind == "redis-server-acl":
        assert unknown == {"CONFIG GET": "not permitted"}
        assert facts.snapshots is None
    else:
        assert unknown == {}
        assert facts.snapshots is not None


@pytest.mark.slow
@needs_redis
async def test_a_user_that_may_read_nothing_is_no_error(short_dir: Path) -> None:
    """An ACL without INFO and TIME, and without the rights to events. Redis counts the refused XADD."""
    file = short_dir / "users-without-info.acl"
    rights.write_users(file, redis_version())
    file.write_text(re.sub(r" \+(info|ping|xadd)\b", "", file.read_text()))
    with redis_server(short_dir / "without-info.sock", "--aclfile", str(file)) as url:
        registry = Registry(connect(rights.as_user(url, "controller"), timeout=60.0), "controller", 90.0, 60.0)
        await registry.record_events([NewEvent("store_recovered", {"reason": "a"})])
        facts, unknown = await registry.diagnose()
        assert unknown == dict.fromkeys(("PING", "INFO", "CONFIG GET"), "not permitted")
        assert (facts.version, facts.round_trip, facts.memory_used) == (None, None, None)
        assert facts.clock_offset is not None
        admin = Registry(connect(rights.as_user(url, "admin"), timeout=60.0), "controller", 90.0, 60.0)
        facts, unknown = await admin.diagnose()
        assert unknown == {}
        assert facts.failed_event_writes == 1
        await registry.close()
        await admin.close()


async def test_a_server_that_is_gone_is_an_error(short_dir: Path) -> None:
    registry = Registry(connect(f"unix://{short_dir}/without-a-server.sock", timeout=1.0), "controller", 90.0, 1.0)
    with pytest.raises(StoreUnavailable):
        await registry.diagnose()
    await registry.close()
