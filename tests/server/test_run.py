"""The processes of `controller serve`, without the server itself."""

import os

import pytest
import uvicorn

from controller.server import run
from controller.settings import Settings
from controller.store_url import parse_store_url


@pytest.mark.parametrize(("given", "expected"), [("", "16"), ("5", "5")])
def test_silent_name_servers_leave_threads_for_other_lookups_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    """libuv reads the variable. It uses half of its threads for lookups, such as those of Redis."""
    monkeypatch.setenv("UV_THREADPOOL_SIZE", given)
    if not given:
        monkeypatch.delenv("UV_THREADPOOL_SIZE")
    found = []

    def serve(server: uvicorn.Server, _: object) -> None:
        server.started = True
        found.append(os.environ.get("UV_THREADPOOL_SIZE"))

    monkeypatch.setattr(uvicorn.Server, "run", serve)
    run._run(Settings(), parse_store_url("redis://localhost"), [])
    assert found == [expected]
