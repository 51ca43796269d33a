"""The counters of replicas that share memory, and of replicas that cannot."""

import os
import re
import tempfile

import pytest

from controller.metrics import CounterMemory, Metrics


def count(metrics: Metrics, series: str) -> float:
    [value] = re.findall(rf"^controller_{re.escape(series)} (\S+)$", metrics.render().decode(), re.MULTILINE)
    return float(value)


def test_every_series_starts_at_zero() -> None:
    assert count(Metrics(), 'removals_total{reason="expired"}') == 0
    assert count(Metrics(), "store_outages_total") == 0


def test_each_replica_returns_the_sum_over_all_replicas() -> None:
    memory = CounterMemory(3)
    replicas = [Metrics(memory, slot, 3) for slot in range(3)]
    for replica in replicas:
        replica.registrations.labels("new").inc()
        replica.dispatch_batches.inc(2)
    for replica in replicas:
        assert count(replica, 'registrations_total{outcome="new"}') == 3
        assert count(replica, 'registrations_total{outcome="again"}') == 0
        assert count(replica, "dispatch_batches_total") == 6


def test_restarted_replica_continues_the_counters_of_its_slot() -> None:
    memory = CounterMemory(2)
    other = Metrics(memory, 0, 2)
    for _ in range(3):
        Metrics(memory, 1, 2).store_outages.inc()
    assert count(other, "store_outages_total") == 3


def test_no_label_comes_from_input() -> None:
    """All values of labels are words of the code, so neither models nor workers can add series."""
    metrics = Metrics()
    values = re.findall(r'=\"([^"]*)\"', metrics.render().decode())
    assert len(values) > 10
    assert [value for value in values if not re.fullmatch(r"[a-z_]+", value)] == []
    for model in ("m", "", "a\nb"):
        with pytest.raises(KeyError):
            metrics.registrations.labels(model)


@pytest.mark.parametrize("anonymous", [True, False], ids=["memfd", "unlinked file"])
def test_memory_has_no_file_name_and_its_space_is_reserved(anonymous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not anonymous:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    memory = CounterMemory(2)
    found = os.fstat(memory._descriptor)
    assert found.st_nlink == 0
    assert found.st_blocks * 512 >= found.st_size == 2 * 4096
    Metrics(memory, 1, 2).store_outages.inc()
    assert count(Metrics(memory, 0, 2), "store_outages_total") == 1


def test_counter_memory_raises_an_error_if_there_is_no_memory_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(OSError, match="/nowhere"):
        CounterMemory(2)


def test_replica_without_shared_memory_returns_its_own_counts_with_a_comment() -> None:
    alone = Metrics(None, 1, 2)
    alone.store_outages.inc()
    assert count(alone, "store_outages_total") == 1
    assert alone.render().startswith(b"# These are the counts of one replica only, because the 2 replicas")
    assert not Metrics().render().startswith(b"# These are")
