"""Stores to test on: the embedded server, and in tests/store and tests/availability each kind of store.

These two also run on fakeredis. Where redis-server is installed, the tests of availability run on it, too. So do the
tests of the store, as the restricted user of deploy/redis/users.acl ("redis-server-acl").

A test that takes `store` fails if it leaves inconsistent indexes, or keys that would never expire.
"""

import gc
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from controller.domain.errors import StoreUnavailable
from controller.metrics import Metrics
from controller.replica import Replica, create_worker_client
from controller.settings import Settings
from controller.store import scripts
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry
from tests.support import certificates, lifeline, longest_scripts, network, parts, rights
from tests.support.llamacpp import tiny_model
from tests.support.outage import Link
from tests.support.samples import A, B, worker
from tests.support.stores import (
    ALL_STORES,
    CLOCK,
    NO_PROC_TITLE,
    REDIS_SERVER,
    STORES_WITH_RIGHTS,
    WITHOUT_DECAY,
    Store,
    open_store,
    redis_server,
    redis_version,
)

__all__ = [  # tests import these from here
    "ALL_STORES",
    "CLOCK",
    "NO_PROC_TITLE",
    "REDIS_SERVER",
    "STORES_WITH_RIGHTS",
    "WITHOUT_DECAY",
    "Figure",
    "Open",
    "Store",
    "open_store",
    "redis_server",
    "redis_version",
    "tiny_model",
]

# No deadline: the time that an example takes depends on how busy the machine is.
settings.register_profile("untimed", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parts.add_options(parser)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts.select(config, items)


def pytest_collection_finish() -> None:
    gc.freeze()  # the garbage collector need not look at thousands of tests


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
    """Fail a test during which this process tried to reach another machine, even in the background."""
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


@pytest.fixture(scope="session")
def redis_server_url(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_server(short_dir / "redis.sock") as url:
        longest_scripts.record(url)
        yield url
        longest_scripts.collect(request.config, url, "redis-server")


@pytest.fixture(scope="session")
def redis_server_acl_url(short_dir: Path) -> Iterator[str]:
    """Start redis-server with the users of deploy/redis/users.acl.

    The user `controller` may access the namespaces of all tests, and the key from which scripts read the time.
    """
    rights.write_users(short_dir / "users.acl", redis_version(), "{*}*", CLOCK)
    with redis_server(short_dir / "acl.sock", "--aclfile", str(short_dir / "users.acl")) as url:
        yield url


@pytest.fixture
def store_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts of all registries opened later read the time, in milliseconds, from the key CLOCK."""
    source = scripts.source

    def with_settable_clock(name: str) -> str:
        before, now, after = source(name).partition('local time = redis.call("TIME")\n')
        from_key = f'if true then return tonumber(redis.call("GET", "{CLOCK}")) end\n' if now else ""
        return before + from_key + now + after

    monkeypatch.setattr(scripts, "source", with_settable_clock)


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Return a real server. Most tests are about what is above the store, so one kind of store is enough."""
    async with open_store(request, "embedded") as opened:
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
