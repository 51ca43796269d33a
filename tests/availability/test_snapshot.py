"""Dispatch from a snapshot: the lowest load is chosen, ties are random, and the lottery is proportional to speed."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.availability.snapshot import Snapshot
from controller.domain.engine import Engine
from controller.domain.worker import Worker, WorkerStatus


def known(name: str, *models: str, speed: float = 1, queue_length: int = 0, multimodal: bool = False) -> Worker:
    return Worker(
        name=name,
        status=WorkerStatus(models or ("m",), speed, queue_length),
        check_heart_beat=True,
        multimodal=multimodal,
        registration=1,
        heartbeat_age=10.0,
        expires_in=80.0,
    )


def snapshot(*workers: Worker, seed: int = 1) -> Snapshot:
    return Snapshot(workers, 100.0, random.Random(seed).random)


def test_empty_snapshot_returns_no_worker() -> None:
    empty = snapshot()
    assert (empty.shortest_queue("m"), empty.lottery("m"), empty.list_models(), empty.workers(100.0)) == (
        "",
        "",
        [],
        [],
    )
    assert len(empty) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from([("a",), ("b",), ("a", "b"), ("a", "b", "c")]),
            st.sampled_from([0.5, 1, 2, 3]),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.sampled_from("abcd"), max_size=60),
)
def test_shortest_queue_chooses_the_lowest_load_and_books_it_for_all_models(
    statuses: list[tuple[tuple[str, ...], float, int]], requests: list[str]
) -> None:
    workers = [known(f"w{i}", *models, speed=s, queue_length=q) for i, (models, s, q) in enumerate(statuses)]
    taken = snapshot(*workers)
    queues = {worker.name: worker.status.queue_length for worker in workers}
    speeds = {worker.name: worker.status.speed for worker in workers}
    for model in requests:
        serving = [worker.name for worker in workers if model in worker.status.model_names]
        name = taken.shortest_queue(model)
        assert (name == "") == (not serving)
        if name:
            assert name in serving
            assert queues[name] / speeds[name] == min(queues[other] / speeds[other] for other in serving)
            queues[name] += 1
    assert {worker.name: worker.status.queue_length for worker in taken.workers(100.0)} == queues


def test_shortest_queue_breaks_ties_at_random_so_that_replicas_choose_differently() -> None:
    first = Counter(
        snapshot(*(known(f"w{i}") for i in range(4)), seed=seed).shortest_queue("m") for seed in range(4000)
    )
    assert first.total() == 4000
    assert all(abs(first[f"w{i}"] - 1000) < 110 for i in range(4)), "4 standard deviations"


def test_lottery_is_proportional_to_speed() -> None:
    taken = snapshot(known("a", speed=1), known("b", speed=3), known("c", "other", speed=100))
    drawn = Counter(taken.lottery("m") for _ in range(8000))
    assert drawn["a"] + drawn["b"] == 8000
    assert abs(drawn["a"] - 2000) < 155, "4 standard deviations"
    assert [w.status.queue_length for w in taken.workers(100.0)] == [0, 0, 0], "nothing is booked"


@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_lottery_accepts_the_extreme_random_numbers(draw: float) -> None:
    taken = Snapshot([known("a"), known("b")], 0.0, lambda: draw)
    assert taken.lottery("m") in ("a", "b")


def test_draining_worker_is_listed_but_not_chosen() -> None:
    taken = snapshot(known("a"), replace(known("b"), draining=True), replace(known("c", "n"), draining=True))
    assert {taken.shortest_queue("m") for _ in range(4)} == {taken.lottery("m") for _ in range(9)} == {"a"}
    assert (taken.shortest_queue("n"), taken.lottery("n"), taken.list_models()) == ("", "", ["m"])
    assert len(taken.workers(100.0)) == 3, "draining workers are listed"


def test_deprioritised_worker_is_chosen_only_if_there_is_no_other() -> None:
    failing = replace(known("a", speed=100), failing="request")
    taken = snapshot(failing, known("b", queue_length=50))
    assert {taken.shortest_queue("m") for _ in range(4)} == {taken.lottery("m") for _ in range(9)} == {"b"}
    alone = snapshot(failing)
    assert (alone.shortest_queue("m"), alone.lottery("m")) == ("a", "a")


def test_worker_that_fails_later_is_chosen_only_if_there_is_no_other() -> None:
    taken = snapshot(known("a", "m", "n", speed=100), known("b", "m", queue_length=50))
    assert (taken.shortest_queue("m"), taken.lottery("m")) == ("a", "a")
    taken.fail("a")
    taken.fail("absent")
    taken.clear_failure("a", of_polls=True)
    assert {taken.shortest_queue("m") for _ in range(4)} == {taken.lottery("m") for _ in range(9)} == {"b"}
    assert taken.find("m", ()) == "b"
    assert (taken.shortest_queue("n"), taken.lottery("n")) == ("a", "a")
    assert [(listed.name, listed.failing) for listed in taken.workers(100.0)] == [("a", "request"), ("b", "")]
    taken.fail("b")
    assert taken.shortest_queue("m") == "a"


def test_answer_to_a_poll_clears_only_the_failure_of_polls() -> None:
    taken = snapshot(known("a"), known("b", queue_length=50))
    taken.fail("a", of_polls=True)
    assert (taken.shortest_queue("m"), taken.lottery("m")) == ("b", "b")
    taken.clear_failure("a", of_polls=True)
    assert taken.shortest_queue("m") == "a"
    taken.fail("a")
    taken.fail("a", of_polls=True)
    taken.clear_failure("a", of_polls=True)
    assert {taken.shortest_queue("m") for _ in range(4)} == {"b"}
    taken.clear_failure("a")
    assert taken.shortest_queue("m") == "a"


def test_failing_engines_include_those_that_fail_later() -> None:
    one, other = (replace(known(name), engine=Engine("vllm")) for name in "ab")
    taken = snapshot(one, other)
    assert taken.failing_engines == {}
    taken.fail("a")
    assert taken.failing_engines == {"m": ["a"]}


def test_shortest_queue_prefers_a_worker_with_a_free_slot() -> None:
    small, large = (
        replace(known(name), status=WorkerStatus(("m",), 1, 0, slots)) for name, slots in (("a", 1), ("b", 3))
    )
    taken = snapshot(small, large)
    assert Counter(taken.shortest_queue("m") for _ in range(4)) == {"a": 1, "b": 3}


def test_list_models_filters_by_multimodal() -> None:
    taken = snapshot(known("a", "x", "y"), known("b", "y", "z", multimodal=True))
    assert taken.list_models() == ["x", "y", "z"]
    assert taken.list_models(multimodal=True) == ["y", "z"]
    assert taken.list_models(multimodal=False) == ["x", "y"]


def test_times_of_workers_advance_with_the_age_of_the_snapshot() -> None:
    always = replace(known("b"), check_heart_beat=False, expires_in=None)
    listed = snapshot(known("a"), always).workers(130.0)
    assert [(w.name, w.heartbeat_age, w.expires_in) for w in listed] == [("a", 40.0, 50.0), ("b", 40.0, None)]
    assert [w.expires_in for w in snapshot(known("a")).workers(190.0)] == [0.0]
