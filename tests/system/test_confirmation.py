"""A short run of benchmarks/confirmation.py: each dispatch rule shortens the waits of real processes.

The tests compare waits and assert no milliseconds. Each rule shortens the mean about tenfold in real processes. If the
machine was too busy for the clients, only the waits in the simulation are compared.
"""

import asyncio

import pytest
from confirmation import COMPRESSION, DEFAULTS, LEASES_AND_CAPACITY, NO_DECAY, burst, compressed_fleet, run

from tests.conftest import Figure

pytestmark = pytest.mark.system

LOAD = 0.85
SECONDS = 8.0


@pytest.mark.slow
def test_each_rule_shortens_the_waits(figure: Figure) -> None:
    fleet = compressed_fleet(LOAD, SECONDS, COMPRESSION, seed=0)
    results = [run(row, fleet) for row in (NO_DECAY, DEFAULTS, LEASES_AND_CAPACITY)]
    for result in results:
        assert result.failed == []
        note = "" if result.sound else " (NOT COMPARED: the machine was too busy)"
        waits = f"mean {1000 * result.real.mean:.0f} ms, p99 {1000 * result.real.p99:.0f} ms"
        figure(f"waits, {result.name}", f"{waits}{note}")
    if all(result.sound for result in results):
        assert_in_order([result.real.mean - result.dispatch_time for result in results])
    assert_in_order([result.simulated.mean for result in results])


def assert_in_order(means: list[float]) -> None:
    no_decay, defaults, exact = means
    assert defaults < no_decay / 2
    assert exact < defaults / 2


def test_a_burst_on_four_replicas_is_spread_evenly() -> None:
    assert asyncio.run(burst()) == [64, 64, 64, 64]
