"""One replica: builds its objects, and takes it to its end in steps."""

import asyncio
import logging
import multiprocessing
import signal
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from starlette.types import ASGIApp

from controller.metrics import CounterMemory, Metrics
from controller.service import Controller
from controller.settings import Settings
from controller.store_url import StoreUrl
from controller.supervisor import EndSignals, Place, Stage, unblock_signals
from controller.tls import Certificate
from controller.web.app import build_app, create_controller

logger = logging.getLogger("controller.server")


def replica(
    settings: Settings,
    store: StoreUrl,
    memory: CounterMemory | None,
    certificate: Certificate | None,
    place: Place | None = None,
) -> ASGIApp:
    """Build the application of a replica. Call this in its event loop, when uvicorn's signal handlers are in place.

    memory: of the counters of all replicas, if they share one.
    place: what the supervisor gives to a child process.
    """
    metrics = Metrics(memory, place.slot if place else 0, settings.replicas)
    controller = create_controller(settings, store, metrics)
    departure = _Departure(settings, controller)
    if place is not None:
        departure.follow(place.orders)
    return build_app(controller, metrics, *([certificate.watch_forever] if certificate else []))


class _Departure:
    """Takes a replica from stage to stage, as signals and its supervisor say.

    LEAVING: /readyz is 503 while all else is served. After the shutdown delay comes ENDING: uvicorn closes the port and
    waits for what is under way; streams that take longer than the shutdown timeout are broken off, with a last frame.
    FORCED: uvicorn waits for nothing. The death of the supervisor leads to ENDING.
    """

    def __init__(self, settings: Settings, controller: Controller) -> None:
        self._settings = settings
        self._controller = controller
        self._loop = asyncio.get_running_loop()
        self._stage = Stage.SERVING
        self._signals = EndSignals()
        self._stop_server = signal.getsignal(signal.SIGTERM)
        for number in EndSignals.heeded():
            signal.signal(number, self._signalled)
        unblock_signals()

    def follow(self, orders: "Connection[Any, int]") -> None:
        """Go to the stages that the supervisor orders, and end when it dies."""
        self._loop.add_reader(orders.fileno(), self._ordered, orders)
        supervisor = multiprocessing.parent_process()
        if supervisor is not None:
            self._loop.add_reader(supervisor.sentinel, self._supervisor_died, supervisor.sentinel)

    def _ordered(self, orders: "Connection[Any, int]") -> None:
        try:
            self._reach(Stage(orders.recv()))
        except EOFError:  # the supervisor has died
            self._loop.remove_reader(orders.fileno())

    def _supervisor_died(self, sentinel: int) -> None:
        self._loop.remove_reader(sentinel)
        logger.error("The process that started this replica is gone; ending too, so that it can be started again.")
        self._reach(Stage.ENDING)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        # A signal's handler runs between any two instructions of the loop's thread: leave the work to the loop.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._reach, self._signals.stage(number))

    def _reach(self, stage: Stage) -> None:
        if stage <= self._stage:
            return
        before, self._stage = self._stage, stage
        self._controller.leave()
        if stage is Stage.LEAVING:
            logger.info("Shutting down: serving for %g s more.", self._settings.shutdown_delay)
            self._loop.call_later(self._settings.shutdown_delay, self._reach, Stage.ENDING)
            return
        if before < Stage.ENDING:
            self._loop.call_later(self._settings.shutdown_timeout, self._controller.end_streams)
            self._controller.end_patience()
            self._stop(signal.SIGTERM)
        if stage is Stage.FORCED:
            self._stop(signal.SIGINT)  # uvicorn takes a SIGINT in its shutdown for that

    def _stop(self, number: signal.Signals) -> None:
        if callable(self._stop_server):
            self._stop_server(number, None)
