"""The metrics of the cluster: the same on every replica, and 0 instead of absent."""

import asyncio
import json
import shutil
import subprocess
import time

import pytest

from controller.availability import known_models
from controller.fleet import telemetry
from controller.replica import Replica
from controller.store.registry import NewEvent
from controller.tasks import end
from tests.conftest import Open, Store
from tests.support.metrics import value
from tests.support.outage import Link
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until


async def rendered(replica: Replica) -> str:
    await replica.snapshots.take_now()
    await replica.replicas.join()
    replica.telemetry.measure()
    return replica.metrics.render().decode()


async def test_load_of_models(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.register(worker(A, "m", "n", queue_length=3, capacity=4))
    await registry.register(worker(B, "m", queue_length=6, capacity=8))
    await registry.drain(B)
    one, another = replica(), replica()
    for text in (await rendered(one), await rendered(another)):
        assert value(text, "controller_cluster_model_workers", model="m") == 2
        assert value(text, "controller_cluster_model_serving_workers", model="m") == 1
        assert value(text, "controller_cluster_model_queue_length", model="m") == 9
        assert value(text, "controller_cluster_model_capacity", model="m") == 4, "draining workers have no free slot"
        assert value(text, "controller_cluster_model_saturation", model="m") == 0.75
        assert value(text, "controller_cluster_model_queue_length", model="n") == 3
        assert value(text, "controller_cluster_workers", state="draining") == 1
        assert value(text, "controller_cluster_workers", state="serving") == 1
        assert value(text, "controller_cluster_workers", state="failing") == 0
    assert value(await rendered(one), "controller_cluster_replicas") == 2


async def test_metrics_of_the_cluster_keep_their_values_in_an_outage(store: Store, replica: Open, link: Link) -> None:
    await store.registry().register(worker(A, queue_length=3, capacity=4))
    one, another = replica(), replica()
    await rendered(one)

    def of_cluster(text: str) -> list[str]:
        lines = (line for line in text.splitlines() if line.startswith(("controller_cluster", "controller_desired")))
        return [line for line in lines if "heartbeat_seconds" not in line]

    await another.replicas.join()
    before = of_cluster(await rendered(one))
    assert "controller_cluster_replicas 2.0" in before
    with link.broken():
        await one.replicas.join()
        one.telemetry.measure()
        assert of_cluster(one.metrics.render().decode()) == before


@pytest.mark.parametrize(
    ("queues", "capacity", "wanted"),
    [((0, 0), 4, 1), ((3, 3), 4, 2), ((4, 3), 4, 3), ((40, 0), 4, 13), ((40, 0), None, 2)],
)
async def test_desired_workers(
    store: Store, replica: Open, queues: tuple[int, int], capacity: int | None, wanted: int
) -> None:
    """At 0.8 requests per slot, a worker with 4 slots is for 3.2 requests."""
    for name, queue in zip((A, B), queues, strict=True):
        await store.registry().register(worker(name, queue_length=queue, capacity=capacity))
    assert value(await rendered(replica(target_utilization=0.8)), "controller_desired_workers", model="m") == wanted


async def test_a_model_without_workers_stays_with_0(store: Store, replica: Open) -> None:
    registry = store.registry()
    controller = replica()
    text = await rendered(controller)
    assert value(text, "controller_cluster_oldest_heartbeat_seconds") == 0
    await registry.register(worker(A))
    await controller.snapshots.take_now()
    controller.telemetry.measure()  # no scrape comes meanwhile
    await registry.remove(A)
    text = await rendered(controller)
    for name in ("cluster_model_workers", "cluster_model_serving_workers", "cluster_model_saturation"):
        assert value(text, f"controller_{name}", model="m") == 0
    assert value(text, "controller_desired_workers", model="m") == 0
    assert value(text, "controller_dispatches_total", model="m", outcome="no_worker") == 0


async def test_a_replica_that_starts_later_reports_a_model_without_workers(
    store: Store, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 12 hours, no replica reports the model, whatever has happened in between."""
    registry = store.registry()
    await registry.register(worker(A, "gone"))
    await registry.register(worker(B, "drains"))
    await registry.remove(A)
    await registry.drain(B)
    await registry.record_events([NewEvent("action", {"target": "m"})] * 50)
    monkeypatch.setattr(known_models, "_PAGE", 20)
    later = replica()
    await later.snapshots.take_now()
    reading = asyncio.create_task(later.known_models.run())
    await wait_until(lambda: bool(later.known_models.missing()), "the replica has read the events")
    await end([reading])
    text = await rendered(later)
    assert value(text, "controller_cluster_model_serving_workers", model="gone") == 0
    assert value(text, "controller_desired_workers", model="gone") == 0
    assert value(text, "controller_dispatches_total", model="gone", outcome="no_worker") == 0
    await later.overview.tick()
    [missing] = json.loads(await later.overview.state())["missing_models"]
    assert missing["model"] == "gone", "the other one still has a worker"
    assert abs(missing["since"] - time.time()) < 60
    await registry.register(worker(A, "gone"))
    assert value(await rendered(later), "controller_cluster_model_serving_workers", model="gone") == 1
    assert later.known_models.missing() == {}
    await registry.remove(A)
    await later.snapshots.take_now()
    assert list(later.known_models.missing()) == ["gone"]
    monkeypatch.setattr(known_models, "_REMEMBERED", 0.0)
    assert 'model="gone"' not in "".join(line for line in (await rendered(later)).splitlines() if "cluster_" in line)


async def test_the_models_with_figures_are_limited(
    store: Store, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All replicas choose the same ones."""
    monkeypatch.setattr(telemetry, "_MAX_MODELS", 2)
    await store.registry().register(worker(A, "c", "a", "b"))
    text = await rendered(replica())
    assert [f'workers{{model="{name}"}}' in text for name in "abc"] == [True, True, False]


async def test_workers_are_named_only_on_request(store: Store, replica: Open) -> None:
    await store.registry().register(worker(A, queue_length=3, capacity=4))
    assert A not in await rendered(replica())
    text = await rendered(replica(worker_metrics="on"))
    assert value(text, "controller_cluster_worker_queue_length", worker=A) == 3
    assert value(text, "controller_cluster_worker_capacity", worker=A) == 4


async def test_a_replica_measures_itself(store: Store, replica: Open) -> None:
    controller = replica()
    await store.registry().register(worker(A))
    text = await rendered(controller)
    assert value(text, "controller_replica_store_available") == 1
    assert value(text, "controller_replica_snapshot_age_seconds") >= 0
    assert value(text, "controller_replica_resident_memory_bytes") > 10_000_000
    assert value(text, "controller_replica_open_fds") > 3
    assert value(text, "controller_replica_cpu_seconds_total") > 0
    assert value(text, "controller_store_call_seconds_count", script="list_workers") >= 1
    assert value(text, "controller_build_info") == 1


async def test_memory_of_redis(store: Store, replica: Open) -> None:
    controller = replica()
    await controller.registry.check()
    used = value(await rendered(controller), "controller_cluster_redis_memory_bytes")
    assert used > 0
    assert value(await rendered(controller), "controller_cluster_redis_max_memory_bytes") == 0


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
async def test_promtool_finds_nothing_to_improve(store: Store, replica: Open) -> None:
    await store.registry().register(worker(A, capacity=4))
    text = await rendered(replica(worker_metrics="on"))
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
