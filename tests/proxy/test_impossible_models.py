"""Names that no model can have, such as the name of an index, are unknown at each route."""

import httpx
import pytest

from controller.domain.engine import RESERVED
from controller.store.registry import Registry
from tests.proxy.conftest import Serve
from tests.support.openai_engines import engine_worker
from tests.support.samples import worker
from tests.support.waiting import wait_until

NAMES = [RESERVED + "m", RESERVED, RESERVED + "gone", RESERVED * 2 + "m", "m\0", "\n", "", "m" * 513]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_impossible_name_is_unknown(serve: Serve, registry: Registry, http: httpx.AsyncClient, name: str) -> None:
    async with serve() as (replica, address):
        await registry.register(engine_worker("http://127.0.0.1:1/a"))
        await registry.register(engine_worker("http://127.0.0.1:1/b", "gone"))
        await registry.register(worker("http://127.0.0.1:1/c"))
        await replica.snapshots.take_now()
        await registry.remove("http://127.0.0.1:1/b")
        await wait_until(lambda: replica.known_models.has("gone"), "the model is remembered")
        responses = [
            await http.post(f"{address}/v1/chat/completions", json={"model": name}),
            await http.post(f"{address}/v1/completions", json={"model": name, "prompt": "x"}),
        ]
        if name:
            responses.append(await http.get(f"{address}/v1/models/{''.join(f'%{ord(each):02X}' for each in name)}"))
        for response in responses:
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert "retry-after" not in response.headers
        for body in ({"model": name}, {"model": name, "lease": True}):
            assert (await http.post(f"{address}/get_worker_address", json=body)).json()["address"] == ""
        counted = await http.post(f"{address}/count_token", json={"model": name, "prompt": "x"})
        assert counted.json()["error"]["code"] == "no_worker"
        listed = (await http.get(f"{address}/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["m"]
        for route in ({"model": name, "targets": {"m": 1}}, {"model": "a", "targets": {name: 1}}):
            assert (await http.post(f"{address}/set_model_route", json=route)).status_code == 400
