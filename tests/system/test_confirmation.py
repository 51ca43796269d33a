"""Each dispatch rule shortens the waits: a short run of benchmarks/confirmation.py with real processes.

The waits of real processes depend on the load of the machine. The test reports them and checks that no request failed.
It compares the waits in the simulation, which has the same requests.
"""

import asyncio

import pytest
from confirmation import COMPRESSION, burst, compressed_fleet, run, simulate
from confirmation_rows import BY_WAY_AND_CAPACITY, DEFAULTS, LEASES_AND_CAPACITY, NO_DECAY

from tests.conftest import Figure

pytestmark = pytest.mark.system

LOAD = 0.85
SECONDS = 5.0


@pytest.mark.slow
def test_no_request_of_real_processes_fails(figure: Figure) -> None:
    fleet = compressed_fleet(LOAD, SECONDS, COMPRESSION, seed=0)
    results = [run(row, fleet) for row in (DEFAULTS, BY_WAY_AND_CAPACITY)]
    for result in results:
        assert result.failed == []
        note = "" if result.sound else " (the machine was too busy)"
        waits = f"mean {1000 * result.real.mean:.0f} ms, p99 {1000 * result.real.p99:.0f} ms"
        figure(f"waits, {result.name}", f"{waits}{note}")
    assert [result.forwarded for result in results] == [0, results[-1].requests]


def test_each_rule_shortens_the_waits() -> None:
    fleet = compressed_fleet(LOAD, SECONDS, COMPRESSION, seed=0)
    rows = (NO_DECAY, DEFAULTS, LEASES_AND_CAPACITY, BY_WAY_AND_CAPACITY)
    no_decay, defaults, leases, by_way = (simulate(row, row.fleet(fleet)).mean for row in rows)
    assert defaults < no_decay / 2
    assert leases < defaults / 2
    assert by_way < defaults / 2


def test_a_burst_on_four_replicas_is_spread_evenly() -> None:
    assert asyncio.run(burst()) == [64, 64, 64, 64]
