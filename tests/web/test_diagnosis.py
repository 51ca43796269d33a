"""GET /diagnosis, and how long workers are stalled."""

from collections.abc import Awaitable, Callable

import pytest

from controller import __version__
from controller.fleet import diagnosis
from controller.store.registry import Registry
from tests.support.outage import Link
from tests.support.samples import A, B
from tests.support.waiting import wait_until
from tests.web.conftest import Api


async def test_the_replica_and_its_redis_are_described(api: Api) -> None:
    response = await api.http.get("/diagnosis")
    assert response.status_code == 200
    body = response.json()
    replica, store = body["replica"], body["store"]
    assert (replica["id"], replica["version"]) == (api.replica.replicas.id, __version__)
    assert replica["clock_jump"] is None
    assert 0 < replica["open_files"] <= replica["open_files_limit"]
    assert (store["unavailable"], store["timeout"]) == (None, 0.25)
    assert store["facts"]["round_trip"] > 0


async def test_during_an_outage_the_reason_is_reported(api: Api, link: Link) -> None:
    """The server itself still answers here, so its facts are known."""
    assert (await api.http.get("/healthz")).status_code == 200
    with link.broken():
        await api.post("/get_worker_address", {"model": "m"})
        response = await api.http.get("/diagnosis")
    store = response.json()["store"]
    assert response.status_code == 200
    assert store["unavailable"] == "Redis is away."
    assert store["facts"]["round_trip"] > 0


async def test_several_callers_within_a_second_ask_redis_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    diagnose = Registry.diagnose

    async def counted(self: Registry) -> object:
        nonlocal calls
        calls += 1
        return await diagnose(self)

    monkeypatch.setattr(Registry, "diagnose", counted)
    monkeypatch.setattr(diagnosis, "_KEPT_FOR", 3600.0)
    for _ in range(3):
        assert (await api.http.get("/diagnosis")).status_code == 200
    assert calls == 1


async def test_workers_shows_for_how_long_a_queue_has_not_shrunk(api: Api) -> None:
    await api.register(A, worker_status={"model_names": ["m"], "speed": 1, "queue_length": 7})
    await api.register(B)

    async def stalled() -> dict[str, float | None]:
        await api.replica.snapshots.take_now()
        workers = (await api.http.get("/workers")).json()["workers"]
        return {worker["worker_name"]: worker["stalled_for"] for worker in workers}

    first = await stalled()
    assert first[B] is None
    assert first[A] is not None
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 7})
    await wait_until(lambda: _exceeds(stalled, 0.2), "the stall is noticed")
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
    assert await stalled() == {A: None, B: None}


async def _exceeds(stalled: Callable[[], Awaitable[dict[str, float | None]]], seconds: float) -> bool:
    return ((await stalled())[A] or 0.0) > seconds
