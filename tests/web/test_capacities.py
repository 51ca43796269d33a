"""The routes that set and list capacities."""

from typing import Any

import pytest

from controller.store import capacities
from tests.support.outage import Link
from tests.support.samples import A, B
from tests.web.conftest import Api


async def listed(api: Api) -> Any:
    return (await api.http.get("/capacities")).json()["capacities"]


async def test_capacity_is_set_shown_and_removed(api: Api) -> None:
    await api.register(A)
    await api.register(B, worker_status={"model_names": ["m"], "speed": 1, "queue_length": 0, "capacity": 7})
    assert await listed(api) == []
    response = await api.post("/set_capacity", {"model": "m", "capacity": 5.0})
    assert (response.status_code, response.json()) == (200, {"previous": None, "workers": 2})
    body = {"worker_name": "HTTP://127.0.0.1:1/late/", "capacity": 2}
    assert (await api.post("/set_capacity", body)).json() == {"previous": None, "workers": 0}
    assert await listed(api) == [
        {"model": "m", "capacity": 5},
        {"worker_name": "http://127.0.0.1:1/late", "capacity": 2},
    ]
    shown = {worker["worker_name"]: worker for worker in (await api.http.get("/workers")).json()["workers"]}
    assert [(shown[name]["capacity"], shown[name]["capacity_source"]) for name in (A, B)] == [
        (5, "configured"),
        (7, "reported"),
    ]
    assert (await api.post("/set_capacity", {"model": "m", "capacity": None})).json() == {"previous": 5, "workers": 2}
    shown = {worker["worker_name"]: worker for worker in (await api.http.get("/workers")).json()["workers"]}
    assert (shown[A]["capacity"], shown[A]["capacity_source"]) == (None, None)


async def test_next_dispatch_uses_the_capacity(api: Api) -> None:
    await api.register(A)
    await api.register(B, worker_status={"model_names": ["m"], "speed": 1, "queue_length": 3})
    assert await api.dispatch() == A
    await api.post("/set_capacity", {"model": "m", "capacity": 9})
    await api.post("/set_capacity", {"worker_name": A, "capacity": 1})
    assert await api.dispatch() == B, "A has no free slot"
    await api.post("/set_capacity", {"worker_name": A, "capacity": None})
    assert await api.dispatch() == A


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"capacity": 1}, "worker_name"),
        ({"worker_name": None, "model": None, "capacity": 1}, "worker_name"),
        ({"worker_name": A, "model": "m", "capacity": 1}, "model"),
        ({"model": "", "capacity": 1}, "model"),
        ({"model": "a\nb", "capacity": 1}, "model"),
        ({"model": "m" * 513, "capacity": None}, "model"),
        ({"worker_name": "no url", "capacity": None}, "worker_name"),
        ({"model": "m"}, "capacity"),
        ({"model": "m", "capacity": 0}, "capacity"),
        ({"model": "m", "capacity": 1_000_001}, "capacity"),
    ],
)
async def test_invalid_request_is_400_and_names_the_field(api: Api, body: object, field: str) -> None:
    response = await api.post("/set_capacity", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_input")
    assert field in error["message"]
    assert await listed(api) == []


async def test_too_many_capacities_are_400(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacities, "MAX_CAPACITIES", 1)
    await api.post("/set_capacity", {"model": "m", "capacity": 5})
    response = await api.post("/set_capacity", {"model": "n", "capacity": 5})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("model: 1 capacities are set already")


async def test_during_an_outage_capacities_are_listed_but_not_set(api: Api, link: Link) -> None:
    await api.post("/set_capacity", {"model": "m", "capacity": 5})
    await api.replica.snapshots.take_now()
    with link.broken():
        response = await api.post("/set_capacity", {"model": "m", "capacity": 6})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
        response = await api.http.get("/capacities")
        assert response.json() == {"capacities": [{"model": "m", "capacity": 5}]}
        assert "x-controller-degraded" in response.headers
