import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.upstream.client import WorkerClient
from tests.support.llamacpp import write_model


@pytest.fixture
async def impatient_client() -> AsyncIterator[WorkerClient]:
    """Return a client with a short timeout, for engines that never answer."""
    opened = WorkerClient(probe_timeout=0.2, worker_timeout=0.2)
    yield opened
    await opened.close()


class FakeClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model for llama.cpp. Skips the test if the package with the real server is not installed."""
    for package in ("xllamacpp", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"NOT TESTED: a real llama.cpp server. There is no wheel of {package} for this platform.")
    path = tmp_path_factory.mktemp("llamacpp") / "tiny.gguf"
    write_model(path)
    return path
