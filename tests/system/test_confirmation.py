"""How long requests wait goes by the rules, with real processes: benchmarks/confirmation.py in short.

Nothing is asserted in milliseconds, only the order; each step of it is some tenfold.
"""

import asyncio

from confirmation import COMPRESSION, DEFAULTS, LEASES_AND_CAPACITY, NO_DECAY, burst, compressed_fleet, run

from tests.conftest import Figure

LOAD = 0.85
SECONDS = 8.0


def test_each_rule_shortens_the_waits(figure: Figure) -> None:
    fleet = compressed_fleet(LOAD, SECONDS, COMPRESSION, seed=0)
    means = []
    for row in (NO_DECAY, DEFAULTS, LEASES_AND_CAPACITY):
        result = run(row, fleet)
        assert result.failed == []
        means.append(result.real.mean - result.dispatch_time)  # which a busy machine makes longer, for all rows
        figure(f"waits, {row.name}", f"mean {1000 * result.real.mean:.0f} ms, p99 {1000 * result.real.p99:.0f} ms")
    stock_arithmetic, defaults, exact = means
    assert defaults < stock_arithmetic / 2
    assert exact < defaults / 2


def test_a_burst_on_four_replicas_is_spread_evenly() -> None:
    assert asyncio.run(burst()) == [64, 64, 64, 64]
