"""Stores to test on: fakeredis, the embedded server, and redis-server where it is installed.

A test that takes `store` runs once on each. What it leaves behind is checked: indexes that do not agree or keys
that would stay for ever fail it.
"""

import contextlib
import itertools
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from controller.domain.errors import StoreUnavailable
from controller.metrics import Metrics
from controller.replica import Replica
from controller.settings import Settings
from controller.store import keys, scripts
from controller.store.connection import connect
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry
from controller.upstream.client import WorkerClient
from tests.support import certificates, lifeline, network, parts
from tests.support.invariants import check_invariants, check_nothing_leaks
from tests.support.outage import Link
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until

REDIS_SERVER = shutil.which("redis-server")
TIED = ["--set-proc-title", "no"]  # which would overwrite the mark that tests/support/lifeline.py finds it by
STORES = ["fakeredis", "embedded", *(["redis-server"] if REDIS_SERVER else [])]
_namespaces = itertools.count()

# How long an example takes says how busy the machine is, and no more.
settings.register_profile("untimed", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parts.add_options(parser)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts.select(config, items)


def pytest_configure(config: pytest.Config) -> None:
    parts.configure(config)
    config.add_cleanup(lifeline.tie())
    config.add_cleanup(certificates.trust_one())
    # A shell that runs the tests in the background ignores these, and so would all processes that tests start.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests.support.scheduling import Scheduling  # pytest-xdist is needed only where it runs

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_report_header() -> str:
    if REDIS_SERVER:
        version = subprocess.run([REDIS_SERVER, "--version"], capture_output=True, text=True, check=True).stdout
        return f"stores: fakeredis, embedded, {version.strip()}"
    return "stores: fakeredis, embedded. NOT TESTED: redis-server, which is not on PATH"


Figure = Callable[[str, object], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Tells, at the end of the run, what was measured."""
    return lambda what, seen: record_property("figure", f"{what}: {seen}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    sections = {
        "figures": [value for report in reports for name, value in report.user_properties if name == "figure"],
        "what was exercised": parts.summary(terminalreporter.stats.get("passed", [])),
    }
    for title, lines in sections.items():
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(str(line))


@pytest.fixture(autouse=True)
def on_this_machine() -> Iterator[None]:
    """Fails a test in whose time something was asked for outside of this machine, also in the background."""
    yield
    asked_for, network.outside[:] = list(network.outside), []
    assert asked_for == []


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="cc-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def embedded_url(short_dir: Path) -> Iterator[str]:
    with EmbeddedStore(short_dir / "embedded") as store:
        yield store.url


@pytest.fixture(scope="session")
def redis_server_url(short_dir: Path) -> Iterator[str]:
    """Debian's redis-server, on a socket, with no persistence."""
    path = short_dir / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(short_dir), *TIED]
    with subprocess.Popen([str(REDIS_SERVER), *options], stdout=subprocess.DEVNULL) as process:
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(path)):
                assert process.poll() is None, "redis-server ended"
                time.sleep(0.01)
        yield f"unix://{path}"
        process.terminate()


# A dispatch then depends only on the calls before it, not on the time between them. A slow machine meets the deadline.
FASTCHATS_ARITHMETIC = {"heartbeat_expiration": 90.0, "deadline": 60.0, "booking_decay": False, "booking_delay": 0.0}


CLOCK = "test-clock"  # the key that the scripts take the time from, where a test uses `store_clock`


@pytest.fixture
def store_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of registries that are opened from now on go by the milliseconds in the key CLOCK."""
    source = scripts.source

    def with_a_clock(name: str) -> str:
        before, now, after = source(name).partition('local time = redis.call("TIME")\n')
        by_key = f'if true then return tonumber(redis.call("GET", "{CLOCK}")) end\n' if now else ""
        return before + by_key + now + after

    monkeypatch.setattr(scripts, "source", with_a_clock)


@dataclass
class Store:
    """A server to test on, in a namespace of the test's own."""

    kind: str
    client: Redis  # the registry's
    aside: Redis  # the test's own: what it does is not disturbed when a replica drops its connections
    namespace: str
    fades: bool = False  # whether a registry was opened in which bookings fade

    @property
    def url(self) -> str:
        """Of a real server."""
        return f"unix://{self.client.connection_pool.connection_kwargs['path']}"

    def registry(self, **options: object) -> Registry:
        """A registry as a replica has it; any number of them share the store."""
        self.fades = self.fades or bool(options.get("booking_decay"))
        return Registry(self.client, self.namespace, **{**FASTCHATS_ARITHMETIC, **options})

    async def lapse(self, name: str) -> None:
        """Let a worker's heartbeat lapse: leave behind what its expiration would."""
        await self.client.delete(keys.heartbeat(self.namespace, name))
        await self.client.zadd(keys.workers(self.namespace), {name: 1.0}, xx=True)


@contextlib.asynccontextmanager
async def open_store(request: pytest.FixtureRequest, kind: str) -> AsyncIterator[Store]:
    namespace = f"test-{next(_namespaces)}"
    if kind == "fakeredis":
        server = fakeredis.FakeServer()
        client, aside = (fakeredis.FakeAsyncRedis(server=server, decode_responses=True) for _ in range(2))
    else:
        url = request.getfixturevalue(f"{kind.replace('-', '_')}_url")
        client, aside = (connect(url, timeout=60.0) for _ in range(2))
    await wait_until(lambda: answers(client), f"{kind} answers")
    try:
        store = Store(kind, client, aside, namespace)
        yield store
        state = await check_invariants(client, namespace, store.fades)
        registry = Registry(client, namespace, 90.0, booking_decay=False, booking_delay=0.0)
        for name in state.hashes:
            await registry.remove(name)
        await check_nothing_leaks(client, namespace)
    finally:
        await client.aclose()
        await aside.aclose()


async def answers(client: Redis) -> bool:
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
    """Opens replicas on the store."""
    opened: list[Replica] = []

    def open_replica(registry: Registry | None = None, **changed: object) -> Replica:
        settings = Settings(**{"probe_timeout": 60.0, "sweep_interval": 0.01, "register_timeout": 60.0, **changed})
        workers = WorkerClient(settings.probe_timeout, settings.worker_timeout)
        opened.append(Replica(settings, registry or store.registry(), workers, Metrics()))
        return opened[-1]

    yield open_replica
    for controller in opened:
        await controller.close()


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    way = Link()
    run = Registry._run

    async def pass_on(self: Registry, script: str, *arguments: str | int) -> object:
        concerned = way.script in (None, script)
        if way.cut == "before" and concerned:
            raise StoreUnavailable("The store is away.")
        result = await run(self, script, *arguments)
        way.passed.append(script)
        if way.cut and concerned:
            raise StoreUnavailable("The answer was lost.")
        return result

    monkeypatch.setattr(Registry, "_run", pass_on)
    return way


@pytest.fixture
async def controller(store: Store, link: Link, replica: Open) -> Replica:
    """A replica with a snapshot of two workers."""
    registry = store.registry()
    await registry.register(worker(A, "m", "n"))
    await registry.register(worker(B, "m", multimodal=True))
    opened = replica()
    await opened.readiness.check()
    return opened
