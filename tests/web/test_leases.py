"""Leases, drains and failure reports over HTTP."""

import pytest

from tests.support.outage import Link
from tests.support.samples import A, B
from tests.web.conftest import Api


async def dispatch_with_lease(api: Api, **body: object) -> tuple[str, str]:
    response = (await api.post("/get_worker_address", {"model": "m", "lease": True, **body})).json()
    assert response.keys() == {"address", "lease"}
    return response["address"], response["lease"]


async def test_lease_is_released_once(api: Api) -> None:
    await api.register(A)
    address, lease_id = await dispatch_with_lease(api)
    assert address == A
    assert (await api.http.get("/workers")).json()["workers"][0]["leased"] == 1
    assert (await api.post("/renew_lease", {"lease": lease_id})).json() == {"renewed": True}
    assert (await api.post("/release_worker", {"lease": lease_id})).json() == {"released": True}
    for _ in range(2):
        assert (await api.post("/release_worker", {"lease": lease_id})).json() == {"released": False}
    assert (await api.post("/renew_lease", {"lease": lease_id})).json() == {"renewed": False}
    [worker] = (await api.http.get("/workers")).json()["workers"]
    assert (worker["leased"], worker["queue_length"]) == (0, 0)


@pytest.mark.parametrize("end", ["register", "remove"])
async def test_lease_ends_when_its_worker_is_removed_or_registers_again(api: Api, end: str) -> None:
    await api.register(A)
    _, lease_id = await dispatch_with_lease(api)
    if end == "remove":
        await api.post("/remove_worker", {"worker_name": A})
    await api.register(A)
    assert (await api.post("/release_worker", {"lease": lease_id})).json() == {"released": False}
    [worker] = (await api.http.get("/workers")).json()["workers"]
    assert (worker["leased"], worker["queue_length"]) == (0, 0)


async def test_dispatch_without_a_worker_returns_no_lease(api: Api) -> None:
    assert await dispatch_with_lease(api) == ("", "")


@pytest.mark.parametrize("value", [False, None, 0])
async def test_dispatch_without_a_lease_request_returns_no_lease(api: Api, value: object) -> None:
    await api.register(A)
    response = await api.post("/get_worker_address", {"model": "m", "lease": value})
    assert response.json() == {"address": A}


@pytest.mark.parametrize("wrong", ["-1", "86401", '"1"', "[]", "1e309"])
async def test_invalid_lease_time_is_400(api: Api, wrong: str) -> None:
    body = f'{{"model": "m", "lease": {wrong}}}'
    response = await api.http.post("/get_worker_address", content=body.encode())
    assert (response.status_code, "lease" in response.text) == (400, True)


async def test_dispatch_prefers_a_worker_with_a_free_slot(api: Api) -> None:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    await api.register(A, worker_status={**status, "capacity": 3})
    await api.register(B, worker_status={**status, "capacity": 1})
    chosen = [(await dispatch_with_lease(api))[0] for _ in range(5)]
    assert sorted(chosen[:4]) == [A, A, A, B]
    assert chosen[4] == A, "if all slots are taken, the worker with more slots frees one sooner"


async def test_degraded_dispatch_returns_no_lease(api: Api, link: Link) -> None:
    await api.register(A)
    await api.replica.snapshots.take_now()
    with link.broken():
        assert await dispatch_with_lease(api) == (A, "")
        response = await api.post("/release_worker", {"lease": f"1800000000000-1000-1-1@{A}"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")


async def test_worker_drains_until_it_is_resumed(api: Api) -> None:
    await api.register(A)
    await api.register(B)
    _, lease_id = await dispatch_with_lease(api)
    assert (await api.post("/drain_worker", {"worker_name": A})).json() == {"exist": True, "drained": False}
    assert {await api.dispatch() for _ in range(3)} == {B}
    shown = {w["worker_name"]: w for w in (await api.http.get("/workers")).json()["workers"]}
    assert (shown[A]["draining"], shown[A]["drained"], shown[B]["draining"]) == (True, False, False)
    await api.post("/release_worker", {"lease": lease_id})
    await api.register(A)
    shown = {w["worker_name"]: w for w in (await api.http.get("/workers")).json()["workers"]}
    assert (shown[A]["draining"], shown[A]["drained"]) == (True, True), "a new registration does not end the drain"
    assert (await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})).json() == {"exist": True}
    assert (await api.post("/resume_worker", {"worker_name": A})).json() == {"exist": True}
    assert await api.dispatch() == A
    assert (await api.post("/drain_worker", {"worker_name": "http://127.0.0.1:1/c"})).json() == {
        "exist": False,
        "drained": False,
    }


async def test_worker_is_drained_when_it_reports_an_empty_queue(api: Api) -> None:
    async def drained() -> bool:
        return bool((await api.http.get("/workers")).json()["workers"][0]["drained"])

    await api.register(A)
    assert await api.dispatch() == A
    await api.post("/drain_worker", {"worker_name": A})
    assert not await drained(), "it got a request after its last report"
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 1})
    assert not await drained()
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
    assert await drained()


async def test_failed_worker_is_deprioritised_until_its_heartbeat(api: Api) -> None:
    await api.register(A)
    assert (await api.post("/report_failure", {"worker_name": A})).json() == {"exist": True}
    assert await api.dispatch() == A, "it is the only worker"
    await api.register(B, worker_status={"model_names": ["m"], "speed": 1, "queue_length": 100})
    assert await api.dispatch() == B
    assert (await api.http.get("/workers")).json()["workers"][0]["failing"] == "request"
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 2})
    assert await api.dispatch() == A
    assert (await api.post("/report_failure", {"worker_name": "http://127.0.0.1:1/c"})).json() == {"exist": False}


async def test_lease_of_a_lost_reply_is_released(api: Api, link: Link) -> None:
    await api.register(A)
    await api.replica.snapshots.take_now()
    with link.broken("after", "dispatch_shortest_queue"):
        assert await dispatch_with_lease(api) == (A, "")
    await api.replica.breaker._probing  # type: ignore[misc]
    [worker] = (await api.registry.list_workers()).workers
    assert (worker.leased, worker.status.queue_length) == (0, 1), "the dispatch from the snapshot is booked"
