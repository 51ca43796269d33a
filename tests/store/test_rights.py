"""Test what the user `controller` of deploy/redis/users.acl may do, on redis-server with that file."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from controller.domain.errors import EventsUnavailable
from controller.store import keys
from controller.store.connection import connect
from controller.store.registry import NewEvent, Registry
from tests.conftest import REDIS_SERVER, redis_server, redis_version
from tests.support import rights
from tests.support.clients import Client
from tests.support.dispatches import dispatch_shortest_queue
from tests.support.samples import A, asks, worker

needs_redis = pytest.mark.skipif(REDIS_SERVER is None, reason="NOT TESTED: redis-server, which is not on PATH")

# The commands of redis-py and of the registry. The scripts call all others.
FROM_PYTHON = {
    "asking",  # in a Cluster, while a slot moves
    "client|setinfo",
    "cluster|slots",
    "command",
    "evalsha",
    "info",
    "ping",
    "script|load",
}


@pytest.fixture
async def user(short_dir: Path) -> AsyncIterator[Client]:
    """Return a client with the rights of deploy/redis/users.acl as they are."""
    rights.write_users(short_dir / "users-as-they-are.acl", redis_version())
    options = ("--aclfile", str(short_dir / "users-as-they-are.acl"))
    with redis_server(short_dir / "as-they-are.sock", *options) as url:
        client = connect(rights.as_user(url, "controller"), timeout=60.0)
        yield client
        await client.aclose()


@pytest.mark.slow
@needs_redis
async def test_user_of_the_controllers_reaches_its_namespace_only(user: Client) -> None:
    registry = Registry(user, "controller", 90.0, 60.0, booking_decay=True)
    await registry.check()
    await registry.register(worker(A, "m"))
    [choice] = await dispatch_shortest_queue(registry, asks(["m"]))
    assert choice.worker == A
    for key in ("other", "{other}:workers", "controller", keys.workers("controller2")):
        for call in (user.get(key), user.set(key, "x"), user.delete(key)):
            with pytest.raises(NoPermissionError):
                await call
    other = Registry(user, "other", 90.0, 60.0, booking_decay=True)
    with pytest.raises(ResponseError):
        await user.evalsha(await user.script_load('return redis.call("GET", KEYS[1])'), 1, "{other}:workers")
    with pytest.raises(Exception, match=r"(?i)permission"):
        await other.register(worker(A, "m"))
    await registry.close()
    await other.close()


@pytest.mark.slow
@needs_redis
async def test_without_the_rights_to_events_all_else_works(short_dir: Path) -> None:
    """An ACL file from before there were events."""
    file = short_dir / "users-without-events.acl"
    rights.write_users(file, redis_version())
    file.write_text(re.sub(r" \+x(add|range|revrange)\b", "", file.read_text()))
    with redis_server(short_dir / "without-events.sock", "--aclfile", str(file)) as url:
        registry = Registry(connect(rights.as_user(url, "controller"), timeout=60.0), "controller", 90.0, 60.0)
        await registry.check()
        await registry.register(worker(A, "m"))
        [choice] = await dispatch_shortest_queue(registry, asks(["m"]))
        assert choice.worker == A
        assert await registry.remove(A)
        await registry.record_events([NewEvent("store_recovered", {"reason": "a"})])
        with pytest.raises(EventsUnavailable, match="XREVRANGE"):
            await registry.list_events("", 10)
        await registry.close()


@pytest.mark.slow
@needs_redis
@pytest.mark.parametrize(
    "command",
    [
        "ACL LIST", "ACL SETUSER controller +@all", "CLIENT LIST", "CLIENT KILL ID 1", "CONFIG GET *",
        "CONFIG SET dir /tmp", "CONFIG SET maxmemory 1", "DUMP {controller}:workers",
        "EVAL return 0", "FAILOVER", "FLUSHALL", "FLUSHDB", "FUNCTION LIST", "KEYS *", "MODULE LIST",
        "MONITOR", "REPLICAOF no one", "SAVE", "SCAN 0", "SCRIPT FLUSH", "SHUTDOWN NOSAVE", "SUBSCRIBE x", "SYNC",
        "PUBLISH x y", "RANDOMKEY",
    ],
)  # fmt: skip
async def test_user_of_the_controllers_may_not(user: Client, command: str) -> None:
    with pytest.raises(NoPermissionError):
        await user.execute_command(*command.split(" "))


def test_user_of_the_controllers_has_no_right_that_nothing_needs() -> None:
    found = re.search(r"^user controller on (.*)$", rights.USERS.read_text(), re.MULTILINE)
    assert found
    granted = {word.removeprefix("+") for word in found[1].split() if word.startswith("+")}
    called = {
        name.lower()
        for path in (rights.ROOT / "lua").rglob("*.lua")
        for name in re.findall(r'redis\.p?call\("(\w+)', path.read_text())
    }
    assert granted == called | FROM_PYTHON
