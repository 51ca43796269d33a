"""Responses of engines that must not reach a client, and what must not reach an engine or the log."""

import asyncio
import logging

import httpx
import pytest

from controller.store.registry import Registry
from tests.proxy.conftest import Serve
from tests.support.openai_engines import answers, engine_worker, openai_engine
from tests.support.samples import worker
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, bad_worker, sends
from tests.support.workers import answers as worker_answers

CHAT = "/v1/chat/completions"
SECRET = "the engine's own words"


@pytest.mark.parametrize("status", [401, 403])
async def test_rejected_key_is_a_failure_of_the_engine(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """The key is the controller's. A client that got the engine's 401 would look for a fault in its own token."""
    rejects = answers(SECRET.encode(), status, {"WWW-Authenticate": "Bearer realm=engine"})
    async with openai_engine(rejects) as bad, openai_engine(answers(b"good")) as good, serve() as (replica, address):
        await registry.register(engine_worker(bad.address, key="stale"))
        await registry.register(engine_worker(good.address, queue_length=8))
        response = await http.post(address + CHAT, json={"model": "m"})
        assert (response.status_code, response.content) == (200, b"good")
        await wait_until(lambda: not replica.bookings._background, "the failure is reported")
        assert {known.name: known.failing for known in (await registry.list_workers()).workers} == {
            bad.address: "request",
            good.address: "",
        }
        await registry.remove(good.address)
        for key in ("stale", ""):
            await registry.register(engine_worker(bad.address, key=key))
            with caplog.at_level(logging.WARNING):
                response = await http.post(address + CHAT, json={"model": "m"})
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["type"]) == (502, "worker_rejects_key", "server_error")
            assert "rejects the controller's key" in error["message"]
            assert not {SECRET, bad.address} & set(response.text.split('"'))
            assert bad.address not in response.text
            assert "www-authenticate" not in response.headers
            assert f"{bad.address}{CHAT} returned status {status}" in caplog.text
            caplog.clear()
        assert 'outcome="engine_error"} 2.0' in replica.metrics.render().decode()


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_redirect_is_a_failure_of_the_request(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, status: int
) -> None:
    """A redirect has the engine's address, which clients must not learn, and would lead them past the controller."""
    async with openai_engine(answers()) as one, openai_engine(answers()) as other, serve() as (replica, address):
        for engine in (one, other):
            engine.behaviour = answers(engine.address.encode(), status, {"Location": f"{engine.address}/x"})
            await registry.register(engine_worker(engine.address))
        response = await http.post(address + CHAT, json={"model": "m"})
        assert (response.status_code, response.json()["error"]["code"]) == (502, "worker_redirected")
        assert "location" not in response.headers
        assert "127.0.0.1" not in response.text
        assert len(one.requests) + len(other.requests) == 1
        await wait_until(lambda: not replica.bookings._background, "the lease is released")
        assert {known.failing for known in (await registry.list_workers()).workers} == {""}


async def test_other_statuses_pass_without_locations(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    async with openai_engine(answers()) as engine, serve() as (_, address):
        await registry.register(engine_worker(engine.address))
        for status in (200, 201, 304, 404, 407):
            locations = dict.fromkeys(("Location", "Content-Location", "Refresh"), engine.address)
            engine.behaviour = answers(b"", status, {**locations, "X-Engine": "1"})
            response = await http.post(address + CHAT, json={"model": "m"})
            assert response.status_code == status
            assert response.headers["x-engine"] == "1"
            assert engine.address not in response.headers.values()


@pytest.mark.parametrize(
    ("status", "code"),
    [("401 No", "worker_rejects_key"), ("403 No", "worker_rejects_key"), ("307 X", "worker_redirected")],
)
async def test_workers_of_fastchats_protocol_are_judged_alike(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, status: str, code: str
) -> None:
    answer = worker_answers(SECRET.encode(), status, "Location: http://inner/")
    async with bad_worker(completions=answer) as fastchat, serve() as (replica, address):
        await registry.register(worker(fastchat.address, "m"))
        response = await http.post(address + CHAT, json={"model": "m"})
        assert (response.status_code, response.json()["error"]["code"]) == (502, code)
        assert SECRET not in response.text
        assert "location" not in response.headers
        await wait_until(lambda: not replica.running.count, "no request is left")


@pytest.mark.parametrize(("protocol", "status"), [("openai", 500), ("fastchat", 401), ("fastchat", 404)])
async def test_error_that_is_not_complete_in_time_counts_as_silence(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, protocol: str, status: int
) -> None:
    async def drips(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 30\r\n\r\n" % status)
        for _second in range(30):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)

    async with bad_worker(completions=drips) as bad, serve(worker_timeout=0.5) as (replica, address):
        await registry.register(engine_worker(bad.address) if protocol == "openai" else worker(bad.address, "m"))
        response = await http.post(address + CHAT, json={"model": "m"})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "worker_silent")
        await wait_until(lambda: not replica.running.count, "no request is left")
        await replica.snapshots.take_now()
        [known] = (await registry.list_workers()).workers
        assert (known.failing, known.leased) == ("", 0)


async def test_credentials_of_clients_stay_here(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    credentials = (
        *("Authorization", "X-Api-Key", "Api-Key", "X-Auth-Token", "Cookie", "Proxy-Authorization"),
        *("X-Goog-Api-Key", "Ocp-Apim-Subscription-Key", "Anything-Api-Key", "A-Subscription-Key", "A-Auth-Token"),
    )
    async with openai_engine(answers()) as engine, serve() as (_, address):
        await registry.register(engine_worker(engine.address))
        headers = {**dict.fromkeys(credentials, "the-secret"), "X-Key-Id": "passes", "X-Api-Key-Id": "passes"}
        await http.post(address + CHAT, json={"model": "m"}, headers=headers)
        [(request, _)] = engine.requests
        assert "the-secret" not in request.headers.values()
        assert list(request.headers.values()).count("passes") == 2


@pytest.mark.parametrize("failure", ["refuses", "unreachable", "breaks", "breaks later", "silent", "redirects"])
async def test_no_log_line_has_the_query(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    behaviour = {
        "refuses": worker_answers(b"oops", "500 No"),
        "redirects": worker_answers(b"oops", "302 No"),
        "breaks": sends(end="closed"),
        "breaks later": sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na", end="closed"),
        "silent": sends(end="open"),
    }
    async with (
        bad_worker(completions=behaviour.get(failure, sends(end="closed"))) as bad,
        serve(first_byte_timeout=0.1) as (_, address),
    ):
        bad.behaviours["completions?token=the-secret"] = bad.behaviours["completions"]
        name = "http://127.0.0.1:9" if failure == "unreachable" else bad.address
        await registry.register(engine_worker(name))
        with caplog.at_level(logging.DEBUG, "controller"):
            try:
                response = await http.post(f"{address}{CHAT}?token=the-secret", json={"model": "m"})
                assert "the-secret" not in response.text
            except httpx.RemoteProtocolError:
                assert failure == "breaks later"
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("controller")]
        assert any(f"{name}{CHAT}" in line for line in lines), lines
        assert not any("the-secret" in line for line in lines)
