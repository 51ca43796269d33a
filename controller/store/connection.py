"""Creates clients for Redis. Only this module handles the kinds of Redis: one server, Sentinel and Cluster."""

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

StoreClient: TypeAlias = Redis | RedisCluster

MAX_CONNECTIONS: Final = 48  # to one server: more than the calls that the registry runs at once
_TIMEOUT_FACTOR: Final = 4.0  # of redis-py's timeouts, see connect()


def connect(url: str | StoreUrl, timeout: float) -> StoreClient:
    """Return a client for a store. It connects when it is first used.

    All options whose defaults differ between versions of redis-py are set here. If the connection of a call breaks, the
    call is sent once more on a new connection, so every script must be repeatable.

    timeout: in seconds. StoreCalls in controller/store/client.py ends a call that takes longer. The timeouts of
    redis-py are longer, because they also run while the event loop is late. If one of several servers may have to
    respond before a call is sent, each of them gets a part of the timeout.
    """
    store = parse_store_url(url) if isinstance(url, str) else url
    if store.kind is StoreKind.SENTINEL:
        return _by_sentinel(store, timeout)
    if store.kind is StoreKind.CLUSTER:
        return _cluster(store, timeout)
    return _single(store, timeout)


def _single(store: StoreUrl, timeout: float) -> Redis:
    options = {**_options(_TIMEOUT_FACTOR * timeout), **_credentials(store)}
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
    """Return a client that asks the Sentinels for the address of the master for each new connection."""
    sentinel_timeout = timeout / (len(store.hosts) + 1)
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        store.hosts,
        sentinel_kwargs={
            **_options(sentinel_timeout),
            "username": store.sentinel_username,
            "password": store.sentinel_password,
            "retry": Retry(NoBackoff(), retries=0),
            "ssl": store.tls,
        },
        **_options(_TIMEOUT_FACTOR * timeout),
        **_credentials(store),
    )
    client: Redis = sentinels.master_for(
        store.master, db=store.database, retry=_retry(), max_connections=MAX_CONNECTIONS, ssl=store.tls
    )
    return client


def _cluster(store: StoreUrl, timeout: float) -> RedisCluster:
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in store.hosts],
        dynamic_startup_nodes=False,  # every start uses the configured nodes, whose DNS names may get new addresses
        require_full_coverage=False,  # all keys are in one slot
        max_connections=MAX_CONNECTIONS,
        retry=_retry(),
        ssl=store.tls,
        **_options(timeout / 2),
        **_credentials(store),
    )
    client.commands_parser = _CommandsParser()
    return client


class _CommandsParser(AsyncCommandsParser):
    """Loads the list of Redis commands only once.

    redis-py loads it from the first master of the Cluster each time that it updates the list of nodes. If that master
    hung, a client could not return to its own master, which serves.
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

        An unreadable or empty file raises AuthenticationError, as a wrong password does, because the file may be in the
        middle of a change.
        """
        try:
            password = read_password_file(self._path)
        except SettingsError as error:
            raise AuthenticationError(str(error).removesuffix(".")) from error
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Return get_credentials(), called in a thread because the file system may be slow."""
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
    """Close idle connections, so that the next call looks up the master again."""
    if isinstance(client, RedisCluster):
        await client.aclose()  # the next call loads the list of nodes again
    else:
        await client.connection_pool.disconnect(inuse_connections=False)


async def close(client: StoreClient) -> None:
    """Close all connections, including those to Sentinels."""
    await client.aclose()
    if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
        await client.connection_pool.sentinel_manager.aclose()
