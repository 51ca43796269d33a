"""Test that a call ends when its budget is spent, by units of work or by time, and that later calls do the rest."""

from collections.abc import Callable

import pytest

from controller.domain.dispatch import DispatchMethod
from controller.store.reconciliation import split
from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.budget import little_time, small_budget
from tests.support.samples import A, B, C, asks, reports, worker

LEASE_MS = 60_000
Limit = Callable[[pytest.MonkeyPatch], None]
LIMITS = pytest.mark.parametrize("limit", [little_time, small_budget])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | int, ...]]:
    """Return a list to which the arguments of each call of a script are added, after the name of the script."""
    made: list[tuple[str | int, ...]] = []
    run = Registry._run

    async def recording(self: Registry, script: str, *arguments: str | int) -> object:
        made.append((script, *arguments))
        return await run(self, script, *arguments)

    monkeypatch.setattr(Registry, "_run", recording)
    return made


@LIMITS
async def test_heartbeats_are_recorded_in_several_calls(
    store: Store, calls: list[tuple[str | int, ...]], limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch)
    registry = store.registry()
    names = [f"http://w{i}:1" for i in range(9)]
    for name in names:
        await registry.register(worker(name))
    calls.clear()
    assert await registry.heartbeat(reports([(name, 3) for name in names])) == [True] * 9
    assert len(calls) > 2
    assert [known.status.queue_length for known in (await registry.list_workers()).workers] == [3] * 9


@LIMITS
@pytest.mark.parametrize("lease_ms", [0, LEASE_MS])
async def test_the_dispatches_of_one_call_are_taken_back_in_several(
    store: Store, calls: list[tuple[str | int, ...]], limit: Limit, lease_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.registry()
    for name in (A, B, C):
        await before.register(worker(name))
    await before.dispatch_some(DispatchMethod.SHORTEST_QUEUE, asks(["m"] * 9, lease_ms))
    [(_, unanswered, *_)] = [call for call in calls if call[0] == "dispatch_shortest_queue"]
    await before.dispatch_some(DispatchMethod.SHORTEST_QUEUE, asks(["m"] * 2, lease_ms))
    limit(monkeypatch)
    registry = store.registry()
    calls.clear()
    [reconciliation] = split({A: 1}, [str(unanswered)], 0)
    await registry.reconcile(reconciliation)
    first = len(calls)
    assert first > 2
    await registry.reconcile(reconciliation)
    assert len(calls) == 2 * first, "a repeated report makes the same calls, which change nothing"
    known = (await registry.list_workers()).workers
    assert sum(each.status.queue_length for each in known) == 3
    assert sum(each.leased for each in known) == (2 if lease_ms else 0)
