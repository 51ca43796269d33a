"""Workers that fail polls are deprioritised, and those that never answered are polled less often."""

import asyncio
import time
from collections.abc import Callable

import pytest

from controller.domain.errors import WorkerError
from controller.domain.worker import Worker
from controller.replica import Replica
from controller.store.registry import FailureCall
from tests.conftest import Store
from tests.fleet.polling import INTERVAL, StatusRoute, is_deprioritised, is_not_failing, known, queue_is, was_polled
from tests.support.samples import worker
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker


async def test_worker_that_fails_polls_is_deprioritised_until_it_answers(
    store: Store,
    polling: Callable[..., Replica],
    status_route: StatusRoute,
    target: BadWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    await store.registry().register(worker(target.address))
    controller = polling()
    await wait_until(lambda: was_polled(store, target.address), "the worker has answered a poll")
    status_route.fails = True
    await wait_until(lambda: is_deprioritised(store, target.address), "the worker is deprioritised")
    await store.registry().register(worker("http://127.0.0.1:9", queue_length=50))
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == ["http://127.0.0.1:9"] * 3
    await wait_until(
        lambda: "has never answered a status poll" in caplog.text, "the other worker is reported as unreachable"
    )
    status_route.fails = False
    await wait_until(lambda: is_not_failing(store, target.address), "its failure is cleared")
    assert (await controller.dispatcher.dispatch("m")).value == target.address
    assert caplog.text.count("it gets requests only if no other worker can") == 1
    assert caplog.text.count("has never answered a status poll") == 1
    assert not (await known(store, "http://127.0.0.1:9")).failing, "a worker that never answered is not deprioritised"


async def test_worker_that_fails_soon_after_its_first_answer_is_deprioritised(
    store: Store, polling: Callable[..., Replica], status_route: StatusRoute, target: BadWorker
) -> None:
    """The replica's snapshot is older than that answer."""
    await store.registry().register(worker(target.address))
    polling(snapshot_interval=60.0)
    await wait_until(lambda: was_polled(store, target.address), "the worker has answered a poll")
    status_route.fails = True
    await wait_until(lambda: is_deprioritised(store, target.address), "the worker is deprioritised")


async def test_failed_polls_of_an_expired_worker_are_not_logged(
    store: Store,
    polling: Callable[..., Replica],
    status_route: StatusRoute,
    target: BadWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    await store.registry().register(worker(target.address))
    controller = polling(snapshot_interval=60.0)
    await wait_until(lambda: was_polled(store, target.address), "the worker has answered a poll")
    await store.expire_heartbeat(target.address)
    status_route.fails = True
    await wait_until(lambda: max(controller.poller._failures.values(), default=0) > 3, "it fails several polls")
    assert "has never answered a status poll" not in caplog.text
    assert "it gets requests only if no other worker can" not in caplog.text


async def test_single_failed_polls_do_not_deprioritise_a_worker(
    store: Store, polling: Callable[..., Replica], status_route: StatusRoute, target: BadWorker
) -> None:
    await store.registry().register(worker(target.address))
    status_route.fails_every_other = True
    reports = []
    controller = polling()
    report_failure = controller.poller._batches.report_failure

    def report(call: FailureCall) -> "asyncio.Future[bool | None]":
        reports.append(status_route.failed_in_a_row)
        return report_failure(call)

    controller.poller._batches.report_failure = report  # type: ignore[method-assign]
    await wait_until(lambda: status_route.polls > 8, "every second poll has failed")
    assert reports == [], "only consecutive failures count"
    status_route.fails_every_other = False
    await wait_until(lambda: queue_is(store, target.address, 0), "the worker answers")
    status_route.fails = True
    await wait_until(lambda: reports, "two consecutive polls fail")
    assert reports[0] == 2


async def test_worker_that_has_never_answered_is_polled_less_often_until_it_answers(
    store: Store,
    polling: Callable[..., Replica],
    status_route: StatusRoute,
    target: BadWorker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    factor = 4
    monkeypatch.setattr("controller.fleet.poller._UNREACHABLE_FACTOR", factor)
    status_route.fails = True
    await store.registry().register(worker(target.address))
    controller = polling()
    began = time.monotonic()
    await wait_until(lambda: status_route.polls >= 4, "it is polled twice, and then less often")
    assert time.monotonic() - began > 2 * factor * INTERVAL
    assert caplog.text.count("has never answered a status poll") == 1
    status_route.fails = False
    await wait_until(lambda: was_polled(store, target.address), "the worker answers a poll")
    polls_before = status_route.polls
    await wait_until(lambda: status_route.polls >= polls_before + 5, "it is polled at the usual interval")
    status_route.fails = True
    await wait_until(lambda: is_deprioritised(store, target.address), "the worker is deprioritised")
    assert caplog.text.count("has never answered a status poll") == 1
    await wait_until(
        lambda: caplog.text.count("it gets requests only if no other worker can") == 1, "the failure is logged"
    )
    assert not controller.poller._unreachable


async def test_new_registration_starts_without_failures(
    store: Store,
    polling: Callable[..., Replica],
    status_route: StatusRoute,
    target: BadWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One failed poll does not make it unreachable."""
    registry = store.registry()
    await registry.register(worker(target.address))
    controller = polling()
    await wait_until(lambda: was_polled(store, target.address), "the worker has answered a poll")
    status_route.fails = True
    await wait_until(lambda: is_deprioritised(store, target.address), "the worker is deprioritised")
    poller, failed = controller.poller, controller.poller._failed
    after_failures: dict[int, tuple[int, bool]] = {}  # by registration, after its first failed poll

    async def record(polled: Worker, error: WorkerError) -> None:
        await failed(polled, error)
        count = poller._failures[polled.name, polled.registration]
        after_failures.setdefault(polled.registration, (count, bool(poller._unreachable)))

    monkeypatch.setattr(poller, "_failed", record)
    await registry.register(worker(target.address))
    registration = (await known(store, target.address)).registration
    await wait_until(lambda: registration in after_failures, "a poll of the new registration fails")
    assert after_failures[registration] == (1, False)


async def test_unreachable_worker_is_polled_soon_after_it_registers_again(
    store: Store,
    polling: Callable[..., Replica],
    status_route: StatusRoute,
    target: BadWorker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.fleet.poller._UNREACHABLE_FACTOR", 1_000)
    status_route.fails = True
    await store.registry().register(worker(target.address))
    polling()
    with caplog.at_level("INFO"):
        await wait_until(
            lambda: "has never answered a status poll" in caplog.text, "the worker is reported as unreachable"
        )
    polls_before = status_route.polls
    await asyncio.sleep(5 * INTERVAL)
    assert status_route.polls == polls_before
    status_route.fails = False
    await store.registry().register(worker(target.address))
    await wait_until(lambda: was_polled(store, target.address), "the worker answers a poll")
