"""A controller as an operator starts it."""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.processes import ControllerProcess

Serve = Callable[..., ControllerProcess]
_directories = itertools.count()


@pytest.fixture
def work_dir(short_dir: Path) -> Iterator[Path]:
    """A directory for a test's processes."""
    directory = short_dir / f"system-{next(_directories)}"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def serve(work_dir: Path) -> Iterator[Serve]:
    """Starts controllers, each ready when it is returned; with `data` two of them are on the same directory."""
    started: list[ControllerProcess] = []

    def start(*flags: str, data: str = "data", ready: bool = True, **options: object) -> ControllerProcess:
        process = ControllerProcess(work_dir / data, *flags, **options)
        started.append(process)
        return process.ready() if ready else process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.stop()
