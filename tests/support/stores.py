"""The kinds of store that tests run on, and the servers behind them."""

import contextlib
import itertools
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from controller.domain.worker import Registration
from controller.store import keys
from controller.store.connection import connect
from controller.store.registry import RegisterCall, Registry, RemoveCall
from controller.store_url import StoreUrl, parse_store_url
from tests.support import budget, rights
from tests.support.clients import Client
from tests.support.invariants import check_invariants, check_nothing_leaks
from tests.support.waiting import wait_until

REDIS_SERVER = shutil.which("redis-server")
# A process title would overwrite the mark in the environment, by which tests/support/lifeline.py finds the server.
NO_PROC_TITLE = ["--set-proc-title", "no"]
STORES = ["fakeredis", "embedded"]
ALL_STORES = [*STORES, *(["redis-server"] if REDIS_SERVER else [])]  # for tests/availability
# For tests/store: on redis-server with the rights that deploy/redis/users.acl gives to a replica.
STORES_WITH_RIGHTS = [*STORES, *(["redis-server-acl"] if REDIS_SERVER else [])]
_namespaces = itertools.count()


@contextlib.contextmanager
def redis_server(path: Path, *options: str) -> Iterator[str]:
    """Start redis-server on a socket and without persistence."""
    command = [str(REDIS_SERVER), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(path.parent)]
    with subprocess.Popen([*command, *NO_PROC_TITLE, *options], stdout=subprocess.DEVNULL) as process:
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(path)):
                assert process.poll() is None, "redis-server ended"
                time.sleep(0.01)
        try:
            yield f"unix://{path}"
        finally:
            process.kill()  # a server that cannot save its data would not end by SIGTERM


def redis_version() -> tuple[int, ...]:
    """Return the version of redis-server, such as (7, 0, 15)."""
    version = subprocess.run([str(REDIS_SERVER), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", version)
    assert match, version
    return tuple(map(int, match.groups()))


# Without decay, a dispatch depends only on the calls before it, not on the time between them. The deadline is long
# enough for a slow machine.
WITHOUT_DECAY: dict[str, Any] = {
    "heartbeat_expiration": 90.0,
    "deadline": 60.0,
    "booking_decay": False,
    "booking_delay": 0.0,
}
CLOCK = "test-clock"  # the key from which the scripts read the time in tests that use `store_clock`


@dataclass
class Store:
    """A server to test on, with a namespace for one test.

    client: the test's own client. It stays connected when a replica drops its connections.
    connect: opens the client of a registry. It may have fewer rights than that of the test.
    decays: True if a registry with decaying bookings was opened.
    registries: those that were opened.
    """

    kind: str
    client: Client
    connect: Callable[[], Client]
    namespace: str
    decays: bool = False
    registries: list[Registry] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Return the URL of a real server."""
        return f"unix://{self.client.connection_pool.connection_kwargs['path']}"

    @property
    def replica_url(self) -> StoreUrl:
        """Return the URL of a real server as a replica gets it, with its user."""
        return rights.as_user(self.url, "controller") if "acl" in self.kind else parse_store_url(self.url)

    def registry(self, suffix: str = "", **options: Any) -> Registry:
        """Open a registry as a replica does. Any number of registries may share the store.

        suffix: appended to the namespace, whose keys are not checked after the test then.
        """
        self.decays = self.decays or bool(options.get("booking_decay") and not suffix)
        opened = Registry(self.connect(), self.namespace + suffix, **{**WITHOUT_DECAY, **options})
        self.registries.append(opened)
        return opened

    async def expire_heartbeat(self, *names: str) -> None:
        """Expire the heartbeats of workers. Their other keys stay, as after an expiration in Redis."""
        await self.client.delete(*(keys.heartbeat(self.namespace, name) for name in names))
        await self.client.zadd(keys.workers(self.namespace), dict.fromkeys(names, 1.0), xx=True)


async def register_all(registry: Registry, workers: Sequence[Registration]) -> None:
    """Register many workers in few calls."""
    await registry.register_many([RegisterCall(each) for each in workers])


@contextlib.asynccontextmanager
async def open_store(request: pytest.FixtureRequest, kind: str) -> AsyncIterator[Store]:
    namespace = f"test-{next(_namespaces)}"
    client: Client
    open_client: Callable[[], Client]
    if kind == "fakeredis":
        open_client = partial(fakeredis.FakeAsyncRedis, server=fakeredis.FakeServer(), decode_responses=True)
        client = open_client()
    elif kind == "redis-server-acl":
        url = request.getfixturevalue("redis_server_acl_url")
        client = connect(rights.as_user(url, "admin"), timeout=60.0)
        open_client = partial(connect, rights.as_user(url, "controller"), timeout=60.0)
    else:
        open_client = partial(connect, request.getfixturevalue(f"{kind.replace('-', '_')}_url"), timeout=60.0)
        client = open_client()
    await wait_until(lambda: answers(client), f"{kind} responds")
    store = Store(kind, client, open_client, namespace)
    if kind == "fakeredis":
        # The fixture, and not a patch of our own: a test may change the scripts too, and each change has to be undone
        # before the ones that came earlier.
        budget.no_time_limit(request.getfixturevalue("monkeypatch"))
    try:
        yield store
        slack = 10_000.0 if kind == "fakeredis" else 1_000.0  # its scripts see time pass, much of it on a busy machine
        state = await check_invariants(client, namespace, store.decays, slack=slack)
        registry = store.registry()
        await registry.remove_many([RemoveCall(name) for name in state.hashes])
        await check_nothing_leaks(client, namespace)
    finally:
        for registry in store.registries:
            await registry.close()  # a call that took long on a slow machine may have started a ping
        await client.aclose()


async def answers(client: Client) -> bool:
    try:
        return bool(await client.ping())
    except OSError:
        return False
    except Exception as error:
        if "Error 2 connecting" in str(error):
            return False
        raise
