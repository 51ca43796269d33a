"""Fixtures that start controllers as an operator does."""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_engines import KITS, Engine, EngineKit, EnginePool, llama_servers
from tests.system.processes import ControllerProcess

Serve = Callable[..., ControllerProcess]
_directories = itertools.count()


@pytest.fixture
def work_dir(short_dir: Path) -> Iterator[Path]:
    """Yield a directory for the processes of one test."""
    directory = short_dir / f"system-{next(_directories)}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def module_dir(short_dir: Path) -> Iterator[Path]:
    """Yield a directory for the processes that the tests of a file share."""
    directory = short_dir / f"system-{next(_directories)}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_process(module_dir: Path) -> Iterator[ControllerProcess]:
    """Start the controller that the tests of a file share. It does not poll."""
    process = ControllerProcess(module_dir / "data", "--poll-interval", "0")
    try:
        yield process.ready()
    finally:
        process.stop()


@pytest.fixture
def controller(shared_process: ControllerProcess) -> ControllerProcess:
    """Return a controller without workers, for tests that need no flags. Other tests of the file use it, too."""
    for name in shared_process.names():
        shared_process.post("/remove_worker", {"worker_name": name})
    return shared_process


@pytest.fixture(scope="session", params=KITS)
def kit(request: pytest.FixtureRequest) -> EngineKit:
    """Return each kind of engine that can run here."""
    kit: EngineKit = request.param
    return kit


@pytest.fixture(scope="session")
def engine_pool(short_dir: Path) -> Iterator[EnginePool]:
    """Return the engines that take long to start."""
    directory = short_dir / "engines"
    directory.mkdir()
    pool = EnginePool(directory)
    yield pool
    pool.close()


@pytest.fixture
def engines(kit: EngineKit, request: pytest.FixtureRequest, work_dir: Path) -> Iterator[Sequence[Engine]]:
    """Return two running engines, which serve one model. A test may end them."""
    if kit.kind != "llamacpp":
        yield request.getfixturevalue("engine_pool").take(kit, 2)
        return
    with llama_servers(work_dir, request.getfixturevalue("tiny_model"), {}, {}) as started:
        yield started


@pytest.fixture
def serve(work_dir: Path) -> Iterator[Serve]:
    """Yield a function that starts a controller and waits until it is ready.

    Controllers with the same `data` share a data directory.
    """
    started: list[ControllerProcess] = []

    def start(*flags: str, data: str = "data", ready: bool = True, **options: Any) -> ControllerProcess:
        process = ControllerProcess(work_dir / data, *flags, **options)
        started.append(process)
        return process.ready() if ready else process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.stop()
