"""Requests that the cluster forwards to its workers, over HTTP."""

import asyncio
import json
import threading

import pytest

from controller.domain.hops import HEADER
from controller.web.routes import forward
from controller.web.routes.table import ROUTES
from controller.web.schemas import fastchat as schemas
from tests.support.samples import A
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, chunks
from tests.web.conftest import Api

LOOP = 50001
WORKER_ROUTES = [route.path for route in ROUTES if route.handler in (forward.worker_generate, forward.worker_lookup)]


@pytest.mark.parametrize("path", [*WORKER_ROUTES, "/v1/rerank", "/v1/audio/speech"])
async def test_request_is_forwarded_to_a_worker_of_its_model(api: Api, path: str) -> None:
    name = path.rpartition("/")[2]
    async with bad_worker(**{name: answers(b'{"answer": 1}', "200 OK", "Content-Type: application/json")}) as healthy:
        await api.register(healthy.address)
        response = await api.post(path, {"model": "m", "input": "x"})
        assert (response.status_code, response.json()) == (200, {"answer": 1})
        assert response.headers["content-type"] == "application/json"
        [(_, body)] = healthy.requests
        assert json.loads(body) == {"model": "m", "input": "x"}


@pytest.mark.parametrize("path", WORKER_ROUTES)
async def test_missing_worker_is_an_error_in_our_format_and_fastchats(api: Api, path: str) -> None:
    """The status is 200 for FastChat's API server, which fails at any other, and 503 for a parent controller."""
    for headers, status in (({}, 200), ({HEADER: "top"}, 503)):
        response = await api.http.post(path, json={"model": "m"}, headers=headers)
        error = response.json()
        assert (response.status_code, error["error"]["code"], error["error_code"]) == (status, "no_worker", 50005)
        assert "m" in error["text"]
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
        ("/not-listed", {"model": "served"}),
    ],
)
async def test_unknown_path_or_model_is_404(api: Api, path: str, body: object) -> None:
    async with bad_worker() as healthy:
        await api.register(healthy.address, "served")
        response = await api.http.post(f"http://controller{path}", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
        assert healthy.requests == []


async def test_unreachable_worker_is_an_error_in_our_format_and_fastchats(api: Api) -> None:
    await api.register("http://127.0.0.1:1")
    for path, headers, status in (
        ("/worker_generate", {}, 200),
        ("/worker_generate", {HEADER: "top"}, 502),
    ):
        response = await api.http.post(path, json={"model": "m"}, headers=headers)
        error = response.json()
        assert (response.status_code, error["error"]["code"], error["error_code"]) == (
            status,
            "worker_unreachable",
            50006,
        )


async def test_refusal_of_a_worker_is_passed_on_unchanged(api: Api) -> None:
    refusal = answers(b"oops", "503 Busy", "Content-Type: text/plain")
    async with bad_worker(worker_generate=refusal, count_token=answers(b"no", "422 No")) as healthy:
        await api.register(healthy.address)
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
async def test_response_with_an_unusual_head_leaves_no_lease(api: Api, path: str, head: bytes) -> None:
    async def send_unusual_head(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 %s\r\nConnection: close\r\n\r\na\0" % head)

    async with bad_worker(worker_generate=send_unusual_head, worker_generate_stream=send_unusual_head) as healthy:
        await api.register(healthy.address)
        response = await api.post(path, {"model": "m"})
        if head.startswith(b"200"):
            assert (response.status_code, response.content) == (200, b"a\0")
            [content_type] = [value for name, value in response.headers.raw if name == b"content-type"]
            assert content_type == head.partition(b"Type: ")[2]
        else:
            assert json.loads(response.content.rstrip(b"\0"))["error_code"] == 50006
            assert response.status_code == 200
        await wait_until(lambda: not api.replica.bookings._background, "the leases are released")
        assert [known.leased for known in (await api.registry.list_workers()).workers] == [0]
        assert api.replica.bookings._renewals == {}
        await wait_until(lambda: not healthy.open, "the connection is closed")


@pytest.mark.parametrize(("headers", "statuses"), [({}, (200, 200, 200)), ({HEADER: "top"}, (503, 502, 502))])
async def test_failed_stream_has_an_error_status_for_a_parent_controller(
    api: Api, headers: dict[str, str], statuses: tuple[int, ...]
) -> None:
    """The parent then retries on another worker. FastChat's clients get 200 and an error frame."""

    async def failed_stream() -> tuple[int, int]:
        response = await api.http.post("/worker_generate_stream", json={"model": "m"}, headers=headers)
        return response.status_code, json.loads(response.content[:-1])["error_code"]

    without, unreachable, refused = statuses
    assert await failed_stream() == (without, 50005)
    await api.register("http://127.0.0.1:1")
    assert await failed_stream() == (unreachable, 50006)
    async with bad_worker(worker_generate_stream=answers(b"{}", "400 No")) as healthy:
        await api.post("/remove_worker", {"worker_name": "http://127.0.0.1:1"})
        await api.register(healthy.address)
        assert await failed_stream() == (refused, 50006)


async def test_loop_error_of_a_child_cluster_is_passed_on(api: Api) -> None:
    frame = b'{"text":"This request has come back","error_code":50001}\0'
    async with bad_worker(worker_generate_stream=answers(frame, "508 Loop Detected")) as child:
        await api.register(child.address)
        for headers, status in (({}, 200), ({HEADER: "top"}, 508)):
            response = await api.http.post("/worker_generate_stream", json={"model": "m"}, headers=headers)
            assert (response.status_code, response.content) == (status, frame)


async def test_unknown_path_without_a_worker_is_503_for_a_parent_controller(api: Api) -> None:
    """The parent forwarded the request because this cluster had a worker of the model. It then retries elsewhere."""
    response = await api.http.post("/v1/rerank", json={"model": "m"}, headers={HEADER: "top"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_not_found")


async def test_forwarding_loop_is_508(api: Api) -> None:
    async with bad_worker(worker_generate=answers(b"{}"), worker_generate_stream=chunks(b"a\0")) as healthy:
        await api.register(healthy.address)
        own = api.replica.snapshots.cluster_id
        for hops, passes in (("top,middle", True), (f"top,{own}", False), (",".join("abcdefgh"), False)):
            headers = {HEADER: hops}
            response = await api.http.post("/worker_generate", json={"model": "m"}, headers=headers)
            stream = await api.http.post("/worker_generate_stream", json={"model": "m"}, headers=headers)
            if passes:
                assert (response.status_code, stream.content) == (200, b"a\0")
            else:
                error = response.json()
                assert (response.status_code, error["error"]["code"], error["error_code"]) == (
                    508,
                    "loop_detected",
                    LOOP,
                )
                frame = json.loads(stream.content[:-1])
                assert (frame["error_code"], frame["text"]) == (LOOP, error["text"])
    response = await api.http.post("/worker_generate", json={"model": "m"}, headers={HEADER: "a b"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_input")


async def test_cluster_cannot_register_at_itself(api: Api) -> None:
    await api.replica.snapshots._return_to_redis()  # reads the id of the cluster
    own = api.replica.snapshots.cluster_id
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    body = {"worker_name": A, "check_heart_beat": True, "worker_status": status}
    response = await api.http.post("/register_worker", json=body, headers={HEADER: own})
    assert (response.status_code, response.json()["error"]["code"]) == (508, "loop_detected")
    response = await api.http.post("/worker_get_status", headers={HEADER: f"x,{own}"})
    assert response.status_code == 508, "a registration without a status fails at this request"
    assert (await api.registry.list_workers()).workers == []
    assert (await api.http.post("/register_worker", json=body, headers={HEADER: "another"})).status_code == 200


async def test_status_has_the_total_capacity_if_all_workers_report_one(api: Api) -> None:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    await api.register("http://127.0.0.1:1/a", worker_status={**status, "capacity": 3})
    await api.register("http://127.0.0.1:1/b", worker_status={**status, "capacity": 5})
    assert (await api.post("/worker_get_status")).json()["capacity"] == 8
    await api.register("http://127.0.0.1:1/c", worker_status=status)
    assert "capacity" not in (await api.post("/worker_get_status")).json()


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate"])
async def test_a_large_body_does_not_delay_other_requests(api: Api, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    parse_model = schemas.parse_model
    begun, may_end = threading.Event(), threading.Event()

    def slow(body: bytes) -> str:
        begun.set()
        assert may_end.wait(10), "the server works on another request meanwhile"
        return parse_model(body)

    answer = answers(b'{"text": "a"}\0')
    async with bad_worker(worker_generate_stream=answer, worker_generate=answer) as healthy:
        await api.register(healthy.address)
        monkeypatch.setattr(schemas, "parse_model", slow)
        request = asyncio.create_task(api.post(path, {"model": "m", "prompt": "x" * 300_000}))
        await wait_until(begun.is_set, "the body is being read")
        assert (await api.http.get("/healthz")).status_code == 200
        assert not request.done()
        may_end.set()
        assert (await request).status_code == 200
