"""Stores to test on: fakeredis and the embedded server.

Where redis-server is installed, the tests of availability run on it, too. So do the tests of the store, as the
restricted user of deploy/redis/users.acl ("redis-server-acl").

A test that takes `store` runs once on each store. It fails if it leaves inconsistent indexes, or keys that would never
expire.
"""

import contextlib
import importlib.util
import itertools
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, settings

from controller.domain.errors import StoreUnavailable
from controller.metrics import Metrics
from controller.replica import Replica, create_worker_client
from controller.settings import Settings
from controller.store import keys, scripts
from controller.store.connection import connect
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry
from controller.store_url import StoreUrl, parse_store_url
from tests.support import budget, certificates, lifeline, longest_scripts, network, parts, rights
from tests.support.clients import Client
from tests.support.invariants import check_invariants, check_nothing_leaks
from tests.support.llamacpp import write_model
from tests.support.outage import Link
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until

REDIS_SERVER = shutil.which("redis-server")
# A process title would overwrite the mark in the environment, by which tests/support/lifeline.py finds the server.
NO_PROC_TITLE = ["--set-proc-title", "no"]
STORES = ["fakeredis", "embedded"]
ALL_STORES = [*STORES, *(["redis-server"] if REDIS_SERVER else [])]  # for tests/availability
# For tests/store: on redis-server with the rights that deploy/redis/users.acl gives to a replica.
STORES_WITH_RIGHTS = [*STORES, *(["redis-server-acl"] if REDIS_SERVER else [])]
_namespaces = itertools.count()

# No deadline: the time that an example takes depends on how busy the machine is.
settings.register_profile("untimed", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parts.add_options(parser)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts.select(config, items)


def pytest_configure(config: pytest.Config) -> None:
    parts.configure(config)
    config.add_cleanup(lifeline.start_watchdog())
    config.add_cleanup(certificates.trust_one())
    # A shell that runs the tests in the background ignores these signals. All processes that tests start would inherit
    # that.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests.support.scheduling import Scheduling  # imports pytest-xdist, which need not be installed

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_report_header() -> str:
    if REDIS_SERVER:
        version = subprocess.run([REDIS_SERVER, "--version"], capture_output=True, text=True, check=True).stdout
        return f"stores: fakeredis, embedded, {version.strip()}"
    return "stores: fakeredis, embedded. NOT TESTED: redis-server, which is not on PATH"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    longest_scripts.collect_from(node)


Figure = Callable[[str, object], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Record a measurement, which the summary of the run shows."""
    return lambda name, value: record_property("figure", f"{name}: {value}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    sections = {
        "figures": [
            *(value for report in reports for name, value in report.user_properties if name == "figure"),
            *longest_scripts.summary(terminalreporter.config),
        ],
        "what was exercised": parts.summary(terminalreporter.stats.get("passed", [])),
    }
    for title, lines in sections.items():
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(str(line))


@pytest.fixture(autouse=True)
def on_this_machine() -> Iterator[None]:
    """Fail a test during which this process tried to reach another machine, also in the background."""
    yield
    refused, network.outside[:] = list(network.outside), []
    assert refused == []


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """Return a directory with a path that is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="cc-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def embedded_url(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    with EmbeddedStore(short_dir / "embedded") as store:
        longest_scripts.record(store.url)
        yield store.url
        longest_scripts.collect(request.config, store.url, "embedded")


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


@pytest.fixture(scope="session")
def redis_server_url(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_server(short_dir / "redis.sock") as url:
        longest_scripts.record(url)
        yield url
        longest_scripts.collect(request.config, url, "redis-server")


def redis_version() -> tuple[int, ...]:
    """Return the version of redis-server, such as (7, 0, 15)."""
    version = subprocess.run([str(REDIS_SERVER), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", version)
    assert match, version
    return tuple(map(int, match.groups()))


@pytest.fixture(scope="session")
def redis_server_acl_url(short_dir: Path) -> Iterator[str]:
    """Start redis-server with the users of deploy/redis/users.acl.

    The user `controller` may access the namespaces of all tests, and the key from which scripts read the time.
    """
    rights.write_users(short_dir / "users.acl", redis_version(), "{*}*", CLOCK)
    with redis_server(short_dir / "acl.sock", "--aclfile", str(short_dir / "users.acl")) as url:
        yield url


# Without decay, a dispatch depends only on the calls before it, not on the time between them. The deadline is long
# enough for a slow machine.
WITHOUT_DECAY: dict[str, Any] = {
    "heartbeat_expiration": 90.0,
    "deadline": 60.0,
    "booking_decay": False,
    "booking_delay": 0.0,
}


CLOCK = "test-clock"  # the key from which the scripts read the time in tests that use `store_clock`


@pytest.fixture
def store_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts of all registries opened later read the time, in milliseconds, from the key CLOCK."""
    source = scripts.source

    def with_settable_clock(name: str) -> str:
        before, now, after = source(name).partition('local time = redis.call("TIME")\n')
        from_key = f'if true then return tonumber(redis.call("GET", "{CLOCK}")) end\n' if now else ""
        return before + from_key + now + after

    monkeypatch.setattr(scripts, "source", with_settable_clock)


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

    async def expire_heartbeat(self, name: str) -> None:
        """Expire a worker's heartbeat. Its other keys stay, as after an expiration in Redis."""
        await self.client.delete(keys.heartbeat(self.namespace, name))
        await self.client.zadd(keys.workers(self.namespace), {name: 1.0}, xx=True)


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
    monkeypatch = pytest.MonkeyPatch()
    if kind == "fakeredis":
        budget.no_time_limit(monkeypatch)
    try:
        yield store
        slack = 10_000.0 if kind == "fakeredis" else 1_000.0  # its scripts see time pass, much of it on a busy machine
        state = await check_invariants(client, namespace, store.decays, slack=slack)
        registry = store.registry()
        for name in state.hashes:
            await registry.remove(name)
        await check_nothing_leaks(client, namespace)
    finally:
        monkeypatch.undo()
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


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with open_store(request, request.param) as opened:
        yield opened


@pytest.fixture
def registry(store: Store) -> Registry:
    return store.registry()


Open = Callable[..., Replica]


@pytest.fixture
async def replica(store: Store) -> AsyncIterator[Open]:
    """Return a function that opens replicas on the store."""
    opened: list[Replica] = []

    def open_replica(registry: Registry | None = None, **changed: Any) -> Replica:
        settings = Settings(**{"probe_timeout": 60.0, "sweep_interval": 0.01, "register_timeout": 60.0, **changed})
        opened.append(Replica(settings, registry or store.registry(), create_worker_client(settings), Metrics()))
        return opened[-1]

    yield open_replica
    for each in opened:
        await each.close()


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    """Return the link over which all registries run their scripts."""
    opened = Link()
    run = Registry._run

    async def run_over_link(self: Registry, script: str, *arguments: str | int) -> object:
        affected = opened.script in (None, script)
        if opened.cut == "before" and affected:
            raise StoreUnavailable("Redis is away.")
        result = await run(self, script, *arguments)
        opened.delivered.append(script)
        if opened.cut and affected:
            raise StoreUnavailable("The reply was lost.")
        return result

    monkeypatch.setattr(Registry, "_run", run_over_link)
    return opened


@pytest.fixture
async def controller(store: Store, link: Link, replica: Open) -> Replica:
    """Return a replica with a snapshot of two workers."""
    registry = store.registry()
    await registry.register(worker(A, "m", "n"))
    await registry.register(worker(B, "m", multimodal=True))
    opened = replica()
    await opened.readiness.check()
    return opened


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model for llama.cpp. Skips the test if the package with the real server is not installed."""
    for package in ("xllamacpp", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"NOT TESTED: a real llama.cpp server. There is no wheel of {package} for this platform.")
    path = tmp_path_factory.mktemp("llamacpp") / "tiny.gguf"
    write_model(path)
    return path
