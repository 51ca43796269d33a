"""How patient the client is with the store, and that patience never books twice."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import BlockingConnectionPool

from controller.domain.errors import StoreUnavailable
from controller.store.connection import MAX_CONNECTIONS, connect
from controller.store.embedded import EmbeddedStore
from controller.store.registry import Registry
from tests.faults import proxy
from tests.invariants import check_invariants
from tests.samples import A, B, C, worker


@pytest.mark.parametrize("url", ["redis://h:1/2", "rediss://h", "unix:///s"])
async def test_everything_that_versions_of_redis_py_differ_in_is_set(url: str) -> None:
    client = connect(url, timeout=0.7)
    pool = client.connection_pool
    assert isinstance(pool, BlockingConnectionPool)
    assert (pool.max_connections, pool.timeout) == (MAX_CONNECTIONS, 0.7)
    options = pool.connection_kwargs
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.7, 0.7)
    assert options["retry"].get_retries() == 1
    assert (options["health_check_interval"], options["protocol"], options["decode_responses"]) == (0, 2, True)
    await client.aclose()


async def test_lost_replies_do_not_book_twice(embedded_url: str, short_dir: Path) -> None:
    """2 % of all replies lost, 2,000 dispatches: 2,000 bookings."""
    async with proxy(short_dir / "lossy.sock", embedded_url.removeprefix("unix://"), lose=50) as lossy:
        client = connect(lossy.url, timeout=5.0)
        registry = Registry(client, "lost-replies", 90.0)
        for name in (A, B, C):
            await registry.register(worker(name))
        chosen = [name for _ in range(2000) for name in await registry.dispatch_shortest_queue(["m"])]
        assert lossy.lost > 30
        assert len([name for name in chosen if name]) == 2000
        assert sum(w.status.queue_length for w in await registry.list_workers()) == 2000
        await client.aclose()
    direct = connect(embedded_url, timeout=5.0)
    await check_invariants(direct, "lost-replies")
    await direct.delete(*await direct.keys("{lost-replies}*"))
    await direct.aclose()


async def test_an_answer_is_kept_for_longer_than_a_repetition_can_take(embedded_url: str) -> None:
    client = connect(embedded_url, timeout=5.0)
    for call_timeout in (0.5, 20.0):
        registry = Registry(client, "kept", 90.0, call_timeout)
        await registry.register(worker(A))
        await registry.dispatch_shortest_queue(["m"])
        [reply] = await client.keys("{kept}:reply:*")
        assert 5 * call_timeout < await client.pttl(reply) / 1000 <= 6 * call_timeout
        await client.delete(*await client.keys("{kept}*"))
    await client.aclose()


async def test_a_hung_store_ends_every_call_in_time(short_dir: Path) -> None:
    with EmbeddedStore(short_dir / "hung") as server:
        client = connect(server.url, timeout=0.2)
        registry = Registry(client, "ns", 90.0)
        await registry.register(worker(A))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            calls = [registry.dispatch_shortest_queue(["m"]), registry.heartbeat([(A, 0)]), registry.list_workers()]
            async with asyncio.timeout(5.0):
                results = await asyncio.gather(*calls, registry.check(), return_exceptions=True)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert [type(result) for result in results] == [StoreUnavailable] * 4
        assert await registry.heartbeat([(A, 0)]) == [True]
        await client.aclose()


async def test_a_store_that_is_away_is_unavailable_and_comes_back(short_dir: Path) -> None:
    client = connect(f"unix://{short_dir}/away/store.sock", timeout=1.0)
    registry = Registry(client, "ns", 90.0)
    lock = registry.refresh_lock(5.0)
    operations = [registry.heartbeat([(A, 0)]), registry.check(), lock.acquire(), lock.held()]
    for operation in operations:
        with pytest.raises(StoreUnavailable, match="try again"):
            await operation
    with EmbeddedStore(short_dir / "away"):
        assert await registry.heartbeat([(A, 0)]) == [False]
        assert await lock.acquire() is True
        assert await lock.held() is True
        assert await registry.refresh_lock(5.0).acquire() is False
    with pytest.raises(StoreUnavailable):
        await lock.release()
    await client.aclose()


async def test_scripts_are_loaded_again_after_a_flush(embedded_url: str) -> None:
    client = connect(embedded_url, timeout=5.0)
    registry = Registry(client, "flush", 90.0)
    await registry.register(worker(A))
    await client.script_flush()
    assert await registry.dispatch_shortest_queue(["m"]) == [A]
    await registry.remove(A)
    await client.delete(*await client.keys("{flush}*"))
    await client.aclose()


async def test_a_refresh_lock_that_was_lost_is_released_in_silence(embedded_url: str) -> None:
    client = connect(embedded_url, timeout=5.0)
    lock = Registry(client, "lock", 90.0).refresh_lock(5.0)
    assert await lock.acquire() is True
    await client.delete("{lock}:refresh")
    await lock.release()
    assert await lock.held() is False
    await client.aclose()
