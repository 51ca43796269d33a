"""The worker interface of a whole cluster, over HTTP."""

import asyncio
import json

import pytest

from controller.domain.hops import HEADER
from controller.web.routes import forward
from controller.web.routes.table import ROUTES
from tests.support.samples import A
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, chunks
from tests.web.conftest import Api

LOOP = 50001
WORKER_ROUTES = [route.path for route in ROUTES if route.handler is forward.worker_call]


@pytest.mark.parametrize("path", [*WORKER_ROUTES, "/v1/rerank", "/generate-2"])
async def test_a_request_is_forwarded_to_a_worker_of_its_model(api: Api, path: str) -> None:
    name = path.rpartition("/")[2]
    async with bad_worker(**{name: answers(b'{"answer": 1}', "200 OK", "Content-Type: application/json")}) as living:
        await api.register(living.address)
        response = await api.post(path, {"model": "m", "input": "x"})
        assert (response.status_code, response.json()) == (200, {"answer": 1})
        assert response.headers["content-type"] == "application/json"
        [(_, body)] = living.requests
        assert json.loads(body) == {"model": "m", "input": "x"}


@pytest.mark.parametrize("path", WORKER_ROUTES)
async def test_without_a_worker_it_says_so_in_both_languages(api: Api, path: str) -> None:
    """With a status that FastChat's API server reads on at, and with another for a controller above us."""
    for way, status in (({}, 200), ({HEADER: "top"}, 503)):
        response = await api.http.post(path, json={"model": "m"}, headers=way)
        told = response.json()
        assert (response.status_code, told["error"]["code"], told["error_code"]) == (status, "no_worker", 50005)
        assert "m" in told["text"]
    assert (await api.post(path, {"input": "x"})).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/unknown", {"model": "m"}),
        ("/unknown", {"input": "x"}),
        ("/unknown", "text"),
        ("/a/..%2Fb", {"model": "served"}),
        ("/a%20b", {"model": "served"}),
        ("/" + "a" * 200, {"model": "served"}),
        ("//a", {"model": "served"}),
    ],
)
async def test_what_is_for_no_worker_is_not_found(api: Api, path: str, body: object) -> None:
    async with bad_worker() as living:
        await api.register(living.address, "served")
        response = await api.http.post(f"http://controller{path}", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
        assert living.requests == []


async def test_a_dead_worker_is_told_in_both_languages(api: Api) -> None:
    await api.register("http://127.0.0.1:1")
    for path, way, status in (
        ("/worker_generate", {}, 200),
        ("/worker_generate", {HEADER: "top"}, 502),
        ("/v1/x", {}, 502),
    ):
        response = await api.http.post(path, json={"model": "m"}, headers=way)
        told = response.json()
        assert (response.status_code, told["error"]["code"], told["error_code"]) == (
            status,
            "worker_unreachable",
            50006,
        )


async def test_a_worker_s_refusal_is_passed_on_as_it_is(api: Api) -> None:
    refusal = answers(b"oops", "503 Busy", "Content-Type: text/plain")
    async with bad_worker(worker_generate=refusal, count_token=answers(b"no", "422 No")) as living:
        await api.register(living.address)
        response = await api.post("/worker_generate", {"model": "m"})
        assert (response.status_code, response.text, response.headers["content-type"]) == (503, "oops", "text/plain")
        response = await api.post("/count_token", {"model": "m"})
        assert (response.status_code, response.text) == (422, "no")


@pytest.mark.parametrize(
    "head",
    [
        b"200 OK\r\nContent-Type: text/plain; x=\xff",
        b"200 OK\r\nContent-Type: text/\xe2\x86\x92",
        b"101 Switching Protocols\r\nUpgrade: x",
        b"099 Too low",
        b"600 Too high",
    ],
)
@pytest.mark.parametrize("path", ["/worker_generate", "/worker_generate_stream"])
async def test_an_answer_with_an_odd_head_leaves_nothing_booked(api: Api, path: str, head: bytes) -> None:
    async def odd(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 %s\r\nConnection: close\r\n\r\na\0" % head)

    async with bad_worker(worker_generate=odd, worker_generate_stream=odd) as living:
        await api.register(living.address)
        response = await api.post(path, {"model": "m"})
        if head.startswith(b"200"):
            assert (response.status_code, response.content) == (200, b"a\0")
            [told] = [value for name, value in response.headers.raw if name == b"content-type"]
            assert told == head.partition(b"Type: ")[2]
        else:
            assert json.loads(response.content.rstrip(b"\0"))["error_code"] == 50006
            assert response.status_code == 200
        await wait_until(lambda: not api.controller.forwarder._background, "the ends are told")
        assert [known.leased for known in (await api.registry.list_workers()).workers] == [0]
        assert api.controller.forwarder._renewals == {}
        await wait_until(lambda: not living.open, "no connection is left")


@pytest.mark.parametrize(("way", "statuses"), [({}, (200, 200, 200)), ({HEADER: "top"}, (503, 502, 502))])
async def test_a_controller_above_us_sees_by_the_status_that_it_should_try_another(
    api: Api, way: dict[str, str], statuses: tuple[int, ...]
) -> None:
    """And FastChat's clients get a frame, and 200."""

    async def ask() -> tuple[int, int]:
        response = await api.http.post("/worker_generate_stream", json={"model": "m"}, headers=way)
        return response.status_code, json.loads(response.content[:-1])["error_code"]

    without, unreachable, refused = statuses
    assert await ask() == (without, 50005)
    await api.register("http://127.0.0.1:1")
    assert await ask() == (unreachable, 50006)
    async with bad_worker(worker_generate_stream=answers(b"{}", "400 No")) as living:
        await api.post("/remove_worker", {"worker_name": "http://127.0.0.1:1"})
        await api.register(living.address)
        assert await ask() == (refused, 50006)


async def test_what_a_cluster_below_says_of_a_circle_is_passed_on(api: Api) -> None:
    frame = b'{"text":"This request has come back","error_code":50001}\0'
    async with bad_worker(worker_generate_stream=answers(frame, "508 Loop Detected")) as below:
        await api.register(below.address)
        for headers, status in (({}, 200), ({HEADER: "top"}, 508)):
            response = await api.http.post("/worker_generate_stream", json={"model": "m"}, headers=headers)
            assert (response.status_code, response.content) == (status, frame)


async def test_a_controller_above_us_tries_another_for_an_unknown_path_too(api: Api) -> None:
    """It has found a worker of the model here, which is gone."""
    response = await api.http.post("/v1/rerank", json={"model": "m"}, headers={HEADER: "top"})
    told = response.json()
    assert (response.status_code, told["error"]["code"], told["error_code"]) == (503, "no_worker", 50005)


async def test_a_request_that_goes_in_a_circle_ends(api: Api) -> None:
    async with bad_worker(worker_generate=answers(b"{}"), worker_generate_stream=chunks(b"a\0")) as living:
        await api.register(living.address)
        own = api.controller.snapshots.cluster_id
        for way, passes in (("top,middle", True), (f"top,{own}", False), (",".join("abcdefgh"), False)):
            headers = {HEADER: way}
            response = await api.http.post("/worker_generate", json={"model": "m"}, headers=headers)
            stream = await api.http.post("/worker_generate_stream", json={"model": "m"}, headers=headers)
            if passes:
                assert (response.status_code, stream.content) == (200, b"a\0")
            else:
                told = response.json()
                assert (response.status_code, told["error"]["code"], told["error_code"]) == (508, "loop_detected", LOOP)
                frame = json.loads(stream.content[:-1])
                assert (frame["error_code"], frame["text"]) == (LOOP, told["text"])
    response = await api.http.post("/worker_generate", json={"model": "m"}, headers={HEADER: "a b"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_input")


async def test_a_cluster_is_not_its_own_worker(api: Api) -> None:
    await api.controller.snapshots._return_to_redis()  # and it knows how it is called
    own = api.controller.snapshots.cluster_id
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    body = {"worker_name": A, "check_heart_beat": True, "worker_status": status}
    response = await api.http.post("/register_worker", json=body, headers={HEADER: own})
    assert (response.status_code, response.json()["error"]["code"]) == (508, "loop_detected")
    asked = await api.http.post("/worker_get_status", headers={HEADER: f"x,{own}"})
    assert asked.status_code == 508, "so a registration without a status is refused, too"
    assert (await api.registry.list_workers()).workers == []
    assert (await api.http.post("/register_worker", json=body, headers={HEADER: "another"})).status_code == 200


async def test_capacities_are_summed_where_all_tell_them(api: Api) -> None:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    await api.register("http://127.0.0.1:1/a", worker_status={**status, "capacity": 3})
    await api.register("http://127.0.0.1:1/b", worker_status={**status, "capacity": 5})
    assert (await api.post("/worker_get_status")).json()["capacity"] == 8
    await api.register("http://127.0.0.1:1/c", worker_status=status)
    assert "capacity" not in (await api.post("/worker_get_status")).json()
