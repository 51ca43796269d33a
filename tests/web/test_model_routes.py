"""The routes that set, list and remove routes of model names."""

import logging
from typing import Any

import pytest

from controller.fleet import model_routes
from tests.conftest import Store
from tests.support.outage import Link
from tests.support.samples import A, B
from tests.web.conftest import Api, open_api


@pytest.fixture(autouse=True)
def fast_route_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_routes, "INTERVAL", 0.02)


async def listed(api: Api) -> Any:
    return (await api.http.get("/model_routes")).json()["model_routes"]


async def test_route_is_set_shown_and_removed(api: Api) -> None:
    await api.register(A, "qwen-7b")
    assert await listed(api) == []
    body = {"model": "gpt", "targets": {"qwen-7b": 90, "next": 10, "off": 0}, "fallbacks": ["small", "next"]}
    response = await api.post("/set_model_route", body)
    assert (response.status_code, response.json()) == (200, {"unserved": ["next", "small"]})
    assert (await api.post("/set_model_route", {"model": "a", "targets": {"qwen-7b": 1}})).json() == {"unserved": []}
    assert await listed(api) == [
        {"model": "a", "targets": {"qwen-7b": 1}, "fallbacks": [], "unserved": []},
        {**body, "unserved": ["next", "small"]},
    ]
    await api.register(B, "small")
    assert (await listed(api))[1]["unserved"] == ["next"]
    assert (await api.post("/remove_model_route", {"model": "gpt"})).json() == {"exist": True}
    assert (await api.post("/remove_model_route", {"model": "gpt"})).json() == {"exist": False}
    assert [each["model"] for each in await listed(api)] == ["a"]


async def test_second_replica_lists_the_routes_at_once(store: Store) -> None:
    async with open_api(store.registry()) as first, open_api(store.registry()) as second:
        for targets in ({"a": 1}, {"b": 3, "a": 1}):
            await first.post("/set_model_route", {"model": "gpt", "targets": targets})
            [route] = await listed(second)
            assert list(route["targets"].items()) == list(targets.items()), "in the same order"


@pytest.mark.parametrize(
    "model", ["org/model:tag", "a b", "modèle 模型 🤖", "a,b=c", "\u202eabc", "entry:version", "x" * 512]
)
async def test_any_name_of_a_model_can_have_a_route(api: Api, model: str) -> None:
    body = {"model": model, "targets": {model: 1, "m": 2}, "fallbacks": [f"{model[:-1]}f"]}
    assert (await api.post("/set_model_route", body)).status_code == 200
    assert (await listed(api))[0] == {**body, "unserved": [model, "m", f"{model[:-1]}f"]}
    assert api.replica.model_routes.names() == (model,)
    assert (await api.post("/remove_model_route", {"model": model})).json() == {"exist": True}


async def test_weight_may_be_written_as_a_float(api: Api) -> None:
    assert (await api.post("/set_model_route", {"model": "gpt", "targets": {"a": 90.0, "b": 1e1}})).status_code == 200
    assert (await listed(api))[0]["targets"] == {"a": 90, "b": 10}


async def test_fastchats_routes_do_not_obey_a_route(api: Api) -> None:
    await api.register(A, "served")
    await api.post("/set_model_route", {"model": "alias", "targets": {"served": 1}})
    assert await api.dispatch("alias") == ""
    assert (await api.post("/list_models")).json() == {"models": ["served"]}
    await api.post("/set_model_route", {"model": "served", "targets": {"absent": 1}})
    assert await api.dispatch("served") == A


async def test_too_many_routes_are_400(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_routes, "MAX_ROUTES", 1)
    await api.post("/set_model_route", {"model": "a", "targets": {"m": 1}})
    response = await api.post("/set_model_route", {"model": "b", "targets": {"m": 1}})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("model: 1 names have a route already")


async def test_during_an_outage_routes_are_listed_but_not_changed(api: Api, link: Link) -> None:
    await api.register(A, "m")
    await api.post("/set_model_route", {"model": "gpt", "targets": {"m": 1, "n": 1}})
    await api.replica.snapshots.take_now()
    with link.broken():
        for path, body in (
            ("/set_model_route", {"model": "gpt", "targets": {"n": 1}}),
            ("/remove_model_route", {"model": "gpt"}),
        ):
            response = await api.post(path, body)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
        response = await api.http.get("/model_routes")
        assert response.json() == {
            "model_routes": [{"model": "gpt", "targets": {"m": 1, "n": 1}, "fallbacks": [], "unserved": ["n"]}]
        }
        assert "x-controller-degraded" in response.headers


async def test_changes_are_in_the_audit_log_and_the_events(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "controller.audit"):
        await api.post("/set_model_route", {"model": "gpt", "targets": {"a": 9, "b": 1}, "fallbacks": ["c"]})
        await api.post("/remove_model_route", {"model": "gpt"})
        await api.post("/remove_model_route", {"model": "gpt"})  # does nothing
    assert [message for message in caplog.messages if " by " in message] == [
        "done: set_model_route model gpt by no token from 127.0.0.1: targets a=9, b=1; fallbacks c",
        "done: remove_model_route model gpt by no token from 127.0.0.1",
    ]
    recorded = [(event.kind, event.fields["action"]) for event in api.replica.events._waiting]
    assert recorded == [("action", "set_model_route"), ("action", "remove_model_route")]
