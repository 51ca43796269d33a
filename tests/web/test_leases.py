"""Leases, drains and failures, as clients and operators ask for them."""

import pytest

from tests.support.outage import Link
from tests.support.samples import A, B
from tests.web.conftest import Api


async def lease(api: Api, **body: object) -> tuple[str, str]:
    answer = (await api.post("/get_worker_address", {"model": "m", "lease": True, **body})).json()
    assert answer.keys() == {"address", "lease"}
    return answer["address"], answer["lease"]


async def test_a_lease_is_released_once(api: Api) -> None:
    await api.register(A)
    address, lease_ = await lease(api)
    assert address == A
    assert (await api.http.get("/workers")).json()["workers"][0]["leased"] == 1
    assert (await api.post("/renew_lease", {"lease": lease_})).json() == {"renewed": True}
    assert (await api.post("/release_worker", {"lease": lease_})).json() == {"released": True}
    for _ in range(2):
        assert (await api.post("/release_worker", {"lease": lease_})).json() == {"released": False}
    assert (await api.post("/renew_lease", {"lease": lease_})).json() == {"renewed": False}
    [worker] = (await api.http.get("/workers")).json()["workers"]
    assert (worker["leased"], worker["queue_length"]) == (0, 0)


@pytest.mark.parametrize("end", ["register", "remove"])
async def test_a_lease_ends_with_the_life_of_its_worker(api: Api, end: str) -> None:
    await api.register(A)
    _, lease_ = await lease(api)
    if end == "remove":
        await api.post("/remove_worker", {"worker_name": A})
    await api.register(A)
    assert (await api.post("/release_worker", {"lease": lease_})).json() == {"released": False}
    [worker] = (await api.http.get("/workers")).json()["workers"]
    assert (worker["leased"], worker["queue_length"]) == (0, 0)


async def test_no_worker_no_lease(api: Api) -> None:
    assert await lease(api) == ("", "")


@pytest.mark.parametrize("none", [False, None, 0])
async def test_stock_clients_get_no_lease(api: Api, none: object) -> None:
    await api.register(A)
    answer = await api.post("/get_worker_address", {"model": "m", "lease": none})
    assert answer.json() == {"address": A}


@pytest.mark.parametrize("wrong", [-1, 86401, "1", [], 1e309])
async def test_a_lease_has_a_time(api: Api, wrong: object) -> None:
    body = f'{{"model": "m", "lease": {"1e309" if wrong == 1e309 else __import__("json").dumps(wrong)}}}'
    answer = await api.http.post("/get_worker_address", content=body.encode())
    assert (answer.status_code, "lease" in answer.text) == (400, True)


async def test_a_free_slot_comes_first(api: Api) -> None:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    await api.register(A, worker_status={**status, "capacity": 3})
    await api.register(B, worker_status={**status, "capacity": 1})
    chosen = [(await lease(api))[0] for _ in range(5)]
    assert sorted(chosen[:4]) == [A, A, A, B]
    assert chosen[4] == A, "where the next slot is free soonest"


async def test_while_the_store_is_away_there_are_no_leases(api: Api, link: Link) -> None:
    await api.register(A)
    await api.controller.snapshots._take_if_stale()
    with link.broken():
        assert await lease(api) == (A, "")
        answer = await api.post("/release_worker", {"lease": f"1800000000000-1000-1-1@{A}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")


async def test_a_worker_drains_until_it_is_resumed(api: Api) -> None:
    await api.register(A)
    await api.register(B)
    _, lease_ = await lease(api)
    assert (await api.post("/drain_worker", {"worker_name": A})).json() == {"exist": True}
    assert {await api.dispatch() for _ in range(3)} == {B}
    shown = {w["worker_name"]: w for w in (await api.http.get("/workers")).json()["workers"]}
    assert (shown[A]["draining"], shown[A]["drained"], shown[B]["draining"]) == (True, False, False)
    await api.post("/release_worker", {"lease": lease_})
    await api.register(A)
    shown = {w["worker_name"]: w for w in (await api.http.get("/workers")).json()["workers"]}
    assert (shown[A]["draining"], shown[A]["drained"]) == (True, True), "registering again does not end it"
    assert (await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})).json() == {"exist": True}
    assert (await api.post("/resume_worker", {"worker_name": A})).json() == {"exist": True}
    assert await api.dispatch() == A
    assert (await api.post("/drain_worker", {"worker_name": "http://127.0.0.1:1/c"})).json() == {"exist": False}


async def test_it_has_drained_when_it_says_so_itself(api: Api) -> None:
    async def drained() -> bool:
        return bool((await api.http.get("/workers")).json()["workers"][0]["drained"])

    await api.register(A)
    assert await api.dispatch() == A
    await api.post("/drain_worker", {"worker_name": A})
    assert not await drained(), "it was sent a request since it last spoke"
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 1})
    assert not await drained()
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
    assert await drained()


async def test_who_failed_comes_last_until_its_heartbeat(api: Api) -> None:
    await api.register(A)
    assert (await api.post("/report_failure", {"worker_name": A})).json() == {"exist": True}
    assert await api.dispatch() == A, "it is the only one"
    await api.register(B, worker_status={"model_names": ["m"], "speed": 1, "queue_length": 100})
    assert await api.dispatch() == B
    assert (await api.http.get("/workers")).json()["workers"][0]["failing"] == "request"
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 2})
    assert await api.dispatch() == A
    assert (await api.post("/report_failure", {"worker_name": "http://127.0.0.1:1/c"})).json() == {"exist": False}


async def test_what_a_lost_answer_leased_is_given_back(api: Api, link: Link) -> None:
    await api.register(A)
    await api.controller.snapshots._take_if_stale()
    with link.broken("after", "dispatch_shortest_queue"):
        assert await lease(api) == (A, "")
    await api.controller.breaker._probing  # type: ignore[misc]
    [worker] = (await api.registry.list_workers()).workers
    assert (worker.leased, worker.status.queue_length) == (0, 1), "and what the snapshot chose is booked"
