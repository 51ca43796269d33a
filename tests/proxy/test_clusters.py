"""Clusters as engines of other clusters: none lists a model that it has only through a loop."""

import contextlib
from collections.abc import Callable
from typing import Final

import httpx
import pytest

from controller.domain.engine_entry import EngineEntry
from controller.domain.hops import HEADER, MAX_HOPS
from controller.domain.worker import Registration
from controller.fleet import engine_poller
from controller.proxy.model_paths import paths_of_models
from controller.replica import Replica
from controller.store.registry import Registry
from controller.upstream.engines import probe
from tests.conftest import Store
from tests.fleet.engine_replicas import ADMIN, models
from tests.proxy.conftest import Serve
from tests.support.engines import AnswerServer, answer_server
from tests.support.openai_engines import engine_worker
from tests.support.waiting import wait_until

Cluster = tuple[Replica, str]
Clusters = Callable[[str], contextlib.AbstractAsyncContextManager[Cluster]]
QUICK: Final = {"engine_poll_interval": 0.05, "snapshot_interval": 0.05}


@pytest.fixture
def clusters(serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch) -> Clusters:
    """Return a function that serves a replica of another cluster. Its engines are asked for their models often."""
    monkeypatch.setattr(probe, "_STATE_INTERVAL", 0.05)
    monkeypatch.setattr(engine_poller, "INTERVAL", 0.05)
    return lambda name: serve(registry=store.registry(name, engine_expiration=3600.0), **QUICK)


def server(*names: str) -> contextlib.AbstractAsyncContextManager[AnswerServer]:
    """Serve the models, as an engine without other routes."""
    return answer_server({"/v1/models": models(*names, owner="another")})


async def listed(http: httpx.AsyncClient, cluster: Cluster, hops: str = "") -> dict[str, str | None]:
    """Return the models that a cluster lists, with their hop lists."""
    response = await http.get(f"{cluster[1]}/v1/models", headers={HEADER: hops} if hops else {})
    assert response.status_code == 200, response.text
    return {model["id"]: model.get("hops") for model in response.json()["data"]}


async def register(cluster: Cluster, address: str, kind: str = "auto") -> None:
    await cluster[0].engines.register(address, EngineEntry(kind), ADMIN)
    await cluster[0].snapshots.take_now()


async def test_a_model_ends_in_all_clusters_of_a_loop_when_its_engine_does(
    clusters: Clusters, http: httpx.AsyncClient
) -> None:
    async with (
        server("m", "n") as engine,
        server("o") as other,
        clusters("-a") as one,
        clusters("-b") as two,
        clusters("-c") as three,
    ):
        loop = (one, two, three)
        await register(one, engine.address)
        await register(three, other.address)
        await register(two, one[1])
        await register(three, two[1])
        await register(one, three[1])

        async def all_list(*names: str) -> bool:
            return [sorted(await listed(http, each)) for each in loop] == [list(names)] * 3

        await wait_until(lambda: all_list("m", "n", "o"), "each model is listed everywhere")
        ids = [replica.snapshots.cluster_id for replica, _ in loop]
        assert (await listed(http, three, "asker"))["m"] == f"{ids[2]},{ids[1]},{ids[0]}"
        assert await listed(http, three, ids[0]) == {"o": ids[2]}, "the other models come from the asker"
        engine.answers["/v1/models"] = models("n", owner="another")
        await wait_until(lambda: all_list("n", "o"), "the model is listed nowhere")


@pytest.mark.parametrize("kind", ["auto", "generic", "vllm"])
async def test_a_cluster_is_no_engine_of_itself(clusters: Clusters, http: httpx.AsyncClient, kind: str) -> None:
    async with server("m") as engine, clusters("-a") as cluster:
        await register(cluster, engine.address)
        response = await http.post(f"{cluster[1]}/register_engine", json={"worker_name": cluster[1], "engine": kind})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (502, "worker_unreachable")
        assert f"{cluster[1]} leads to this cluster itself, so it cannot be an engine of it." in error["message"]
        assert [state.name for state in await cluster[0].engines.list()] == [engine.address]


async def test_clients_get_no_hop_lists_and_a_wrong_one_is_refused(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    async with serve() as cluster:
        await registry.register(engine_worker("http://127.0.0.1:1/a"))
        await cluster[0].snapshots.take_now()
        assert await listed(http, cluster) == {"m": None}
        own = cluster[0].snapshots.cluster_id
        for path in ("/v1/models", "/v1/models/m"):
            for hops, status in (("a b", 400), (f"other,{own}", 508)):
                response = await http.get(cluster[1] + path, headers={HEADER: hops})
                assert response.status_code == status, response.text


def engine(name: str, **hops: str) -> Registration:
    registration = engine_worker(name, *hops)
    assert registration.engine is not None
    registration.engine.hops.update(hops)  # type: ignore[attr-defined]
    return registration


async def test_the_shortest_path_without_the_asker_counts(registry: Registry) -> None:
    longest = ",".join(f"c{i}" for i in range(MAX_HOPS - 1))
    for registration in (
        engine("http://127.0.0.1:1/a", m="x,y", own="", far=longest, too_far=longest + ",last"),
        engine("http://127.0.0.1:1/b", m="z", own="x"),
        engine("http://127.0.0.1:1/c", m=""),
    ):
        await registry.register(registration)
    workers = (await registry.list_workers()).workers
    assert paths_of_models(workers, {"a"}) == {"m": "", "own": "", "far": longest}
    assert paths_of_models(workers, set()) == {}
    assert await registry.drain("http://127.0.0.1:1/c", True)
    workers = (await registry.list_workers()).workers
    assert paths_of_models(workers, {"a"})["m"] == "z"
    assert paths_of_models(workers, {"a", "z"})["m"] == "x,y"
    assert "m" not in paths_of_models(workers, {"z", "y"})


async def test_an_engine_that_has_just_registered_is_listed_for_a_cluster(
    serve: Serve, registry: Registry, http: httpx.AsyncClient
) -> None:
    async with serve(snapshot_interval=60.0) as cluster:
        await registry.register(engine_worker("http://127.0.0.1:1/a"))
        assert list(await listed(http, cluster, "asker")) == ["m"]


async def test_of_equally_long_paths_one_is_always_chosen(registry: Registry) -> None:
    await registry.register(engine("http://127.0.0.1:1/a", m="x,z"))
    await registry.register(engine("http://127.0.0.1:1/b", m="x,y"))
    workers = (await registry.list_workers()).workers
    assert paths_of_models(workers, {"a"}) == paths_of_models(workers[::-1], {"a"}) == {"m": "x,y"}
