"""The counters of replicas that share memory, and of replicas that cannot."""

import os
import re
import shutil
import subprocess
import tempfile

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.metrics import Metrics, MetricsMemory


def count(metrics: Metrics, series: str) -> float:
    [value] = re.findall(rf"^controller_{re.escape(series)} (\S+)$", metrics.render().decode(), re.MULTILINE)
    return float(value)


def test_every_series_starts_at_zero() -> None:
    assert count(Metrics(), 'removals_total{reason="expired"}') == 0
    assert count(Metrics(), "store_outages_total") == 0


def test_each_replica_returns_the_sum_over_all_replicas() -> None:
    memory = MetricsMemory(3)
    replicas = [Metrics(memory, slot, 3) for slot in range(3)]
    for replica in replicas:
        replica.registrations.labels("new").inc()
        replica.dispatch_batches.inc(2)
    for replica in replicas:
        assert count(replica, 'registrations_total{outcome="new"}') == 3
        assert count(replica, 'registrations_total{outcome="again"}') == 0
        assert count(replica, "dispatch_batches_total") == 6


def test_restarted_replica_continues_the_counters_of_its_slot() -> None:
    memory = MetricsMemory(2)
    other = Metrics(memory, 0, 2)
    for _ in range(3):
        Metrics(memory, 1, 2).store_outages.inc()
    assert count(other, "store_outages_total") == 3


def test_clients_cannot_add_series() -> None:
    """Only models that have had a worker are named, and only as many as there is room for."""
    metrics = Metrics()
    before = metrics.render().count(b"\n")
    for number in range(1_000):
        metrics.dispatches.count("no_worker", f"model-{number}")
    assert metrics.render().count(b"\n") == before
    assert dispatches(metrics, "(unknown)", "no_worker") == 1_000
    with pytest.raises(KeyError):
        metrics.registrations.labels("m")


def dispatches(metrics: Metrics, model: str, outcome: str) -> float:
    return count(metrics, f'dispatches_total{{method="shortest_queue",model="{model}",outcome="{outcome}"}}')


def test_dispatches_are_counted_by_model() -> None:
    memory = MetricsMemory(2)
    first, second = (Metrics(memory, slot, 2) for slot in range(2))
    first.dispatches.chosen("a")
    second.dispatches.chosen("b")
    second.dispatches.chosen("a")
    second.dispatches.count("no_worker", "b")
    second.dispatches.know(["c", "b"])
    for metrics in (first, Metrics(memory, 1, 2)):  # the second one replaces a replica
        assert dispatches(metrics, "a", "chosen") == 2
        assert dispatches(metrics, "b", "chosen") == dispatches(metrics, "b", "no_worker") == 1
        assert dispatches(metrics, "c", "chosen") == 0
    again = Metrics(memory, 1, 2)
    again.dispatches.chosen("b")
    again.dispatches.chosen("new")
    assert dispatches(first, "b", "chosen") == 2
    assert dispatches(first, "new", "chosen") == 1


def test_models_without_room_are_counted_together() -> None:
    metrics = Metrics()
    long = "ü" * 512
    for model in (*(f"model-{number}" for number in range(300)), long):
        metrics.dispatches.chosen(model)
    assert dispatches(metrics, "model-199", "chosen") == 1
    assert dispatches(metrics, "(other)", "chosen") == 101
    assert "model-200" not in metrics.render().decode()


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a{b}", "ü,=", "(unknown)"])
def test_hostile_names_are_escaped(name: str) -> None:
    metrics = Metrics()
    metrics.dispatches.chosen(name)
    [sample] = [
        sample
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.labels.get("model") == name and sample.labels["outcome"] == "chosen" and sample.value == 1
    ]
    assert sample.name == "controller_dispatches_total"


def test_histograms_are_sums_over_replicas() -> None:
    memory = MetricsMemory(2)
    first, second = (Metrics(memory, slot, 2) for slot in range(2))
    for metrics in (first, second):
        metrics.measure_scripts(["register", "sweep"])
    first.dispatch_time.observe(0.0005)
    second.dispatch_time.observe(0.0006)
    second.dispatch_time.observe(100.0)
    assert count(first, 'dispatch_seconds_bucket{le="0.0005"}') == 1
    assert count(first, 'dispatch_seconds_bucket{le="0.001"}') == 2
    assert count(first, 'dispatch_seconds_bucket{le="5"}') == 2
    assert count(first, 'dispatch_seconds_bucket{le="+Inf"}') == count(second, "dispatch_seconds_count") == 3
    assert count(first, "dispatch_seconds_sum") == pytest.approx(100.0011)
    first.observe_script("sweep", 0.003)
    assert count(second, 'store_call_seconds_bucket{le="0.005",script="sweep"}') == 1
    assert count(second, 'store_call_seconds_count{script="register"}') == 0


def test_gauges_belong_to_replicas() -> None:
    memory = MetricsMemory(2)
    first, second = (Metrics(memory, slot, 2) for slot in range(2))
    first.forwards.set(3)
    assert count(second, 'replica_forwards{replica="0"}') == 3
    assert count(second, 'replica_forwards{replica="1"}') == 0


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_finds_nothing_to_improve() -> None:
    metrics = Metrics()
    metrics.measure_scripts(["register"])
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics.render(), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


@pytest.mark.parametrize("anonymous", [True, False], ids=["memfd", "unlinked file"])
def test_memory_has_no_file_name_and_its_space_is_reserved(anonymous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not anonymous:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    memory = MetricsMemory(2)
    found = os.fstat(memory._descriptor)
    assert found.st_nlink == 0
    assert found.st_blocks * 512 >= found.st_size > 2 * 4096
    Metrics(memory, 1, 2).store_outages.inc()
    assert count(Metrics(memory, 0, 2), "store_outages_total") == 1


def test_counter_memory_raises_an_error_if_there_is_no_memory_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(OSError, match="/nowhere"):
        MetricsMemory(2)


def test_replica_without_shared_memory_returns_its_own_counts_with_a_comment() -> None:
    alone = Metrics(None, 1, 2)
    alone.store_outages.inc()
    assert count(alone, "store_outages_total") == 1
    assert alone.render().startswith(b"# These are the counts of one replica only, because the 2 replicas")
    assert not Metrics().render().startswith(b"# These are")
