"""The limits of forwards, memory for bodies, workers, leases and registrations, over HTTP."""

import asyncio
import json
from functools import partial
from typing import Any

import httpx
import pytest

from tests.conftest import Store
from tests.security.connections import DISPATCH, MIB, STREAM, Serve, connect, peak_memory, refusals
from tests.support.metrics import dispatches
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, bad_worker
from tests.system.processes import ControllerProcess
from tests.web.conftest import Api, open_api

OVERLOADED = 42903  # FastChat's ErrorCode.ENGINE_OVERLOADED


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    return response.status_code, response.json()["error"]["code"], response.headers.get("retry-after")


async def test_another_worker_is_refused_with_429_and_known_ones_register_again(store: Store) -> None:
    async with open_api(store.registry(max_workers=1), max_workers=1) as api:
        await api.register(A)
        body = {"worker_name": B, "check_heart_beat": True, "worker_status": status()}
        assert error_of(await api.post("/register_worker", body)) == (429, "too_many_workers", "10")
        await api.register(A, "m", "n")
        assert b'limit="workers"} 1.0' in api.metrics.render()
        response = await api.post("/receive_heart_beat", {"worker_name": B, "queue_length": 0})
        assert response.json() == {"exist": False}


def status() -> dict[str, Any]:
    return {"model_names": ["m"], "speed": 1, "queue_length": 0}


async def test_another_lease_is_refused_with_429_and_requests_without_one_are_served(store: Store) -> None:
    async with open_api(store.registry(max_leases=1), max_leases=1) as api:
        await api.register(A)
        leased = (await api.post("/get_worker_address", {"model": "m", "lease": True})).json()
        refused = await api.post("/get_worker_address", {"model": "m", "lease": True})
        assert error_of(refused) == (429, "too_many_leases", "1")
        assert await api.dispatch() == A
        assert (await api.post("/release_worker", {"lease": leased["lease"]})).json() == {"released": True}
        assert (await api.post("/get_worker_address", {"model": "m", "lease": True})).json()["address"] == A
        text = api.metrics.render().decode()
        assert dispatches(text, "refused") == 1
        assert dispatches(text, "no_worker") == 0
        assert 'controller_refusals_total{limit="leases"} 1.0' in text


CHAT, BATCH, RACK, RACK_2 = "secret-of-chat-0123", "secret-of-batch-012", "secret-of-rack-0123", "secret-of-rack-2-01"
TOKENS = {"client_tokens": f"chat={CHAT},batch={BATCH}", "worker_tokens": f"rack={RACK},rack-2={RACK_2}"}


async def test_another_lease_of_a_token_is_refused_with_429(store: Store) -> None:
    async with open_api(store.registry(max_leases_per_token=1), max_leases_per_token=1, **TOKENS) as api:
        await store.registry().register(worker(A))
        body = {"model": "m", "lease": True}
        leased = await api.post("/get_worker_address", body, CHAT)
        refused = await api.post("/get_worker_address", body, CHAT)
        assert error_of(refused) == (429, "too_many_leases", "1")
        assert "The token chat has 1 active leases" in refused.json()["error"]["message"]
        assert (await api.post("/get_worker_address", body, BATCH)).json()["address"] == A
        release = await api.post("/release_worker", {"lease": leased.json()["lease"]}, BATCH)
        assert release.json() == {"released": True}, leased.json()
        assert (await api.post("/get_worker_address", body, CHAT)).json()["address"] == A


async def test_another_worker_of_a_token_is_refused_with_429(store: Store) -> None:
    async with open_api(store.registry(max_workers_per_token=1), max_workers_per_token=1, **TOKENS) as api:

        async def register(name: str, token: str) -> httpx.Response:
            body = {"worker_name": name, "check_heart_beat": True, "worker_status": status()}
            return await api.post("/register_worker", body, token)

        assert (await register(A, RACK)).status_code == 200
        assert error_of(await register(B, RACK)) == (429, "too_many_workers", "10")
        assert (await register(B, RACK_2)).status_code == 200
        assert (await register(A, RACK)).status_code == 200


async def gated(gate: asyncio.Event, writer: asyncio.StreamWriter) -> None:
    await gate.wait()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}\0")
    await writer.drain()


async def test_a_forwarded_request_needs_no_lease_at_the_limit(store: Store) -> None:
    async with open_api(store.registry(max_leases=1), max_leases=1) as api:
        gate = asyncio.Event()

        async def answer(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
            await gated(gate, writer)

        async with bad_worker(worker_generate_stream=answer) as worker:
            await api.register(worker.address)
            assert (await api.post("/get_worker_address", {"model": "m", "lease": True})).json()["lease"]
            gate.set()
            response = await api.post("/worker_generate_stream", {"model": "m"})
            assert (response.status_code, response.content) == (200, b"{}\0")


@pytest.mark.parametrize("hops", [{}, {"x-controller-path": "another"}])
async def test_another_forward_is_refused_in_the_form_of_its_route(store: Store, hops: dict[str, str]) -> None:
    gate = asyncio.Event()

    async def answer(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        await gated(gate, writer)

    behaviours = dict.fromkeys(("worker_generate_stream", "worker_generate", "tokenize"), answer)
    async with bad_worker(**behaviours) as worker, open_api(store.registry(), max_forwards=3) as limited:
        await limited.register(worker.address)

        async def post(path: str, api: Api = limited) -> httpx.Response:
            return await api.http.post(path, json={"model": "m"}, headers=hops)

        running = [
            asyncio.create_task(post(path)) for path in ("/worker_generate_stream", "/worker_generate", "/tokenize")
        ]
        await wait_until(lambda: len(worker.requests) == 3, "three requests are forwarded")
        response = await post("/worker_generate_stream")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert json.loads(response.content.rstrip(b"\0"))["error_code"] == OVERLOADED
        assert response.content.endswith(b"\0")
        response = await post("/worker_generate")
        assert (response.status_code, response.headers["retry-after"]) == (503 if hops else 200, "1")
        assert (response.json()["error_code"], response.json()["error"]["code"]) == (
            OVERLOADED,
            "too_many_forwards",
        )
        response = await post("/tokenize")
        assert error_of(response) == (503, "too_many_forwards", "1")
        gate.set()
        assert [each.status_code for each in await asyncio.gather(*running)] == [200] * 3
        assert (await post("/worker_generate_stream")).status_code == 200, "ended requests make room"
        assert 'controller_refusals_total{limit="forwards"} 3.0' in limited.metrics.render().decode()


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate"])
async def test_forwards_whose_clients_have_left_make_room_when_their_workers_answer(store: Store, path: str) -> None:
    gate = asyncio.Event()

    async def answer(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        await gated(gate, writer)

    behaviours = {"worker_generate_stream": answer, "worker_generate": answer}
    async with bad_worker(**behaviours) as worker, open_api(store.registry(), max_forwards=2) as api:
        await api.register(worker.address)
        forwarder = api.replica.forwarder

        async def forward() -> object:
            if path == "/worker_generate":
                return await forwarder.generate("m", path, b"{}")
            return await forwarder.stream("m", b"{}")

        for number in (1, 2):
            task = asyncio.create_task(forward())
            await wait_until(partial(reached, worker, number), "the request is forwarded")
            task.cancel()
            await asyncio.wait([task])
        if path == "/worker_generate":  # the worker continues these requests
            response = await api.post(path, {"model": "m"})
            assert response.json()["error_code"] == OVERLOADED
        gate.set()

        async def served() -> bool:
            response = await api.post(path, {"model": "m"})
            return response.status_code == 200 and response.content == b"{}\0"

        await wait_until(served, "there is room again")


def reached(worker: BadWorker, number: int) -> bool:
    return len(worker.requests) == number


@pytest.mark.system
async def test_bodies_occupy_a_bounded_amount_of_memory(serve: Serve) -> None:
    controller = serve("--max-body-memory", "8", "--poll-interval", "0")
    before = peak_memory(controller)

    async def upload() -> int:
        async with connect(controller) as connection:
            connection.send(STREAM + b"Content-Length: %d\r\n\r\n" % (4 * MIB))
            for _ in range(40):
                connection.send(b" " * 100_000)
                await asyncio.sleep(0.05)
            connection.send(b" " * (4 * MIB - 4_000_000 - 1))  # the last byte is missing
            status_code, headers, body = await connection.response()
            assert (headers["retry-after"], json.loads(body)["error"]["code"]) == ("1", "too_many_bodies")
            return status_code

    uploads = [asyncio.create_task(upload()) for _ in range(30)]
    done, pending = await asyncio.wait(uploads, timeout=10)
    while len(done) < 28:
        more, pending = await asyncio.wait(pending, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert more, "all but a few uploads are refused"
        done |= more
    assert {task.result() for task in done} == {503}
    assert peak_memory(controller) - before < 40 * MIB
    assert refusals(controller)["body_memory"] >= 28
    async with connect(controller) as connection:  # small bodies are served meanwhile
        connection.send(DISPATCH)
        assert (await connection.response())[0] == 200
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    body = b'{"model": "absent", "prompt": "%s"}' % (b"a" * 6 * MIB)

    async def accepted() -> bool:
        async with connect(controller) as connection:
            connection.send(STREAM + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return (await connection.response())[0] == 200

    await wait_until(accepted, "the memory of the other uploads is free again")


def registration(controller: ControllerProcess, number: int) -> tuple[str, dict[str, Any]]:
    name = f"http://127.0.0.1:1/w{number}"
    return controller.url + "/register_worker", {
        "worker_name": name,
        "check_heart_beat": True,
        "worker_status": status(),
    }


@pytest.mark.system
async def test_registrations_beyond_the_rate_are_delayed_and_then_refused(serve: Serve) -> None:
    controller = serve("--registration-rate", "10", "--register-timeout", "1", "--poll-interval", "0")
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=200)) as http:
        calls = [registration(controller, number) for number in range(130)]
        responses = await asyncio.gather(*(http.post(url, json=body) for url, body in calls))
    statuses = [response.status_code for response in responses]
    refused = [response for response in responses if response.status_code == 429]
    # A burst of ten seconds, and what is delayed by up to a second. A slow client leaves time for some more.
    assert 110 <= statuses.count(200) <= 128
    assert statuses.count(200) + len(refused) == 130
    assert {error_of(response)[1] for response in refused} == {"too_many_registrations"}
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert len(controller.workers()) == statuses.count(200)
    assert refusals(controller)["registrations"] == len(refused)
