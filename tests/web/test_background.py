"""The background tasks of a replica."""

import asyncio

import pytest

from controller.web import app


async def test_task_that_fails_is_started_again_and_one_that_returns_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "_RESTART_PAUSE", 0.01)
    runs = 0

    async def fail_twice() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise RuntimeError("a bug")

    async with asyncio.timeout(60):
        await app._restart(fail_twice)
    assert runs == 3
    assert caplog.text.count("A background task failed because of a bug") == 2
