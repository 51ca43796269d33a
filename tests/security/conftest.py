"""Applications on a real store, real processes, and a name server whose answers change."""

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.conftest import Store
from tests.system.conftest import controller, module_dir, serve, shared_process, work_dir
from tests.web.conftest import Api, open_api

__all__ = ["controller", "module_dir", "serve", "shared_process", "work_dir"]  # fixtures of the system tests

OpenApi = Callable[..., contextlib.AbstractAsyncContextManager[Api]]


@pytest.fixture
def open_guarded(store: Store) -> OpenApi:
    """Return a function that opens an application with the given settings."""
    return partial(open_api, store.registry())


class NameServer:
    """Answers name look-ups of this process.

    answers: lists of addresses by name. Each look-up takes the next one. The last one is repeated.
    lookups: the names that were looked up.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.lookups: list[str] = []

    def getaddrinfo(self, host: str, port: int | None, *_: Any, **__: Any) -> list[Any]:
        self.lookups.append(host)
        answers = self.answers.get(host)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address.partition("%")[0], port or 0, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0))
            for address in addresses
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    """Return the name server that all look-ups of this process go to."""
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    return server
