"""Workers whose requests do not finish."""

from dataclasses import replace

from controller.domain.engine import Engine
from controller.domain.stalls import Stalls
from controller.domain.worker import Worker
from tests.support.samples import A, B, worker

IDLE = Worker(A, worker(A, "m").status, True, False, registration=1, heartbeat_age=0.0, expires_in=90.0)


def stalled_for(stalls: Stalls, worker: Worker, now: float) -> float | None:
    stalls.observe([worker], now)
    return stalls.stalled_for(worker)


def test_a_queue_that_never_shrinks_is_a_stall() -> None:
    stalls, stuck = Stalls(), replace(IDLE, reported=7)
    assert [stalled_for(stalls, stuck, now) for now in (100.0, 101.0, 130.0)] == [0, 1, 30]
    assert stalled_for(stalls, replace(stuck, reported=9), 140.0) == 40, "more requests are no progress"
    assert stalled_for(stalls, replace(stuck, reported=8), 150.0) == 0, "one has finished"
    assert stalled_for(stalls, replace(stuck, reported=8), 151.0) == 1


def test_an_idle_worker_is_not_stalled() -> None:
    stalls = Stalls()
    assert stalled_for(stalls, IDLE, 100.0) is None
    assert stalled_for(stalls, replace(IDLE, reported=1), 110.0) == 0
    assert stalled_for(stalls, IDLE, 120.0) is None
    assert stalled_for(stalls, replace(IDLE, reported=1), 130.0) == 0, "the stall begins when the request was seen"


def test_nothing_is_known_of_a_worker_that_reports_nothing() -> None:
    """Its queue was reported once, at its registration."""
    silent = replace(IDLE, reported=5, check_heart_beat=False)
    for reporting in (silent, replace(silent, polled=True), replace(silent, check_heart_beat=True)):
        stalls = Stalls()
        found = [stalled_for(stalls, reporting, now) for now in (100.0, 130.0)]
        assert found == ([None, None] if reporting is silent else [0, 30])


def test_an_outage_of_redis_is_no_stall() -> None:
    stalls, full = Stalls(), replace(IDLE, reported=5)
    assert [stalled_for(stalls, full, now) for now in (100.0, 110.0)] == [0, 10]
    assert stalls.stalled_for(full) == 10, "it does not grow while nothing is observed"
    assert stalled_for(stalls, full, 300.0) == 0, "requests may have finished meanwhile"
    assert stalled_for(stalls, full, 320.0) == 20


def test_a_worker_that_is_always_full_is_busy_if_our_requests_finish() -> None:
    """Its reports have the same length each time. Redis resets the work when a request has finished."""
    stalls, full = Stalls(), replace(IDLE, reported=5, own=5)
    assert stalled_for(stalls, replace(full, own_work=0.0), 100.0) == 0
    assert stalled_for(stalls, replace(full, own_work=0.0), 110.0) == 0
    assert stalled_for(stalls, replace(full, own_work=25.0), 115.0) == 5, "none in the last report"
    assert stalled_for(stalls, replace(full, own_work=10.0), 120.0) == 0, "one has finished in between"


def test_an_engine_with_requests_of_other_clients_only_is_not_stalled() -> None:
    stalls, engine = Stalls(), replace(IDLE, reported=5, engine=Engine("vllm"))
    assert [stalled_for(stalls, engine, now) for now in (100.0, 200.0)] == [None, None]
    ours = replace(engine, own=1, own_work=7.0)
    assert [stalled_for(stalls, ours, now) for now in (201.0, 211.0)] == [7, 17]


def test_a_replica_that_has_just_started_knows_the_work_from_redis() -> None:
    stuck = replace(IDLE, reported=4, own=4, own_work=480.0)
    assert stalled_for(Stalls(), stuck, 100.0) == 120
    assert stalled_for(Stalls(), replace(stuck, own=0, own_work=0.0), 100.0) == 0, "nothing is known of others"


def test_a_new_registration_ends_a_stall() -> None:
    stalls, stuck = Stalls(), replace(IDLE, reported=7)
    stalled_for(stalls, stuck, 100.0)
    again = replace(stuck, registration=2)
    assert stalls.stalled_for(again) is None, "not observed yet"
    assert stalled_for(stalls, again, 160.0) == 0


def test_each_worker_is_observed_by_itself_and_removed_ones_are_dropped() -> None:
    stalls, stuck = Stalls(), replace(IDLE, reported=7)
    other = replace(stuck, name=B)
    stalls.observe([stuck, other], 100.0)
    stalls.observe([stuck, replace(other, reported=1)], 110.0)
    assert [stalls.stalled_for(each) for each in (stuck, other)] == [10, 0]
    stalls.observe([other], 120.0)
    assert stalls.stalled_for(stuck) is None
