"""Shuts a replica down in stages, by signals or by orders of the supervisor."""

import asyncio
import logging
import multiprocessing
import signal
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from controller.replica import Replica
from controller.server.signals import EndSignals, Stage, accept_reloads, unblock_signals
from controller.settings import Settings

logger = logging.getLogger("controller.server")


class GracefulShutdown:
    """Takes a replica from stage to stage.

    LEAVING: /readyz returns 503, and everything else is served. After the shutdown delay comes ENDING: uvicorn closes
    the port and waits for running requests. Streams that outlast the shutdown timeout are broken off with a final
    frame. FORCED: uvicorn waits for nothing. If the supervisor dies, the replica goes to ENDING.
    """

    def __init__(self, settings: Settings, replica: Replica) -> None:
        self._settings = settings
        self._replica = replica
        self._loop = asyncio.get_running_loop()
        self._stage = Stage.SERVING
        self._signals = EndSignals()
        self._stop_server = signal.getsignal(signal.SIGTERM)
        for number in EndSignals.handled():
            signal.signal(number, self._on_signal)
        accept_reloads()
        unblock_signals()

    def follow(self, orders: "Connection[Any, int]") -> None:
        """Go to the stages that the supervisor orders, and end when it dies."""
        self._loop.add_reader(orders.fileno(), self._on_order, orders)
        supervisor = multiprocessing.parent_process()
        if supervisor is not None:
            self._loop.add_reader(supervisor.sentinel, self._on_supervisor_death, supervisor.sentinel)

    def _on_order(self, orders: "Connection[Any, int]") -> None:
        try:
            self._reach(Stage(orders.recv()))
        except EOFError:  # the supervisor has died
            self._loop.remove_reader(orders.fileno())

    def _on_supervisor_death(self, sentinel: int) -> None:
        self._loop.remove_reader(sentinel)
        logger.error("The process that started this replica has died. Ending, so that both can be started again.")
        self._reach(Stage.ENDING)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # A signal handler runs between any two instructions of the event loop's thread, so it only schedules the work.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._reach, self._signals.stage(number))

    def _reach(self, stage: Stage) -> None:
        if stage <= self._stage:
            return
        before, self._stage = self._stage, stage
        self._replica.begin_shutdown()
        if stage is Stage.LEAVING:
            logger.info("Shutting down: serving for another %g s.", self._settings.shutdown_delay)
            self._loop.call_later(self._settings.shutdown_delay, self._reach, Stage.ENDING)
            return
        if before < Stage.ENDING:
            self._loop.call_later(self._settings.shutdown_timeout, self._replica.end_streams)
            self._replica.stop_waiting()
            self._stop(signal.SIGTERM)
        if stage is Stage.FORCED:
            self._stop(signal.SIGINT)  # during its shutdown, uvicorn takes SIGINT as an order to wait for nothing

    def _stop(self, number: signal.Signals) -> None:
        if callable(self._stop_server):
            self._stop_server(number, None)
