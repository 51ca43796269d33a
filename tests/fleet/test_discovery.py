"""Engines from --workers-file and --workers-dns: registered, changed, drained and removed as the sources say."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.domain.worker import Worker
from controller.fleet import discovery
from controller.fleet.engine_sources import DnsSource
from controller.replica import Replica
from controller.store import keys
from controller.store.entries import ListName
from controller.store.registry import Registry
from tests.conftest import Store
from tests.fleet.engine_replicas import ADMIN, Resolver, Starter, gauges
from tests.support.engines import DISCONNECTS, AnswerServer
from tests.support.waiting import wait_until

SILENT = "http://127.0.0.1:1"


def write(path: Path, *items: str) -> Path:
    listed = ", ".join(f"{{url: {item}}}" for item in items)
    path.write_text(f"workers: [{listed}]\n")
    return path


@pytest.fixture
def start(polling_engines: Starter, monkeypatch: pytest.MonkeyPatch) -> Starter:
    monkeypatch.setattr(discovery, "_INTERVAL", 0.02)
    monkeypatch.setattr(discovery, "_LEAST_DRAIN", 0.2)
    return polling_engines


async def listed(registry: Registry) -> dict[str, EngineEntry]:
    found = await registry.list_entries(ListName.ENGINES)
    return {name: EngineEntry.decode(record) for name, record in found.entries.items()} if found else {}


async def alive(registry: Registry) -> dict[str, Worker]:
    return {worker.name: worker for worker in (await registry.list_workers()).workers}


def names(registry: Registry, *expected: str) -> Callable[[], Awaitable[bool]]:
    async def are_listed() -> bool:
        return set(await listed(registry)) == set(expected)

    return are_listed


def serves(registry: Registry, name: str, drains: bool = False) -> Callable[[], Awaitable[bool]]:
    async def is_alive() -> bool:
        worker = (await alive(registry)).get(name)
        return worker is not None and worker.draining == drains

    return is_alive


async def test_listed_engines_are_registered_and_probes_decide_which_are_alive(
    start: Starter, engine: AnswerServer, registry: Registry, tmp_path: Path
) -> None:
    before = dict(engine.answers)
    engine.answers.clear()
    engine.default = DISCONNECTS
    file = write(tmp_path / "f", f"{engine.address}, models: {{m: public}}, engine: vllm", SILENT)
    replica = start(workers_file=file)
    await wait_until(names(registry, engine.address, SILENT), "both engines are registered")
    assert await alive(registry) == {}
    engine.answers.update(before)
    await wait_until(serves(registry, engine.address), "the engine is alive when it responds")
    states = {state.name: state for state in await replica.engines.list()}
    assert [(states[name].alive, states[name].entry.source) for name in (engine.address, SILENT)] == [
        (True, "file"),
        (False, "file"),
    ]
    assert states[engine.address].models == ("public",)


async def test_engine_that_leaves_the_file_drains_and_is_removed_when_it_is_idle(
    start: Starter, engine: AnswerServer, registry: Registry, tmp_path: Path
) -> None:
    file = write(tmp_path / "f", engine.address, SILENT)
    replica = start(workers_file=file)
    await wait_until(serves(registry, engine.address), "the engine is alive")
    lease = (await replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)).value.lease
    write(file)
    await wait_until(serves(registry, engine.address, drains=True), "the engine drains")
    await wait_until(names(registry, engine.address), "the dead engine is removed at once")
    seen = len(engine.requests)
    await wait_until(lambda: engine.requests[seen:].count("/metrics") > 8, "it is still polled")
    assert await serves(registry, engine.address, drains=True)(), "a request runs on it"
    assert await replica.dispatcher.release(lease)
    await wait_until(names(registry), "the idle engine is removed")
    await wait_until(lambda: _is_empty(registry), "its worker is removed")
    write(file, engine.address)
    await wait_until(serves(registry, engine.address), "it serves again at once, although it was just removed")


async def _is_empty(registry: Registry) -> bool:
    return not await alive(registry)


async def test_busy_engine_is_removed_after_the_time_limit(
    start: Starter, engine: AnswerServer, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_DRAIN_TIMEOUT", 0.3)
    engine.answers["/metrics"] = gauges(3, 0)
    file = write(tmp_path / "f", engine.address)
    start(workers_file=file)
    await wait_until(serves(registry, engine.address), "the engine is alive")
    write(file)
    await wait_until(names(registry), "the engine is removed though it is busy")


@pytest.mark.parametrize("was_draining", [False, True])
async def test_engine_that_is_listed_again_serves_again_unless_an_operator_had_drained_it(
    start: Starter, engine: AnswerServer, registry: Registry, tmp_path: Path, was_draining: bool
) -> None:
    engine.answers["/metrics"] = gauges(1, 0)
    file = write(tmp_path / "f", engine.address)
    replica = start(workers_file=file)
    await wait_until(serves(registry, engine.address), "the engine is alive")
    if was_draining:
        await replica.membership.drain(engine.address, caller=ADMIN)
    write(file)

    async def is_leaving() -> bool:
        return bool((await listed(registry))[engine.address].leaving_since)

    await wait_until(is_leaving, "it is leaving")
    await wait_until(serves(registry, engine.address, drains=True), "it drains")
    write(file, engine.address)

    async def stays() -> bool:
        return not await is_leaving()

    await wait_until(stays, "it is listed again")
    await wait_until(serves(registry, engine.address, drains=was_draining), "it is as before")


async def test_changed_entry_is_applied_and_leases_stay(
    start: Starter, engine: AnswerServer, registry: Registry, tmp_path: Path
) -> None:
    file = write(tmp_path / "f", f"{engine.address}, capacity: 4")
    replica = start(workers_file=file)
    await wait_until(serves(registry, engine.address), "the engine is alive")
    await replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)
    write(file, f"{engine.address}, capacity: 9, speed: 2")

    async def is_applied() -> bool:
        worker = (await alive(registry))[engine.address]
        return (worker.status.capacity, worker.status.speed, worker.leased) == (9, 2, 1)

    await wait_until(is_applied, "the worker has the new values")


async def test_engines_that_were_registered_by_hand_are_left_alone(
    start: Starter, engine: AnswerServer, registry: Registry, tmp_path: Path
) -> None:
    file = write(tmp_path / "f", SILENT)
    replica = start(workers_file=file)
    await replica.engines.register(engine.address, EngineEntry(capacity=5), ADMIN)
    await wait_until(names(registry, engine.address, SILENT), "both are registered")
    write(file, f"{engine.address}, capacity: 9", "http://127.0.0.1:2")
    await wait_until(names(registry, engine.address, "http://127.0.0.1:2"), "the file is applied")
    assert (await listed(registry))[engine.address].capacity == 5
    write(file, "http://127.0.0.1:3")
    await wait_until(names(registry, engine.address, "http://127.0.0.1:3"), "the file is applied")


async def test_refused_engines_do_not_hold_up_the_others(
    start: Starter, engine: AnswerServer, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = [f"http://127.0.1.{number}:8000" for number in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "_MAX_CHANGES", 3)
        start(workers_file=write(tmp_path / "f", *refused, engine.address), worker_allow="127.0.0.0/24")
        await wait_until(names(registry, engine.address), "the allowed engine is registered")
    problems = [record.getMessage() for record in caplog.records if "was not registered" in record.getMessage()]
    assert len(problems) == len(refused)
    assert "is not in --worker-allow" in problems[0]


async def version(registry: Registry) -> int:
    found = await registry.list_entries(ListName.ENGINES)
    return found.version if found else 0


async def looks(replica: Replica, number: int = 10) -> None:
    """Wait until a replica has compared its sources with the list some more times."""
    seen = 0
    decide = replica.discovery._decide

    async def counted(*arguments: object) -> bool:
        nonlocal seen
        seen += 1
        return await decide(*arguments)  # type: ignore[arg-type]

    replica.discovery._decide = counted  # type: ignore[method-assign, assignment]
    await wait_until(lambda: seen >= number, "the replica has looked at its source")


async def test_replicas_with_one_file_change_the_list_once(start: Starter, registry: Registry, tmp_path: Path) -> None:
    file = write(tmp_path / "f", SILENT, "http://127.0.0.1:2")
    replicas = [start(workers_file=file) for _ in range(3)]
    await wait_until(names(registry, SILENT, "http://127.0.0.1:2"), "both are registered")
    await asyncio.gather(*map(looks, replicas))
    assert await version(registry) == 2


async def test_of_replicas_with_different_files_one_decides_until_it_ends(
    start: Starter, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a rolling change, the list does not change back and forth."""
    monkeypatch.setattr(discovery, "_LOCK_TTL", 3600.0)
    both = "http://127.0.0.1:2"
    first = start(workers_file=write(tmp_path / "old", SILENT, both))
    await wait_until(names(registry, SILENT, both), "the old file is applied")
    second = start(workers_file=write(tmp_path / "new", both, "http://127.0.0.1:3"))
    await asyncio.gather(looks(first), looks(second))
    assert set(await listed(registry)) == {SILENT, both}
    assert await version(registry) == 2
    await start.stop(first)
    await wait_until(names(registry, both, "http://127.0.0.1:3"), "the new file is applied")


async def test_clock_of_redis_that_is_set_back_does_not_stop_the_discovery(
    start: Starter, registry: Registry, store: Store, tmp_path: Path
) -> None:
    """The deciding replica has crashed, and its lock lasts for the whole jump."""
    job = "discovery:file"
    assert await registry.acquire_job(job, "crashed", 5.0) == (True, "")
    assert await store.client.pexpire(keys.job(store.namespace, job), 3_600_000)
    start(workers_file=write(tmp_path / "f", SILENT))
    await wait_until(names(registry, SILENT), "another replica decides")


async def test_engines_of_a_name_are_registered_and_leave_with_their_address(
    start: Starter, engine: AnswerServer, registry: Registry, at_once: None, tmp_path: Path
) -> None:
    port = int(engine.address.rpartition(":")[2])
    other = f"http://127.0.0.2:{port}"
    replica = start(workers_dns=f"localhost:{port}", workers_file=write(tmp_path / "f", SILENT))
    [source] = [source for source in replica.discovery._sources if isinstance(source, DnsSource)]
    resolver = source._names[0]._resolve = Resolver("127.0.0.1", "127.0.0.2")
    await wait_until(names(registry, engine.address, other, SILENT), "both addresses are registered")
    await wait_until(serves(registry, engine.address), "the one that responds is alive")
    assert {name: str(entry.source) for name, entry in (await listed(registry)).items()} == {
        engine.address: "dns",
        other: "dns",
        SILENT: "file",
    }
    resolver.answer = ["127.0.0.2"]
    await wait_until(names(registry, other, SILENT), "the engine that has left the name is removed")
    write(tmp_path / "f", SILENT, f"{other}, capacity: 3")

    async def belongs_to_the_file() -> bool:
        return (await listed(registry))[other].capacity == 3

    await wait_until(belongs_to_the_file, "the file goes before the name")
    await looks(replica)
    assert (await listed(registry))[other].source == "file"
