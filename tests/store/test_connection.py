"""Test the timeouts and retries of the client, and that a retry never books twice."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import AuthenticationError

from controller.domain.errors import StoreUnavailable
from controller.store.connection import MAX_CONNECTIONS, connect
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry
from controller.store_url import StoreKind, StoreUrl, parse_store_url
from controller.web.errors import error_body
from tests.support.clients import Client
from tests.support.dispatches import dispatch_shortest_queue, workers_of
from tests.support.faults import proxy
from tests.support.invariants import check_invariants
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.waiting import wait_until


@pytest.mark.parametrize("url", ["redis://u:p@h:1/2", "rediss://u:p@h", "unix:///s", "rediss+sentinel://u:p@a,b/main"])
async def test_connect_sets_all_options_whose_defaults_vary_between_redis_py_versions(url: str) -> None:
    client: Client = connect(url, timeout=0.6)
    pool = client.connection_pool
    assert pool.max_connections == MAX_CONNECTIONS
    options = pool.connection_kwargs
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (2.4, 2.4)
    assert options["retry"].get_retries() == 1
    assert (options["health_check_interval"], options["protocol"], options["decode_responses"]) == (0, 2, True)
    assert options.get("password") == ("p" if "p@" in url else None)
    assert (options.get("username"), options.get("db", 0)) == ("u" if "p@" in url else None, 2 if "/2" in url else 0)
    assert issubclass(pool.connection_class, SSLConnection) == url.startswith("rediss")
    await client.aclose()


async def test_sentinels_share_the_timeout_and_have_their_own_password() -> None:
    url = "rediss+sentinel://u:p@a,b:1,[::1]/main/3?sentinel_username=s&sentinel_password=t"
    client: Client = connect(url, timeout=0.8)
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.is_master, pool.connection_kwargs["db"]) == ("main", True, 3)
    pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    options = [sentinel.connection_kwargs for sentinel in pools]
    assert [(o["host"], o["port"]) for o in options] == [("a", 26379), ("b", 1), ("::1", 26379)]
    for kwargs in options:
        assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"]) == (0.2, 0.2)
        assert (kwargs["username"], kwargs["password"]) == ("s", "t")
        assert kwargs["retry"].get_retries() == 0
        assert (kwargs["health_check_interval"], kwargs["protocol"]) == (0, 2)
    assert all(sentinel.connection_class is SSLConnection for sentinel in pools)
    await client.aclose()


async def test_sentinels_do_not_receive_the_redis_password() -> None:
    client: Client = connect("redis+sentinel://u:p@a/main", timeout=0.8)
    [sentinel] = client.connection_pool.sentinel_manager.sentinels
    assert sentinel.connection_pool.connection_kwargs["password"] is None
    assert sentinel.connection_pool.connection_kwargs["username"] is None
    await client.aclose()


async def test_connect_sets_the_same_options_for_a_cluster() -> None:
    client = connect("rediss+cluster://u:p@a,b:1", timeout=0.8)
    assert isinstance(client, RedisCluster)
    assert sorted((node.host, node.port) for node in client.startup_nodes) == [("a", 6379), ("b", 1)]
    options = client.connection_kwargs
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.4, 0.4)
    assert (options["username"], options["password"], options["max_connections"]) == ("u", "p", MAX_CONNECTIONS)
    assert (options["health_check_interval"], options["protocol"], options["decode_responses"]) == (0, 2, True)
    assert options["connection_class"] is SSLConnection
    assert client.retry.get_retries() == 1
    await client.aclose()


@pytest.mark.parametrize("url", ["redis://u@h", "redis+sentinel://u@a/main", "redis+cluster://u@a"])
async def test_password_file_is_read_for_each_connection(tmp_path: Path, url: str) -> None:
    file = tmp_path / "password"
    client = connect(replace(parse_store_url(url), password_file=file), timeout=0.8)
    options = client.connection_kwargs if isinstance(client, RedisCluster) else client.connection_pool.connection_kwargs
    for password in ("one", "two"):
        file.write_text(f"{password}\n")
        assert await options["credential_provider"].get_credentials_async() == ("u", password)
    file.unlink()
    with pytest.raises(AuthenticationError, match="password cannot be read: No such file"):
        await options["credential_provider"].get_credentials_async()
    if not isinstance(client, RedisCluster) and isinstance(client.connection_pool, SentinelConnectionPool):
        [sentinel] = client.connection_pool.sentinel_manager.sentinels
        assert sentinel.connection_pool.connection_kwargs.get("credential_provider") is None
    await client.aclose()


async def test_lost_replies_do_not_book_twice(embedded_url: str, short_dir: Path) -> None:
    """Lose 2 % of all replies: 2,000 dispatches make 2,000 bookings."""
    async with proxy(short_dir / "lossy.sock", embedded_url.removeprefix("unix://"), lose=50) as lossy:
        client = connect(lossy.url, timeout=60.0)
        registry = Registry(client, "lost-replies", 3_600.0, 60.0, booking_decay=False, booking_delay=0.0)
        for name in (A, B, C):
            await registry.register(worker(name))
        chosen = [
            name for _ in range(2000) for name in workers_of(await dispatch_shortest_queue(registry, asks(["m"])))
        ]
        assert lossy.lost > 30
        assert len([name for name in chosen if name]) == 2000
        assert sum(w.status.queue_length for w in (await registry.list_workers()).workers) == 2000
        await client.aclose()
    direct: Client = connect(embedded_url, timeout=60.0)
    await check_invariants(direct, "lost-replies")
    await direct.delete(*await direct.keys("{lost-replies}*"))
    await direct.aclose()


async def test_reply_outlives_all_retries_of_its_call(embedded_url: str) -> None:
    client = connect(embedded_url, timeout=60.0)
    for deadline, kept in ((0.5, 6.0), (20.0, 120.0)):
        registry = Registry(client, "kept", 90.0, deadline, booking_decay=False, booking_delay=0.0)
        assert registry._reply_ttl_ms == 1000 * kept
        registry._calls.deadline = 60.0
        await registry.register(worker(A))
        await dispatch_shortest_queue(registry, asks(["m"]))
        replies = await client.keys("{kept}:reply:*")
        assert len(replies) == 2
        for reply in replies:
            assert deadline < await client.pttl(reply) / 1000 <= kept
        await client.delete(*await client.keys("{kept}*"))
    await client.aclose()


async def test_calls_time_out_when_redis_hangs(short_dir: Path) -> None:
    with EmbeddedStore(short_dir / "hung") as server:
        client = connect(server.url, timeout=60.0)
        registry = Registry(client, "ns", 90.0, deadline=0.2, booking_decay=False, booking_delay=0.0)
        await registry.register(worker(A))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            calls = [
                dispatch_shortest_queue(registry, asks(["m"])),
                registry.heartbeat(reports([(A, 0)])),
                registry.list_workers(),
            ]
            results = await asyncio.gather(*calls, registry.check(), return_exceptions=True)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert [type(result) for result in results] == [StoreUnavailable] * 4
        registry._calls.deadline = 60.0
        assert await registry.heartbeat(reports([(A, 0)])) == [True]
        await client.aclose()


async def test_calls_raise_store_unavailable_until_redis_starts(short_dir: Path) -> None:
    client = connect(f"unix://{short_dir}/away/store.sock", timeout=1.0)
    registry = Registry(client, "ns", 90.0, booking_decay=False, booking_delay=0.0)
    lock = registry.refresh_lock(5.0)
    operations = [registry.heartbeat(reports([(A, 0)])), registry.check(), lock.acquire(), lock.held()]
    for operation in operations:
        with pytest.raises(StoreUnavailable, match="Try again"):
            await operation
    with EmbeddedStore(short_dir / "away"):
        assert await registry.heartbeat(reports([(A, 0)])) == [False]
        assert await lock.acquire() is True
        assert await lock.held() is True
        assert await registry.refresh_lock(5.0).acquire() is False
    with pytest.raises(StoreUnavailable):
        await lock.release()
    await client.aclose()


async def test_error_body_encodes_a_path_that_is_not_utf_8(short_dir: Path) -> None:
    client = connect(StoreUrl(StoreKind.SINGLE, path=os.fsdecode(bytes(short_dir) + b"/caf\xe9")), timeout=1.0)
    registry = Registry(client, "ns", 90.0, booking_decay=False, booking_delay=0.0)
    with pytest.raises(StoreUnavailable) as caught:
        await registry.check()
    assert r"caf\udce9" in json.loads(error_body("store_unavailable", str(caught.value)))["error"]["message"]
    await client.aclose()


async def test_scripts_are_reloaded_after_a_flush(embedded_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(embedded_url, timeout=60.0)
    registry = Registry(client, "flush", 90.0, booking_decay=False, booking_delay=0.0)
    await registry.register(worker(A))
    await client.script_flush()
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    load, flushes = client.script_load, iter(range(2))

    async def load_before_a_flush(script: str) -> str:
        digest = str(await load(script))
        if next(flushes, None) is not None:
            await client.script_flush()
        return digest

    monkeypatch.setattr(client, "script_load", load_before_a_flush)
    await client.script_flush()
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    assert next(flushes, None) is None
    await registry.remove(A)
    await client.delete(*await client.keys("{flush}*"))
    await client.aclose()


async def test_scripts_are_flushed_under_load(embedded_url: str) -> None:
    """A call whose script was flushed loads it and runs. No caller gets an error, and each request is booked once."""
    client = connect(embedded_url, timeout=60.0)
    operator: Client = connect(embedded_url, timeout=60.0)
    registry = Registry(client, "flushed", 90.0, 60.0, booking_decay=False, booking_delay=0.0)
    await registry.register(worker(A))
    chosen: list[list[str | None]] = [[] for _ in range(8)]
    flushed = 0

    async def dispatch(mine: list[str | None]) -> None:
        while flushed < 10 or len(mine) < 50:
            mine.extend(workers_of(await dispatch_shortest_queue(registry, asks(["m"]))))

    load = [asyncio.create_task(dispatch(mine)) for mine in chosen]
    for _ in range(10):
        before = [len(mine) for mine in chosen]
        await operator.script_flush()
        # All have loaded the script again. A second flush between the loading and the call would be an outage.
        await wait_until(partial(have_grown, chosen, before), "all callers continue")
        flushed += 1
    await asyncio.gather(*load)
    answers = [name for mine in chosen for name in mine]
    assert set(answers) == {A}
    [listed] = (await registry.list_workers()).workers
    assert listed.status.queue_length == len(answers)
    await registry.remove(A)
    await operator.delete(*await operator.keys("{flushed}*"))
    for each in (client, operator):
        await each.aclose()


def have_grown(lists: list[list[str | None]], sizes: list[int]) -> bool:
    """Return True if each list has two more entries. The first may have been under way when the sizes were read."""
    return all(len(each) > size + 1 for each, size in zip(lists, sizes, strict=True))


async def test_release_of_an_expired_refresh_lock_does_not_raise(embedded_url: str) -> None:
    client = connect(embedded_url, timeout=60.0)
    lock = Registry(client, "lock", 90.0, booking_decay=False, booking_delay=0.0).refresh_lock(5.0)
    assert await lock.acquire() is True
    await client.delete("{lock}:refresh")
    await lock.release()
    assert await lock.held() is False
    await client.aclose()
