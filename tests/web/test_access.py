"""Access to the routes of one replica, with tokens, with networks and with both."""

import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from controller.domain.errors import WorkerUnreachable
from controller.domain.worker import WorkerStatus
from controller.security.tokens import Plane, token_of
from controller.web.asgi.gateway import GatewayEndpoint, ModelEndpoint
from controller.web.routes.table import FALLBACK, ROUTES, Route
from tests.conftest import Store
from tests.support.samples import A
from tests.support.waiting import wait_until
from tests.web.conftest import Api, open_api
from tests.web.tokens import SETTINGS, TOKENS, bearer, register

BOUND = "bound-0123456789abcdef"
GUARDED = [route for route in (*ROUTES, FALLBACK) if route.plane is not Plane.PUBLIC]

pytestmark = pytest.mark.usefixtures("fast_token_updates")


@pytest.fixture
async def closed(store: Store) -> AsyncIterator[Api]:
    """A replica with a token for each plane."""
    async with open_api(store.registry(), **SETTINGS) as opened:
        yield opened


def basic(secret: str, name: str = "anybody") -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{name}:{secret}'.encode()).decode()}"}


async def send(api: Api, route: Route, headers: dict[str, str] | None = None, body: object = None) -> httpx.Response:
    path = "/v1/rerank" if route.path == "*" else route.path
    return await api.http.request(route.method, path, json={} if body is None else body, headers=headers or {})


def has_rule_for(route: Route, plane: str) -> bool:
    return plane in (route.plane, "admin", *route.other_planes)


async def test_each_route_opens_for_its_planes_only(closed: Api) -> None:
    for route in GUARDED:
        for plane, secret in TOKENS.items():
            for headers in (bearer(secret), basic(secret)):
                status = (await send(closed, route, headers)).status_code
                assert (status not in (401, 403)) is has_rule_for(route, plane) or (
                    # A worker token that is bound to no worker cannot act as an operator.
                    route.plane is Plane.ADMIN and plane == "worker" and status in (400, 403)
                ), (route.path, plane, status)


async def test_without_a_valid_token_no_route_does_anything(closed: Api) -> None:
    wrong = [{}, bearer("wrong"), basic("wrong"), bearer(TOKENS["admin"][:-1]), bearer(TOKENS["admin"].upper())]
    wrong += [{"Authorization": TOKENS["admin"]}, basic("", TOKENS["admin"]), {"X-Api-Key": "wrong"}]
    wrong += [{"X-Api-Key": ""}, {"X-Api-Key": f"Bearer {TOKENS['admin']}"}, {"Api-Key": TOKENS["admin"]}]
    bodies = {"/register_worker": {"worker_name": A, "check_heart_beat": True}}
    for route in GUARDED:
        for headers in wrong:
            refused = await send(closed, route, headers, bodies.get(route.path))
            assert refused.status_code == 401, (route.path, headers)
            assert refused.headers["www-authenticate"].startswith("Basic")
            if route.path == "/receive_heart_beat":
                assert refused.headers["content-type"] == "text/plain; charset=utf-8"
                assert refused.text.startswith("unauthorized: ")
            else:
                assert refused.json()["error"]["code"] == "unauthorized"
            assert TOKENS["admin"] not in refused.text
    assert (await closed.registry.list_workers()).workers == []


async def test_only_the_openai_routes_accept_a_token_as_anthropics_clients_send_it(closed: Api) -> None:
    for route in GUARDED:
        is_openais = route.endpoint in (GatewayEndpoint, ModelEndpoint)
        for plane, secret in TOKENS.items():
            response = await send(closed, route, {"X-Api-Key": secret})
            if not is_openais:
                assert response.status_code == 401, (route.path, plane)
            else:
                assert (response.status_code == 403) is (plane == "worker"), (route.path, plane)
                assert response.status_code != 401, (route.path, plane)
        both = {**bearer("dummy"), "X-Api-Key": TOKENS["client"]}
        assert ((await send(closed, route, both)).status_code == 401) is not is_openais, route.path
    response = await closed.http.post("/v1/messages", json={"model": "m"}, headers={"X-Api-Key": "wrong"})
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (401, "authentication_error")
    assert error["message"].startswith("The token that was sent is unknown or revoked.")


async def test_public_routes_need_no_token(closed: Api) -> None:
    for route in ROUTES:
        if route.plane is Plane.PUBLIC:
            public = route._replace(path=route.path.replace("{file:path}", "start.js"))
            assert (await send(closed, public)).status_code == 200, route.path


async def test_an_open_controller_creates_no_tokens(api: Api) -> None:
    refused = await api.post("/create_token", {"plane": "worker", "name": "w"})
    assert refused.status_code == 400
    assert "would protect nothing" in refused.json()["error"]["message"]
    assert (await api.http.get("/tokens")).json() == {"tokens": []}


@pytest.fixture
async def bound(store: Store, tmp_path: Path) -> AsyncIterator[Api]:
    """A replica with a worker token that is bound to 127.0.0.1 and to models, and one that is not."""
    file = tmp_path / "tokens"
    file.write_text(f"worker gpu {BOUND} workers=127.0.0.1,own.example models=m*\n")
    async with open_api(store.registry(), tokens_file=file, **SETTINGS) as opened:
        yield opened


async def test_a_bound_token_registers_only_its_workers_and_models(bound: Api) -> None:
    assert (await register(bound, BOUND, A)).status_code == 200
    for name, model in (("http://10.0.0.7:1", "m"), ("http://127.0.0.1.other.example:1", "m"), (A, "gpt")):
        refused = await register(bound, BOUND, name, "m", model)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert "Its patterns of" in refused.json()["error"]["message"]
    [known] = (await bound.registry.list_workers()).workers
    assert (known.name, known.status.model_names, known.registered_by) == (A, ("m",), "gpu")
    metrics = (await bound.http.get("/metrics", headers=bearer(TOKENS["admin"]))).text
    assert 'controller_registrations_total{outcome="failed"} 3.0' in metrics


async def test_a_bound_token_speaks_for_no_other_worker(bound: Api) -> None:
    other = "http://127.0.0.2:1/other"
    assert (await register(bound, TOKENS["worker"], other, "m")).status_code == 200
    assert (await register(bound, BOUND, A)).status_code == 200
    heartbeat = {"worker_name": other, "queue_length": 9}
    refused = await bound.http.post("/receive_heart_beat", json=heartbeat, headers=bearer(BOUND))
    assert (refused.status_code, refused.text[:9]) == (403, "forbidden")
    for path in ("/drain_worker", "/resume_worker", "/remove_worker"):
        for secret in (BOUND, TOKENS["worker"]):  # a token that is bound to no worker is no operator
            refused = await bound.http.post(path, json={"worker_name": other}, headers=bearer(secret))
            assert refused.status_code == 403, path
        own = await bound.http.post(path, json={"worker_name": A}, headers=bearer(BOUND))
        assert own.json()["exist"], path
    known = {worker.name: worker for worker in (await bound.registry.list_workers()).workers}
    assert known.keys() == {other}
    assert (known[other].reported, known[other].draining) == (0, False)


async def test_a_client_token_starts_refreshes_but_does_not_wait_for_them(
    closed: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []

    async def fails(name: str, *_: object) -> object:
        probed.append(name)
        raise WorkerUnreachable("It does not answer.")

    monkeypatch.setattr(closed.replica.workers, "status", fails)
    monkeypatch.setattr("controller.fleet.refresh._PROBE_PAUSE", 0.01)
    assert (await register(closed, TOKENS["worker"], A)).status_code == 200
    for _ in range(5):
        answer = await closed.http.post("/refresh_all_workers", headers=bearer(TOKENS["client"]))
        assert (answer.status_code, answer.json()) == (200, None)
    await wait_until(lambda: closed.replica.refresher._refreshing is None, "the refresh has ended")
    assert probed == [A, A], "one refresh, with two probes"
    assert [worker.name for worker in (await closed.registry.list_workers()).workers] == [A], "it removed no worker"
    await closed.http.post("/refresh_all_workers", headers=bearer(TOKENS["client"]))
    await closed.http.post("/refresh_all_workers", headers=bearer(TOKENS["admin"]))
    assert (await closed.registry.list_workers()).workers == []


@pytest.mark.parametrize("satisfy", ["any", "all"])
async def test_networks_replace_tokens_or_are_needed_too(store: Store, satisfy: str) -> None:
    settings = {**SETTINGS, "client_networks": "192.0.2.0/24", "trusted_proxies": "127.0.0.1", "satisfy": satisfy}
    async with open_api(store.registry(), **settings) as api:
        expected = {
            ("192.0.2.5", None): 200 if satisfy == "any" else 401,
            ("192.0.2.5", "client"): 200,
            ("198.51.100.1", None): 401,
            ("198.51.100.1", "client"): 200 if satisfy == "any" else 403,
            ("198.51.100.1, 192.0.2.5", None): 200 if satisfy == "any" else 401,
            ("192.0.2.5, 198.51.100.1", None): 401,  # the caller wrote the listed address itself
        }
        for (address, plane), status in expected.items():
            headers = {"X-Forwarded-For": address, **(bearer(TOKENS[plane]) if plane else {})}
            answer = await api.http.post("/get_worker_address", json={"model": "m"}, headers=headers)
            assert answer.status_code == status, (address, plane)
            admin = await api.http.get("/workers", headers={"X-Forwarded-For": address})
            assert admin.status_code == 401, "a network opens its own plane only"


async def test_an_admin_token_needs_its_network_on_each_route_of_admins(store: Store) -> None:
    settings = {**SETTINGS, "admin_networks": "192.0.2.0/24", "trusted_proxies": "127.0.0.1", "satisfy": "all"}
    async with open_api(store.registry(), **settings) as api:
        admins = [route for route in ROUTES if route.plane is Plane.ADMIN]
        assert {route.path for route in admins} >= {"/remove_worker", "/drain_worker", "/refresh_all_workers"}
        for route in admins:
            for address, expected in (("198.51.100.1", 403), ("192.0.2.5", None)):
                headers = {"X-Forwarded-For": address, **bearer(TOKENS["admin"])}
                body = {"worker_name": "http://other:1"} if route.method == "POST" else None
                answer = await api.http.request(route.method, route.path, json=body, headers=headers)
                assert (answer.status_code == 403) == (expected == 403), (route.path, address)
        assert (await register(api, TOKENS["worker"], A)).status_code == 200  # the refresh has removed it
        elsewhere = {"X-Forwarded-For": "198.51.100.1", **bearer(TOKENS["admin"])}
        answer = await api.http.post("/get_worker_address", json={"model": "m"}, headers=elsewhere)
        assert answer.json() == {"address": A}, "the plane of clients has no network, so any token of it is enough"


async def test_a_created_token_is_revoked_though_the_environment_has_its_name(store: Store) -> None:
    async with open_api(store.registry(), **SETTINGS) as api:
        await store.registry().set_token("client", token_of("client", Plane.CLIENT, "created-before-0123"))
        await api.replica.tokens.update()
        revoked = await api.http.post("/revoke_token", json={"name": "client"}, headers=bearer(TOKENS["admin"]))
        assert revoked.json() == {"exist": True}
        answer = await api.http.post("/list_models", headers=bearer("created-before-0123"))
        assert answer.status_code == 401


async def test_strangers_cannot_use_up_the_memory_for_bodies(store: Store) -> None:
    async with open_api(store.registry(), max_body_memory=1, **SETTINGS) as api:
        for path in ("/healthz", "/readyz", "/test_connection"):
            refused = await api.http.request("GET", path, content=b" " * 20_000)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large"), path
            assert (await api.http.request("GET", path, content=b" " * 10_000)).status_code == 200, path


async def test_networks_alone_close_the_other_planes(store: Store) -> None:
    async with open_api(store.registry(), worker_networks="127.0.0.0/8") as api:
        await api.register(A)
        assert (await api.post("/get_worker_address", {"model": "m"})).status_code == 401


async def test_refusals_and_acts_are_in_the_audit_log_without_secrets(
    closed: Api, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "controller.audit"):
        for _ in range(3):
            await closed.http.post("/remove_worker", json={"worker_name": A}, headers=bearer("wrong-secret"))
        await register(closed, TOKENS["worker"], A)
        await register(closed, TOKENS["worker"], A)
        for path in ("/drain_worker", "/resume_worker", "/remove_worker", "/remove_worker"):
            await closed.http.post(path, json={"worker_name": A}, headers=bearer(TOKENS["admin"]))
        await closed.http.post("/set_capacity", json={"model": "m", "capacity": 3}, headers=bearer(TOKENS["admin"]))
        body = {"plane": "worker", "name": "gpu", "workers": ["10.0.0.0/8"]}
        secret = (await closed.http.post("/create_token", json=body, headers=bearer(TOKENS["admin"]))).json()["token"]
        await closed.http.post("/revoke_token", json={"name": "gpu"}, headers=bearer(TOKENS["admin"]))
    logged = [message for message in caplog.messages if " by " in message]
    assert [message.partition(": The token that was sent")[0] for message in logged] == [
        "refused: remove_worker by no token from 127.0.0.1",
        f"done: register_worker {A} by token worker from 127.0.0.1",
        f"done: drain_worker {A} by token admin from 127.0.0.1",
        f"done: resume_worker {A} by token admin from 127.0.0.1",
        f"done: remove_worker {A} by token admin from 127.0.0.1",
        "done: set_capacity model m by token admin from 127.0.0.1: capacity 3",
        "done: create_token gpu by token admin from 127.0.0.1: plane worker, workers=10.0.0.0/8",
        "done: revoke_token gpu by token admin from 127.0.0.1",
    ]
    assert not any(each in caplog.text for each in (*TOKENS.values(), secret, "wrong-secret"))


async def test_a_probed_worker_cannot_take_over_models_that_its_token_forbids(
    bound: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker registers what it may, and reports another model when it is probed."""
    assert (await register(bound, BOUND, A, "m1")).status_code == 200
    answers: dict[str, tuple[str, ...]] = {A: ("gpt",)}

    async def status(name: str, *_: object) -> object:
        return WorkerStatus(answers[name], 1, 0)

    monkeypatch.setattr(bound.replica.workers, "status", status)
    refresh = await bound.http.post("/refresh_all_workers", headers=bearer(TOKENS["admin"]))
    assert refresh.status_code == 200
    assert (await bound.registry.list_workers()).workers[0].status.model_names == ("m1",)
    answers[A] = ("m1", "m2")
    await bound.http.post("/refresh_all_workers", headers=bearer(TOKENS["admin"]))
    [known] = (await bound.registry.list_workers()).workers
    assert (known.status.model_names, known.registered_by) == (("m1", "m2"), "gpu")
    bound.replica.access.replace("file", ())  # its token is revoked
    answers[A] = ("m1", "gpt")
    await bound.http.post("/refresh_all_workers", headers=bearer(TOKENS["admin"]))
    assert (await bound.registry.list_workers()).workers[0].status.model_names == ("m1", "m2")
