"""The agent of one engine: registers it, sends heartbeats with its queue, and lets it expire when it is not ready."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, Final, NamedTuple

from controller.domain.engine import Engine
from controller.domain.engine_entry import EngineEntry
from controller.domain.engine_status import AGENT_ENDS, EngineStatus
from controller.domain.errors import ControllerBusy, ControllerRefused, ControllerUnreachable, WorkerError
from controller.domain.worker import Registration
from controller.fleet.engine_watch import EngineWatch, differs
from controller.upstream.client import WorkerClient
from controller.upstream.controllers import Controllers

logger = logging.getLogger("controller")

_IDLE_POLLS: Final = 2  # consecutive polls without a request, after which an unregistered engine counts as idle
_MAX_PROBLEM: Final = 500  # characters
_CUT_OFF_AFTER: Final = 10.0  # seconds without a controller, after which the engine has expired: --engine-expiration
_MAX_FAILURES: Final = 2  # consecutive polls whose connection fails, after which the engine is dead


class End(Enum):
    """The outcome of the run of an agent."""

    IDLE = 0  # the engine has finished its requests, or is not registered
    BUSY = 3  # requests were left at the deadline, or at a second signal


class _State(NamedTuple):
    """The state of the engine at one poll.

    status: None if it did not respond.
    problem: why it should get no requests, as a sentence. "" if it is ready, or if it may be too busy to respond.
    """

    status: EngineStatus | None
    problem: str = ""


class Agent:
    """Represents one engine at the controllers of a cluster.

    The engine is alive there as long as its heartbeats arrive. If this process and its machine die, it expires after
    the setting engine_expiration of the controllers. While an engine does not respond in time, the agent sends no
    heartbeats for it. If an engine reports that it is not ready, it gets no further requests. If it does not respond,
    it gets none after two failed polls.

    engine: the URL at which this process reaches the engine.
    name: the URL at which the controllers and clients reach it.
    interval: between two heartbeats, in seconds.
    deadline: how long the engine may take to finish its requests after stop(), in seconds.
    """

    def __init__(
        self,
        client: WorkerClient,
        controllers: Controllers,
        engine: str,
        name: str,
        entry: EngineEntry,
        interval: float,
        deadline: float,
    ) -> None:
        self._watch = EngineWatch(client, engine, entry)
        self._controllers = controllers
        self._name = name
        self._interval = interval
        self._time_to_drain = deadline
        self._registered: Registration | None = None  # as the controllers have it
        self._failures = 0
        self._stops = 0
        self._stop = asyncio.Event()
        self._drain_until = float("inf")
        self._logged: dict[str, str] = {}  # the last problem with the controllers, by path
        self._unanswered_since: float | None = None  # monotonic time of the first of the last calls without an answer

    def stop(self) -> None:
        """Drain the engine, and end when it is idle. The second call ends the agent at once."""
        self._stops += 1
        self._stop.set()

    async def run(self) -> End:
        """Represent the engine until it is drained after stop(). The engine is removed then."""
        while not self._stops:
            began = time.monotonic()
            await self._report(await self._poll())
            await self._sleep(began + self._interval - time.monotonic())
        self._drain_until = time.monotonic() + self._time_to_drain
        logger.info(
            "Draining %(worker)s, for at most %(seconds)g s.",
            {"worker": self._name, "seconds": self._time_to_drain},
        )
        end = await self._drain()
        await self._remove()
        logger.info(
            "Removed %(worker)s. %(state)s.",
            {"worker": self._name, "state": "It is idle" if end is End.IDLE else "It may still have requests"},
        )
        return end

    async def _drain(self) -> End:
        """Wait until the engine has finished its requests. Its heartbeats continue.

        If no controller has responded until the engine expires, only the engine decides if it is idle.
        """
        idle_polls = 0
        while True:
            began = time.monotonic()
            state = await self._poll()
            await self._report(state)
            is_idle = state.status is None or state.status.queue_length in (0, None)
            idle_polls = idle_polls + 1 if is_idle else 0
            has_left = self._registered is None
            is_drained = not has_left and await self._is_drained()
            if idle_polls >= _IDLE_POLLS if has_left else is_drained and is_idle:
                return End.IDLE
            if self._is_cut_off() and (state.status.queue_length == 0 if state.status else state.problem):
                return End.IDLE
            if self._stops > 1 or time.monotonic() >= self._drain_until:
                return End.BUSY
            self._stop.clear()
            await self._sleep(min(began + self._interval, self._drain_until) - time.monotonic())

    def _is_cut_off(self) -> bool:
        since = self._unanswered_since
        return since is not None and time.monotonic() - since >= _CUT_OFF_AFTER

    async def _is_drained(self) -> bool:
        """Drain the engine. Return True if the controller knows of no request to it."""
        answer = await self._call("/drain_worker", {"worker_name": self._name, "reason": AGENT_ENDS})
        if answer is None:
            return False
        if not answer:  # refused, because the token is bound to no workers
            await self._expire(f"{AGENT_ENDS}, and has no token that may drain it")
            return False
        return not answer.get("exist", True) or bool(answer.get("drained"))

    async def _poll(self) -> _State:
        try:
            status = await self._watch.poll()
        except WorkerError as error:
            is_slow = isinstance(error.__cause__, TimeoutError)
            self._failures = 0 if is_slow else self._failures + 1
            problem = str(error) if self._failures >= _MAX_FAILURES else ""
            if problem or is_slow:
                self._watch.note(str(error))
            return _State(None, problem)
        self._failures = 0
        problem = status.not_ready
        if any(model.hops for model in status.models):
            problem = "it is a controller, which needs no agent. Register it with `controller register`"
        self._watch.note(problem)
        return _State(status, problem)

    async def _report(self, state: _State) -> None:
        """Tell the controllers the state of the engine."""
        if state.problem and self._registered is not None:
            await self._expire(state.problem)
        if state.problem or state.status is None:
            return
        registration = replace(self._watch.registration(state.status), name=self._name)
        known = self._registered
        age = time.monotonic() - self._watch.polled_at + state.status.lag
        if known is not None and (self._stops or not differs(known, registration)):
            beat = {"worker_name": self._name, "queue_length": state.status.queue_length, "engine_age": age}
            answer = await self._call("/receive_heart_beat", beat)
            if not answer or answer.get("exist", True):
                return
            self._registered = None
            logger.info("The controller does not have %(worker)s any more.", {"worker": self._name})
        if self._stops:
            return
        engine = registration.engine or Engine("")
        status = {
            "queue_length": state.status.queue_length,
            "age": age,
            "capacity_learned": engine.capacity_learned,
            "max_lengths": dict(engine.max_lengths),
        }
        if await self._register(registration, status):
            self._registered = registration
            logger.info(
                "Registered %(worker)s: models %(models)s",
                {"worker": self._name, "models": list(registration.status.model_names)},
            )

    async def _expire(self, problem: str) -> None:
        """Let the engine expire at once. If no controller responds, it expires a little later, without heartbeats."""
        registered = self._registered
        if registered is not None and await self._register(registered, {"problem": problem[:_MAX_PROBLEM]}):
            self._registered = None

    async def _remove(self) -> None:
        """Remove the engine. If no controller responds, it expires."""
        if self._registered is not None:
            reason = {"worker_name": self._name, "reason": "its agent has ended"}
            if not await self._call("/remove_worker", reason):
                await self._expire("its agent has ended")

    async def _register(self, registration: Registration, status: Mapping[str, Any]) -> bool:
        """Register the engine with what the agent knows of it. Return True if a controller has accepted it."""
        engine, known = registration.engine or Engine(""), registration.status
        body = {
            "worker_name": self._name,
            "engine": engine.kind,
            "models": {engine.aliases.get(name, name): name for name in known.model_names},
            "api_key": engine.key,
            "speed": known.speed,
            "capacity": known.capacity,
            "status": status,
        }
        return bool(await self._call("/register_engine", body))

    async def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the response of a controller, empty if it refuses. None if none responds, or can serve the call now.

        Each is logged once for each path, until a call to the path is accepted.
        """
        began = time.monotonic()
        try:
            answer = await self._controllers.post(path, body)
        except ControllerUnreachable as error:
            is_refused = isinstance(error, ControllerRefused)
            if isinstance(error, ControllerRefused | ControllerBusy):  # without Redis, a controller still dispatches
                self._unanswered_since = None
            elif self._unanswered_since is None:
                self._unanswered_since = began
            kind = type(error).__name__
            if kind != self._logged.get(path):
                again = "" if is_refused else " Trying again."
                logger.error("No controller has accepted the call.%s %s", again, error)  # noqa: TRY400 - no traceback needed
            self._logged[path] = kind
            return {} if is_refused else None
        self._unanswered_since = None
        if self._logged.pop(path, None):
            logger.info("A controller accepts calls again. The path is %s.", path)
        return answer

    async def _sleep(self, seconds: float) -> None:
        """Wait, or until stop() is called."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._stop.wait()
