"""Test that random histories of calls give the same state in the scripts and in the reference model in tests/model.

The test sets the clock of Redis, so time passes only between calls.
"""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from controller.domain.checkpoints import CHECKPOINT_MS
from controller.domain.worker import WorkerStatus
from controller.store.connection import connect
from tests.conftest import STORES_WITH_RIGHTS
from tests.model.oracle import IN_FLIGHT_WINDOW
from tests.model.registry_machine import NAMES, RegistryMachine
from tests.support.budget import no_time_limit
from tests.support.headers import listed_accesses
from tests.support.key_accesses import record_accesses, recorded_accesses
from tests.support.parts import examples
from tests.support.pools import allow_sets


async def accesses_in(url: str) -> set[tuple[str, str, str]]:
    client = connect(url, 10.0)
    accesses = await recorded_accesses(client)
    await client.aclose()
    return accesses


def status(queue_length: int = 0) -> WorkerStatus:
    return WorkerStatus(("m",), 1, queue_length)


@pytest.fixture
def machine(store_clock: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryMachine]:
    no_time_limit(monkeypatch)
    machine = RegistryMachine("fakeredis", "", decays=True)
    yield machine
    machine.teardown()


# Random histories rarely reach the states that the following tests check.


def test_workers_booked_in_one_millisecond_are_in_order_of_name(machine: RegistryMachine) -> None:
    """The machine fails if the registry makes a different choice from its model."""
    for name in (NAMES[1], NAMES[0]):
        machine.register(name=name, status=status())
    machine.dispatch(requested=[("m", False)] * 5)


def test_release_does_not_acknowledge_a_later_lease(machine: RegistryMachine) -> None:
    """The older of two leases is released. The next report acknowledges only that lease."""
    machine.register(name=NAMES[0], status=status())
    machine.dispatch(requested=[("m", True)])
    [older] = machine.leases
    machine.tick(100)
    machine.dispatch(requested=[("m", True)])
    assert machine.run(machine.registry.release([older])) == [machine.end_lease(older)] == [True]
    machine.compare_states()
    machine.tick(150)
    machine.reports(reported=[(NAMES[0], 0, 0)], source="heartbeats")
    machine.compare_states()
    load = machine.known[NAMES[0]].load
    assert (load.leased_since_report, load.finished) == (1, 0)


def test_lease_that_a_report_counted_out_is_taken_back(machine: RegistryMachine) -> None:
    """The reply of the second dispatch was lost, so its request never ran. The worker still runs the first request."""
    machine.register(name=NAMES[0], status=status())
    machine.dispatch(requested=[("m", True)])
    machine.reconcile(requested=[("m", True)], bookings={}, runs="before", pause=1_500, reported=1)
    machine.compare_states()
    load = machine.known[NAMES[0]].load
    assert (load.leased, load.finished) == (1, 0)


def test_checkpoints_count_more_than_a_million_bookings(machine: RegistryMachine) -> None:
    """A report after 10 checkpoints keeps the bookings in flight, despite a million earlier ones."""
    machine.register(name=NAMES[0], status=status())
    machine.reconcile(requested=[("absent", False)], bookings={NAMES[0]: 1_000_000}, runs="never")
    for _ in range(10):
        machine.tick(CHECKPOINT_MS)
        machine.dispatch(requested=[("m", False)])
        machine.compare_states()
    machine.reports(reported=[(NAMES[0], 1_000_000, 7 * CHECKPOINT_MS - IN_FLIGHT_WINDOW)], source="heartbeats")
    machine.compare_states()
    assert machine.known[NAMES[0]].load.dispatched == 7


def test_a_report_finds_its_checkpoint_among_the_last_of_many(machine: RegistryMachine) -> None:
    """Checkpoints are deleted when there are 24. The last 8 of them are kept."""
    machine.register(name=NAMES[0], status=status())
    for _ in range(26):
        machine.tick(CHECKPOINT_MS)
        machine.dispatch(requested=[("m", False)])
        machine.compare_states()
    machine.reports(reported=[(NAMES[0], 3, 5 * CHECKPOINT_MS - IN_FLIGHT_WINDOW)], source="heartbeats")
    machine.compare_states()
    assert machine.known[NAMES[0]].load.dispatched == 5


@pytest.mark.parametrize("age", [200, 8_000])
def test_checkpoints_of_leases_get_further_apart(machine: RegistryMachine, age: int) -> None:
    """The machine compares them with the model's. Leases expire after 5 s, and one in ten is released."""
    machine.register(name=NAMES[0], status=status())
    for i in range(60):
        machine.tick(CHECKPOINT_MS + i % 7)
        machine.dispatch(requested=[("m", True)])
        if i % 10 == 0:
            lease = list(machine.leases)[len(machine.leases) // 2]
            assert machine.run(machine.registry.release([lease])) == [machine.end_lease(lease)]
        if i % 16 == 0:
            machine.reports(reported=[(NAMES[0], 9, age)], source="polls of engines")
        machine.compare_states()
    assert len(machine.known[NAMES[0]].load.checkpoints) > 8


def test_release_of_a_lease_that_was_granted_after_the_clock_was_set_back(machine: RegistryMachine) -> None:
    """A checkpoint counts a lease of the time before. No report may acknowledge more leases than there are."""
    machine.register(name=NAMES[0], status=status())
    machine.dispatch(requested=[("m", True)])
    machine.set_clock_back(by=5_000)
    machine.dispatch(requested=[("m", True)])
    for lease in list(machine.leases):
        assert machine.run(machine.registry.release([lease])) == [machine.end_lease(lease)] == [True]
        machine.compare_states()
    machine.reports(reported=[(NAMES[0], 0, 0)], source="heartbeats")
    machine.compare_states()
    machine.dispatch(requested=[("m", True)])


def test_reconciliation_without_a_change_leaves_the_decay_as_it_is(machine: RegistryMachine) -> None:
    """The difference shows only if the clock of Redis is set back to the time before the reconciliation."""
    machine.register(name=NAMES[0], status=status(queue_length=4))
    machine.tick(1500)
    machine.reconcile(requested=[], bookings={NAMES[0]: 0}, runs="never")
    machine.set_clock_back(by=5000)
    machine.compare_states()


def test_leases_that_expire_within_a_batch_lower_the_cost_of_their_worker(machine: RegistryMachine) -> None:
    """The first request reads the costs of both pools, the second ends the leases of A, and the third needs that."""
    a, b = NAMES[0], NAMES[2]
    machine.register(name=a, status=WorkerStatus(("m", "o"), 1, 0, 2))
    machine.dispatch(requested=[("m", True), ("m", True)])
    machine.register(name=b, status=WorkerStatus(("m", "n"), 7.5, 0, 2))
    machine.advance_time(by=20_000)
    machine.dispatch(requested=[("m", False), ("n", True), ("m", False), ("m", False)])
    machine.compare_states()


@pytest.mark.deep
@pytest.mark.slow_on_fakeredis
@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize(("decays", "max_sets"), [(True, 24), (True, 0), (False, 24), (False, 1)])
@pytest.mark.parametrize("kind", STORES_WITH_RIGHTS)
def test_random_histories_agree_with_the_reference_model(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, decays: bool, max_sets: int
) -> None:
    allow_sets(monkeypatch, max_sets)
    no_time_limit(monkeypatch)  # the model does not know how long a script takes
    url = "" if kind == "fakeredis" else request.getfixturevalue(f"{kind.replace('-', '_')}_url")
    if kind == "embedded":
        record_accesses(monkeypatch)

    class Machine(RegistryMachine):
        def __init__(self) -> None:
            super().__init__(kind, url, decays, max_sets)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples(
                {"fakeredis": 3, "embedded": 12}.get(kind, 6)
            ),  # fakeredis compiles a script at each run
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    if kind == "embedded":
        assert asyncio.run(accesses_in(url)) <= listed_accesses()
