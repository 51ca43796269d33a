"""Real llama.cpp servers with a tiny model, which the tests write themselves."""

import contextlib
import importlib.util
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.llamacpp.tiny_model import write_model
from tests.support.llamacpp_server import CONTEXT, NAME
from tests.system.processes import Process

__all__ = ["CONTEXT", "NAME", "LlamaServer", "llama_server", "tiny_model", "write_model"]

_SCRIPT = Path(__file__).with_name("llamacpp_server.py")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model for llama.cpp. Skips the test if the package with the real server is not installed."""
    for package in ("xllamacpp", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"NOT TESTED: a real llama.cpp server. There is no wheel of {package} for this platform.")
    path = tmp_path_factory.mktemp("llamacpp") / "tiny.gguf"
    write_model(path)
    return path


class LlamaServer(Process):
    """A llama.cpp server in a process of its own. The options are those of xllamacpp.CommonParams."""

    def __init__(self, log: Path, model: Path, slots: int, **options: object) -> None:
        flags = [f"{name}={value!r}" for name, value in options.items()]
        super().__init__(log, str(_SCRIPT), str(model), str(slots), *flags)
        self.wait_for(lambda: self._address(), "the server listens")
        self.address = str(self._address())

    def _address(self) -> str | None:
        found = re.search(r"^listening on (http://\S+)$", self.log, re.MULTILINE)
        return found[1] if found else None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=60) as response:
            return json.load(response)


@contextlib.contextmanager
def llama_server(directory: Path, model: Path, slots: int = 2, **options: object) -> Iterator[LlamaServer]:
    server = LlamaServer(directory / "llama.log", model, slots, **options)
    try:
        yield server
    finally:
        server.kill()  # also ends a stopped process
