"""The checker finds bugs: each test runs a copy of the program that lacks one of its guards."""

from pathlib import Path

import pytest

from tests.conftest import Figure
from tests.history.faults import LOSSY_FAILOVER
from tests.history.planted import Change, copy_program
from tests.history.run import Violation, run_history

pytestmark = [pytest.mark.system, pytest.mark.slow]

SECONDS = 60.0  # most bugs are found within a few rounds
DISPATCH = "lua/dispatch/dispatch_shortest_queue.lua"

BUGS = {
    "request id": (
        [Change("lua/include/dispatch/run_batch.lua", "if call.kept then", "if false then")],
        ["single replies lost"],
        "no order explains|state at the end differs|leases that no client asked for",
    ),
    "expiry check": (
        [Change(DISPATCH, "is_known_alive or is_alive(name)", "true")],
        ["none"],
        "no order explains this call: .*(Dispatch|Release)",  # an expired worker also loses its leases
    ),
    "drain check": (
        [
            Change(DISPATCH, "load and not load.draining and", "load and"),
            Change(
                "lua/workers/drain.lua",
                "leave_pools(name, load.index_seq, load.pools, models)\n    spend(work)",
                "1, {}\n    spend(work)",
            ),
        ],
        ["none"],
        "no order explains this call: .*Dispatch",
    ),
    "increment": (
        [Change("lua/include/load/book.lua", "load.untracked = load.untracked + 1", "")],
        ["none"],
        "no order explains this call: .*Dispatch|state at the end differs|requests without leases, but",
    ),
    "reconciliation": (
        [Change("controller/availability/reconciler.py", "self._bookings.update(workers)", "pass")],
        ["Redis stopped"],
        "requests without leases, but",
    ),
    "drain check of a snapshot": (
        [Change("controller/availability/snapshot.py", "if worker.draining:", "if False:")],
        ["Redis stopped"],
        "was chosen from a snapshot, but it was expired, removed or draining",
    ),
    "removal marker": (
        [Change("lua/workers/remove.lua", 'redis.call("SET", key("removed", name), "1", "PX", removed_ttl)', "")],
        [LOSSY_FAILOVER],
        "waiting until the replicas have repaired Redis",
    ),
    "check for lost data": (
        [
            Change(
                "controller/availability/listings.py",
                " or listing.sequence < other.sequence",
                "",
            ),
            Change("lua/coordination/mark_listing.lua", "if noted < known then", "if false then"),
        ],
        [LOSSY_FAILOVER],
        "waiting until the replicas have repaired Redis",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
async def test_the_checker_finds(tmp_path: Path, work_dir: Path, figure: Figure, bug: str) -> None:
    changes, faults, found = BUGS[bug]
    source = copy_program(tmp_path, *changes)
    with pytest.raises(Violation, match=found) as violation:
        await run_history(work_dir, SECONDS, 1, replicas=2, faults=faults, source=source)
    figure(f"planted bug, {bug}", str(violation.value).partition("\n")[0])
