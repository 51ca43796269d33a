"""GET /explain says which worker the next request of a model would get, and GET /replicas lists the replicas."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller import __version__
from tests.conftest import Store
from tests.support.openai_engines import engine_worker
from tests.support.outage import Link
from tests.support.samples import A, B, C
from tests.support.waiting import wait_until
from tests.web.conftest import Api, open_api


async def explain(api: Api, model: str = "m") -> dict[str, Any]:
    response = await api.http.get("/explain", params={"model": model})
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body


def status(queue_length: int, capacity: int | None = None, speed: float = 1) -> dict[str, Any]:
    return {"model_names": ["m"], "speed": speed, "queue_length": queue_length, "capacity": capacity}


async def test_the_chosen_worker_gets_the_next_request(api: Api) -> None:
    await api.register(A, worker_status=status(3))
    await api.register(B, worker_status=status(1))
    await api.register(C, worker_status=status(0))
    await api.post("/drain_worker", {"worker_name": C})
    body = await explain(api)
    assert (body["model"], body["method"], body["chosen"], body["workers"]) == ("m", "shortest_queue", B, 3)
    assert body["candidates"][0] == {
        "worker_name": B,
        "state": "free",
        "cost": 1.0,
        "odds": None,
        "queue_length": 1.0,
        "leased": 0,
        "capacity": None,
        "speed": 1.0,
    }
    assert body["excluded"] == [{"worker_name": C, "reason": "draining"}]
    assert await api.dispatch() == B


async def test_states_come_in_order_and_the_cost_is_that_within_the_state(api: Api) -> None:
    for name, queue_length in ((A, 0), (B, 1), (C, 7)):
        await api.register(name, worker_status=status(queue_length, capacity=4))
    await api.post("/report_failure", {"worker_name": A})
    found = [(each["worker_name"], each["state"], each["cost"]) for each in (await explain(api))["candidates"]]
    assert found == [(B, "free", 1.0), (C, "full", 1.0), (A, "failing", 0.0)]


@pytest.mark.parametrize("model", ["", "x" * 513, "a\nb"])
async def test_an_invalid_model_is_refused(api: Api, model: str) -> None:
    response = await api.http.get("/explain", params={"model": model})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_input")


async def test_a_model_without_workers_has_no_candidates(api: Api) -> None:
    body = await explain(api, "absent")
    assert (body["chosen"], body["workers"], body["candidates"], body["excluded"]) == (None, 0, [], [])


async def test_engines_are_explained_and_come_before_workers_of_fastchat(api: Api) -> None:
    """The gateway, too, chooses a worker of FastChat's protocol only if no engine takes requests."""
    await api.registry.register(engine_worker(A, "m", queue_length=3))
    await api.registry.register(engine_worker(B, "m", queue_length=1))
    body = await explain(api)
    assert (body["chosen"], body["workers"], [each["worker_name"] for each in body["candidates"]]) == (B, 2, [B, A])
    await api.register(C, worker_status=status(0))
    assert (await explain(api))["chosen"] == B
    await api.post("/drain_worker", {"worker_name": B})
    body = await explain(api)
    assert (body["chosen"], body["excluded"]) == (A, [{"worker_name": B, "reason": "draining"}])
    await api.post("/drain_worker", {"worker_name": A})
    assert (await explain(api))["chosen"] == C
    await api.post("/remove_worker", {"worker_name": C})
    body = await explain(api)
    assert (body["chosen"], body["workers"], len(body["excluded"])) == (None, 2, 2)


async def test_a_name_with_a_route_is_explained_by_the_first_model_with_a_worker(api: Api) -> None:
    await api.registry.register(engine_worker(A, "served"))
    await api.post("/set_model_route", {"model": "name", "targets": {"absent": 9}, "fallbacks": ["served"]})
    body = await explain(api, "name")
    assert (body["model"], body["served_model"], body["routed_to"], body["chosen"]) == (
        "name",
        "served",
        ["absent", "served"],
        A,
    )
    body = await explain(api, "served")
    assert (body["served_model"], body["routed_to"], body["chosen"]) == ("served", [], A)


@pytest.fixture
async def drawing(store: Store) -> AsyncIterator[Api]:
    async with open_api(store.registry(), dispatch_method="lottery") as opened:
        yield opened


async def test_the_lottery_has_odds(drawing: Api) -> None:
    for name, speed in ((A, 1), (B, 3), (C, 9)):
        await drawing.register(name, worker_status=status(0, speed=speed))
    await drawing.post("/report_failure", {"worker_name": C})
    body = await explain(drawing)
    assert (body["method"], body["chosen"]) == ("lottery", None)
    assert [(each["worker_name"], each["odds"], each["cost"]) for each in body["candidates"]] == [
        (B, 0.75, None),
        (A, 0.25, None),
        (C, 0.0, None),
    ]


async def test_without_redis_the_snapshot_explains(api: Api, link: Link) -> None:
    await api.register(A, worker_status=status(2))
    await api.register(B, worker_status=status(1))
    await api.replica.snapshots.take_now()
    with link.broken():
        response = await api.http.get("/explain", params={"model": "m"})
        assert "x-controller-degraded" in response.headers
        assert [each["worker_name"] for each in response.json()["candidates"]] == [B, A]
        assert response.json()["chosen"] == B
        assert (await api.http.get("/replicas")).status_code == 503
    await wait_until(lambda: api.replica.breaker.reason is None, "the replica uses the store again")


async def test_replicas_are_listed_with_version_and_settings(api: Api) -> None:
    await api.replica.replicas.join()
    await api.registry.join_replicas("old", 60.0, "no JSON")
    replicas = (await api.http.get("/replicas")).json()["replicas"]
    own = next(each for each in replicas if each["id"] == api.replica.replicas.id)
    assert (own["name"], own["version"]) == (api.replica.replicas.name, __version__)
    assert own["settings"]["dispatch_method"] == "shortest_queue"
    assert {"id": "old", "name": "old", "version": "", "started_at": None, "settings": {}} in replicas
    await api.registry.leave_replicas("old")
