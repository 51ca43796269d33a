"""Connects to Redis: the one module that knows what kind of Redis it is and how patient to be with it."""

import asyncio
from pathlib import Path
from typing import Any, Final, TypeAlias

from redis._parsers.commands import AsyncCommandsParser
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from controller.domain.errors import SettingsError
from controller.store_url import StoreKind, StoreUrl, parse_store_url, read_password_file

# One server, by whatever way its address is found, or a Cluster: both run scripts and take single commands.
StoreClient: TypeAlias = Redis | RedisCluster

MAX_CONNECTIONS: Final = 48  # to one server; the registry makes fewer calls at once
_LAST_RESORT: Final = 4.0


def connect(url: str | StoreUrl, timeout: float) -> StoreClient:
    """A client for a store; it connects when it is first used.

    Every property that differs between versions of redis-py is set here. A call whose connection broke is sent once
    more on a fresh one: all scripts stand being run twice. `timeout` is in seconds. controller/store/client.py ends the
    calls that take longer. The timeouts of redis-py also run while the event loop is late, so they are longer and only
    a last resort. Where several servers may have to be asked before one answers, each gets a part of `timeout`.
    """
    store = parse_store_url(url) if isinstance(url, str) else url
    if store.kind is StoreKind.SENTINEL:
        return _by_sentinel(store, timeout)
    if store.kind is StoreKind.CLUSTER:
        return _cluster(store, timeout)
    return _single(store, timeout)


def _single(store: StoreUrl, timeout: float) -> Redis:
    options = {**_options(_LAST_RESORT * timeout), **_credentials(store)}
    if store.path:
        return Redis.from_pool(
            ConnectionPool(UnixDomainSocketConnection, MAX_CONNECTIONS, path=store.path, retry=_retry(), **options)
        )
    [(host, port)] = store.hosts
    return Redis.from_pool(
        ConnectionPool(
            SSLConnection if store.tls else Connection,
            MAX_CONNECTIONS,
            host=host,
            port=port,
            db=store.database,
            retry=_retry(),
            **options,
        )
    )


def _by_sentinel(store: StoreUrl, timeout: float) -> Redis:
    """The master's address is asked of the Sentinels for each new connection."""
    each = timeout / (len(store.hosts) + 1)
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        store.hosts,
        sentinel_kwargs={
            **_options(each),
            "username": store.sentinel_username,
            "password": store.sentinel_password,
            "retry": Retry(NoBackoff(), retries=0),
            "ssl": store.tls,
        },
        **_options(_LAST_RESORT * timeout),
        **_credentials(store),
    )
    client: Redis = sentinels.master_for(
        store.master, db=store.database, retry=_retry(), max_connections=MAX_CONNECTIONS, ssl=store.tls
    )
    return client


def _cluster(store: StoreUrl, timeout: float) -> RedisCluster:
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in store.hosts],
        dynamic_startup_nodes=False,  # those that were named stay the ones to begin with: their names may be DNS names
        require_full_coverage=False,  # all our keys are in one slot
        max_connections=MAX_CONNECTIONS,
        retry=_retry(),
        ssl=store.tls,
        **_options(timeout / 2),
        **_credentials(store),
    )
    client.commands_parser = _CommandsParser()
    return client


class _CommandsParser(AsyncCommandsParser):
    """Asks once which commands there are.

    redis-py asks the first master of the Cluster each time that it learns the nodes anew; when that one hangs, a client
    whose own master serves could not come back.
    """

    async def initialize(self, node: ClusterNode | None = None) -> None:
        if not self.commands:
            await super().initialize(node)


class _PasswordFile(CredentialProvider):
    """Reads the password from its file for each connection, so that a rotated one is used without a restart."""

    def __init__(self, username: str | None, path: Path) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return the arguments of AUTH.

        A file that is unreadable or empty, as for a moment while it is written, fails like a wrong password does.
        """
        try:
            password = read_password_file(self._path)
        except SettingsError as error:
            raise AuthenticationError(str(error).removesuffix(".")) from error
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Return the same, read in a thread: the file system may be slow."""
        return await asyncio.to_thread(self.get_credentials)


def _credentials(store: StoreUrl) -> dict[str, Any]:
    if store.password_file is not None:
        return {"credential_provider": _PasswordFile(store.username, store.password_file)}
    return {"username": store.username, "password": store.password}


def _options(timeout: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
        "decode_responses": True,
        "protocol": 2,
    }


def _retry() -> Retry:
    return Retry(NoBackoff(), retries=1, supported_errors=(RedisConnectionError,))


async def reconnect(client: StoreClient) -> None:
    """Drop the connections that are idle, so that the next call finds out anew where the master is."""
    if isinstance(client, RedisCluster):
        await client.aclose()  # it learns the nodes again when it is next used
    else:
        await client.connection_pool.disconnect(inuse_connections=False)


async def close(client: StoreClient) -> None:
    """Close all connections, those to Sentinels too."""
    await client.aclose()
    if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
        await client.connection_pool.sentinel_manager.aclose()
