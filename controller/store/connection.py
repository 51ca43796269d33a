"""Connects to Redis: the one module that knows what kind of Redis it is and how patient to be with it."""

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

MAX_CONNECTIONS = 32


def connect(url: str, timeout: float) -> "Redis":
    """A client for `redis://`, `rediss://` or `unix://`; it connects when it is first used.

    Every property that differs between versions of redis-py is set here. A call that got no answer within `timeout`
    seconds, or whose connection broke, is sent once more on a fresh connection: all scripts stand being run twice.
    """
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,  # calls beyond it wait for a connection,
        timeout=timeout,  # so long
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), retries=1, supported_errors=(RedisConnectionError, RedisTimeoutError)),
        health_check_interval=0,
        decode_responses=True,
        protocol=2,
    )
    return Redis.from_pool(pool)
