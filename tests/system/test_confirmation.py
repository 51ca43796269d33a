"""How long requests wait goes by the rules, with real processes: benchmarks/confirmation.py in short.

Nothing is asserted in milliseconds, only the order. Each step of it is some tenfold in the real processes. Where their
clients could not keep up, because the machine was busy, only the order in the simulation is asserted.
"""

import asyncio

from confirmation import COMPRESSION, DEFAULTS, LEASES_AND_CAPACITY, NO_DECAY, burst, compressed_fleet, run

from tests.conftest import Figure

LOAD = 0.85
SECONDS = 8.0


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
    stock_arithmetic, defaults, exact = means
    assert defaults < stock_arithmetic / 2
    assert exact < defaults / 2


def test_a_burst_on_four_replicas_is_spread_evenly() -> None:
    assert asyncio.run(burst()) == [64, 64, 64, 64]
