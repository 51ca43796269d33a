"""Requests of OpenAI's kind reach an engine of their model as they are, and so do responses reach the client."""

import asyncio
import json
import threading

import httpx
import pytest
from aiohttp import web

from controller.dispatch.affinity_rules import AffinityRules
from controller.domain.hops import HEADER
from controller.proxy.model_field import ModelField
from controller.store.registry import Registry
from controller.web.routes import gateway as gateway_routes
from tests.proxy.conftest import Serve
from tests.support.openai_engines import answers, engine_worker, openai_engine
from tests.support.samples import worker
from tests.support.waiting import wait_until
from tests.support.workers import answers as worker_answers
from tests.support.workers import bad_worker

CHAT = "/v1/chat/completions"
BODY = b'{ "messages": [{"content": "\\u00e9 \xc3\xa9"}],  "model" : "m", "n":1.0 }'
JSON = {"Content-Type": "application/json"}


async def test_request_and_response_pass_unchanged(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    async def behaviour(_: web.Request) -> web.StreamResponse:
        headers = [("X-Model", "7"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Request-Id", "engine's")]
        headers += [
            ("Server", "engine"),
            ("X-Served-Model", "another"),
            ("X-Controller-Degraded", "9"),
            ("Content-Type", "text/plain"),
        ]
        response = web.Response(body=b"\x00\xff", status=203)
        for name, value in headers:
            response.headers.add(name, value)
        return response

    async with openai_engine(behaviour) as engine, serve() as (_, address):
        await registry.register(engine_worker(engine.address, key="engine's key"))
        response = await http.post(
            f"{address}{CHAT}?a=%2F%20b&c=d%3Fe&flag",
            content=BODY,
            headers=[
                *JSON.items(),
                ("X-Request-Id", "client-1"),
                ("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"),
                ("tracestate", "a=1"),
                ("Authorization", "Bearer secret"),
                ("X-Api-Key", "secret"),
                ("Api-Key", "secret"),
                ("Cookie", "a=secret"),
                ("Connection", "keep-alive, X-Hop"),
                ("X-Hop", "secret"),
                ("TE", "trailers"),
                ("Proxy-Authorization", "secret"),
                ("X-Controller-Worker", "secret"),
                ("User-Agent", "client/1.0"),
                ("Accept", "text/event-stream"),
                ("Accept-Encoding", "br"),
                ("X-Custom", "x"),
                ("OpenAI-Beta", "assistants=v2"),
            ],
        )
        assert (response.status_code, response.content) == (203, b"\x00\xff")
        assert sorted(response.headers.multi_items()) == sorted(
            [
                ("content-length", "2"),
                ("content-type", "text/plain"),
                ("date", response.headers["date"]),
                ("server", response.headers["server"]),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("x-model", "7"),
                ("x-accel-buffering", "no"),
                ("x-request-id", "client-1"),
                ("x-served-model", "m"),
            ]
        )
        [(request, body)] = engine.requests
        assert (request.method, request.raw_path, body) == ("POST", f"{CHAT}?a=%2F%20b&c=d%3Fe&flag", BODY)
        headers = {name.lower(): value for name, value in request.raw_headers}
        assert len(headers) == len(request.raw_headers)
        assert headers.pop(HEADER.encode())
        assert headers == {
            b"host": engine.address.removeprefix("http://").encode(),
            b"content-length": b"%d" % len(BODY),
            b"content-type": b"application/json",
            b"x-request-id": b"client-1",
            b"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01".encode(),
            b"tracestate": b"a=1",
            b"authorization": b"Bearer engine's key",
            b"user-agent": b"client/1.0",
            b"accept": b"text/event-stream",
            b"accept-encoding": b"br",
            b"x-custom": b"x",
            b"openai-beta": b"assistants=v2",
        }


async def test_alias_replaces_the_name_in_the_body_only(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    async with openai_engine(answers(b'{"model": "/models/m.gguf"}')) as engine, serve() as (_, address):
        await registry.register(engine_worker(engine.address, "m", "n", aliases={"m": "/models/m.gguf"}))
        response = await http.post(address + CHAT, content=BODY, headers=JSON)
        assert (response.content, response.headers["x-served-model"]) == (b'{"model": "/models/m.gguf"}', "m")
        assert engine.bodies == [BODY.replace(b'"m"', b'"/models/m.gguf"')]
        await http.post(address + CHAT, content=BODY.replace(b'"m"', b'"n"'), headers=JSON)
        assert engine.bodies[1] == BODY.replace(b'"m"', b'"n"')
        files = {"file": ("a.wav", b"RIFF\0\r\n--", "audio/wav")}
        request = http.build_request("POST", f"{address}/v1/audio/transcriptions", data={"model": "m"}, files=files)
        sent = request.read()
        response = await http.send(request)
        assert response.status_code == 200
        assert engine.bodies[2] == sent.replace(b"\r\n\r\nm\r\n", b"\r\n\r\n/models/m.gguf\r\n")
        assert engine.requests[2][0].headers["Content-Type"] == response.request.headers["Content-Type"]


async def test_request_goes_only_to_engines_if_the_model_has_one(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    async with (
        openai_engine(answers(b"engine")) as engine,
        bad_worker(completions=worker_answers(b"fastchat")) as fastchat,
        serve() as (replica, address),
    ):
        await registry.register(worker(fastchat.address, "m"))
        await replica.snapshots.take_now()
        assert (await http.post(address + CHAT, json={"model": "m"})).content == b"fastchat"
        await registry.register(engine_worker(engine.address, queue_length=1_000))
        for _ in range(20):
            assert (await http.post(address + CHAT, json={"model": "m"})).content == b"engine"
        assert len(fastchat.requests) == 1
        response = await http.post(f"{address}/get_worker_address", json={"model": "m"})
        assert response.json() == {"address": fastchat.address}


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed", "501 Not Implemented"])
async def test_worker_of_fastchats_protocol_without_the_route_is_404_with_advice(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, status: str
) -> None:
    no_route = worker_answers(b'{"detail":"Not Found"}', status)
    error = b'{"error": {"message": "no such adapter", "type": "x", "param": null, "code": null}}'
    async with (
        bad_worker(completions=no_route, rerank=worker_answers(error, status)) as fastchat,
        serve() as (_, address),
    ):
        await registry.register(worker(fastchat.address, "m"))
        response = await http.post(address + CHAT, json={"model": "m"})
        described = response.json()["error"]
        assert (response.status_code, described["code"], described["param"]) == (404, "wrong_protocol", "model")
        assert "fastchat.serve.openai_api_server" in described["message"]
        response = await http.post(f"{address}/v1/rerank", json={"model": "m"})
        assert (response.status_code, response.content) == (int(status[:3]), error)


async def test_unknown_model_is_404_and_one_that_is_away_503(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    async with serve() as (replica, address), openai_engine(answers()) as engine:
        response = await http.post(address + CHAT, json={"model": "m"})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["type"]) == (404, "model_not_found", "invalid_request_error")
        assert (await http.get(f"{address}/v1/models/m")).status_code == 404
        await registry.register(engine_worker(engine.address))
        await replica.snapshots.take_now()
        replica.known_models.observe()
        assert (await http.post(address + CHAT, json={"model": "m"})).status_code == 200
        await registry.remove(engine.address)
        async with serve() as (_, later):  # a replica that has never seen the model
            for each in (address, later):
                response = await http.post(each + CHAT, json={"model": "m"})
                error = response.json()["error"]
                assert (response.status_code, error["code"], error["type"]) == (503, "no_worker", "server_error")
                assert int(response.headers["retry-after"]) > 0
                assert (await http.get(f"{each}/v1/models/m")).status_code == 503


async def test_model_of_engines_that_only_fastchats_workers_serve_is_503(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    no_route = worker_answers(b'{"detail":"Not Found"}', "404 Not Found")
    async with (
        serve() as (replica, address),
        openai_engine(answers()) as engine,
        bad_worker(completions=no_route) as fastchat,
    ):
        for model in ("m", "only-fastchat"):
            await registry.register(worker(f"{fastchat.address}/{model}", model))
        await registry.register(engine_worker(engine.address))
        await replica.snapshots.take_now()
        replica.known_models.observe()
        assert (await http.post(address + CHAT, json={"model": "m"})).status_code == 200
        await registry.remove(engine.address)
        await replica.snapshots.take_now()
        for response in (
            await http.post(address + CHAT, json={"model": "m"}),
            await http.get(f"{address}/v1/models/m"),
        ):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "no_worker")
            assert int(response.headers["retry-after"]) > 0
        response = await http.post(address + CHAT, json={"model": "only-fastchat"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "wrong_protocol")
        response = await http.get(f"{address}/v1/models/only-fastchat")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        async with serve() as (_, later):  # a replica that has never seen the engine
            assert (await http.post(later + CHAT, json={"model": "m"})).status_code == 503
            assert (await http.post(later + CHAT, json={"model": "only-fastchat"})).status_code == 404
        replica.gateway._candidates = lambda _: ("only-fastchat", "m")
        assert (await http.post(address + CHAT, json={"model": "x"})).status_code == 503


@pytest.mark.parametrize(
    ("content", "headers", "param"),
    [
        (b"", JSON, None),
        (b"{}", JSON, None),
        (b'{"model": 5}', JSON, None),
        (b"model=m", {"Content-Type": "application/x-www-form-urlencoded"}, None),
        (b"--x\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, None),
        (b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, "model"),
    ],
)
async def test_body_without_a_model_is_400_in_openais_form(
    serve: Serve, http: httpx.AsyncClient, content: bytes, headers: dict[str, str], param: str | None
) -> None:
    async with serve() as (_, address):
        response = await http.post(address + CHAT, content=content, headers=headers)
        error = response.json()["error"]
        assert response.status_code == 400
        assert error == {
            "message": error["message"],
            "type": "invalid_request_error",
            "param": param,
            "code": "invalid_input",
        }


async def test_errors_of_all_parts_have_openais_form(serve: Serve, http: httpx.AsyncClient) -> None:
    async with serve(client_tokens="c=" + "c" * 32) as (_, address):
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/a/b")):
            response = await http.request(method, address + path, json={"model": "m"})
            assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
        authorized = {"Authorization": "Bearer " + "c" * 32}
        for method, path, status in (
            ("POST", "/v1/unknown", 404),
            ("GET", "/v1/unknown", 404),
            ("GET", CHAT, 404),
            ("DELETE", "/v1/models", 405),
        ):
            response = await http.request(method, address + path, headers=authorized)
            error = response.json()["error"]
            assert response.status_code == status, path
            assert error.keys() == {"message", "type", "param", "code"}
        body = b"x" * (32 * 1024 * 1024 + 1)
        response = await http.post(address + CHAT, content=body, headers=authorized)
        assert (response.status_code, response.json()["error"]["type"]) == (413, "invalid_request_error")


async def test_models_of_live_engines_are_listed(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    async with serve() as (replica, address):
        assert (await http.get(f"{address}/v1/models")).json() == {"object": "list", "data": []}
        name = "org/model é"
        await registry.register(engine_worker("http://127.0.0.1:1/a", name, "b", max_lengths={name: 4096}))
        await registry.register(engine_worker("http://127.0.0.1:1/b", name, max_lengths={name: 2048}))
        await registry.register(worker("http://127.0.0.1:1/c", "of-fastchat"))
        await replica.snapshots.take_now()
        model = {"id": name, "object": "model", "created": 0, "owned_by": "controller-cluster", "max_model_len": 2048}
        other = {"id": "b", "object": "model", "created": 0, "owned_by": "controller-cluster"}
        assert (await http.get(f"{address}/v1/models")).json() == {"object": "list", "data": [other, model]}
        for path in (name, "org%2Fmodel%20%C3%A9"):
            assert (await http.get(f"{address}/v1/models/{path}")).json() == model
        for path in ("org", "org/model", "of-fastchat"):
            response = await http.get(f"{address}/v1/models/{path}")
            assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        listed = await http.post(f"{address}/list_models")
        assert listed.json() == {"models": ["of-fastchat"]}


async def test_candidates_are_tried_in_order(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    async with (
        serve() as (replica, address),
        openai_engine(answers(b"broken", 500)) as broken,
        openai_engine(answers(b"good")) as good,
    ):
        replica.gateway._candidates = lambda _: ("absent", "broken", "good")
        await registry.register(engine_worker(broken.address, "broken"))
        response = await http.post(address + CHAT, content=BODY, headers=JSON)
        assert (response.status_code, response.content, response.headers["x-served-model"]) == (
            500,
            b"broken",
            "broken",
        )
        await registry.register(engine_worker(good.address, "good", aliases={"good": "inner"}))
        response = await http.post(address + CHAT, content=BODY, headers=JSON)
        assert (response.status_code, response.content, response.headers["x-served-model"]) == (200, b"good", "good")
        assert broken.bodies == [BODY.replace(b'"m"', b'"broken"')] * 2
        assert good.bodies == [BODY.replace(b'"m"', b'"inner"')]
        await wait_until(lambda: not replica.running.count, "no request is left")


async def test_served_model_is_a_header_of_any_name(serve: Serve, registry: Registry, http: httpx.AsyncClient) -> None:
    async with serve() as (_, address), openai_engine(answers()) as engine:
        for name, header in (("a b/c", "a b/c"), ("模型%", "%E6%A8%A1%E5%9E%8B%25")):
            await registry.register(engine_worker(engine.address, name))
            response = await http.post(address + CHAT, content=json.dumps({"model": name}).encode())
            assert response.headers["x-served-model"] == header
            assert engine.requests[-1][0].headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("step", ["read_model", "find_in", "renamed"])
async def test_a_large_body_does_not_delay_other_requests(
    serve: Serve, registry: Registry, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner = {"read_model": gateway_routes, "find_in": AffinityRules, "renamed": ModelField}[step]
    work = getattr(owner, step)
    begun, may_end = threading.Event(), threading.Event()

    def slow(*arguments: object) -> object:
        begun.set()
        assert may_end.wait(60), "the server works on another request meanwhile"
        return work(*arguments)

    async with openai_engine(answers()) as engine, serve(affinity="prefix") as (_, address):
        await registry.register(engine_worker(engine.address, aliases={"m": "own"}))
        monkeypatch.setattr(owner, step, slow)
        body = json.dumps({"model": "m", "prompt": "x" * 300_000}).encode()
        request = asyncio.create_task(http.post(address + CHAT, content=body, headers=JSON))
        await wait_until(begun.is_set, "the body is being handled")
        assert (await http.get(f"{address}/v1/models")).status_code == 200
        may_end.set()
        assert (await request).status_code == 200
        assert [json.loads(sent)["model"] for sent in engine.bodies] == ["own"]
