"""Asks one engine for its state, with as few requests as possible."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from controller.domain.engine_status import EngineKind, EngineModel, EngineStatus
from controller.domain.errors import WorkerError
from controller.upstream.client import WorkerClient
from controller.upstream.engines.reading import OtherShape, Reading
from controller.upstream.engines.refusals import NO_ROUTE, refusal, refuse_own_cluster
from controller.upstream.engines.table import ENGINES, Question

Topic = Literal["health", "models", "awake", "load", "capacity"]

_STATE_INTERVAL: Final = 5.0  # seconds between two questions for health and models
_CAPACITY_INTERVAL: Final = 60.0
_MAX_SILENCES: Final = 2
_STATE: Final[tuple[Topic, ...]] = ("health", "models")  # decide whether an engine is ready


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The outcome of the questions of a topic: a reading, an error response in words, or no response."""

    reading: Reading | None = None
    lag: float = 0.0
    refusal: str = ""
    error: WorkerError | None = None


class EngineProbe:
    """Asks one registered engine. Create a new one when the engine registers again: it may be another version then.

    An engine that did not respond may have been restarted with other options. All routes are then asked again.

    Each poll asks for the load. It asks for health and models every 5 s, and at each poll while the engine is not
    ready. It asks for the capacity every minute. The requests of a poll are sent one after the other, over one
    connection: a llama.cpp server has few threads, and each connection occupies one.

    kind: decides what the engine is asked.
    key: the token that the engine requires. By default, that of --upstream-tokens-file.
    models: names of which the engine must list one, as it calls them. By default, any.
    clock: returns a monotonic time in seconds.
    timeout: for each question, in seconds. By default, and at most, that of a status call.
    """

    def __init__(
        self,
        client: WorkerClient,
        name: str,
        kind: EngineKind,
        key: str = "",
        models: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        timeout: float | None = None,
    ) -> None:
        self._client = client
        self._name = name
        self._engine = ENGINES[kind]
        self._key = key
        self._required = frozenset(models)
        self._clock = clock
        self._timeout = timeout
        self._missing: set[str] = set()  # paths that the engine does not have
        self._known: set[Topic] = set()  # topics of which there was a response
        self._state_due = self._capacity_due = float("-inf")
        self._models: tuple[EngineModel, ...] = ()
        self._no_models = "its models are not known yet"  # why the engine lists none
        self._unhealthy = "its health is not known yet" if self._engine.health else ""  # why it is not healthy
        self._problem = ""  # a problem that its last load reports
        self._silences = 0  # consecutive questions for its health without a response
        self._asleep = False
        self._load_failed = False
        self._had_requests = False  # since the engine may have started
        self._capacity: int | None = None
        self._capacity_in_load = False  # the answer to the question for the load has the capacity, too

    async def poll(self) -> EngineStatus:
        """Ask for what is due, and return the state of the engine. The load comes first. Run one poll at a time.

        Raises WorkerUnreachable if no question gets a response in time, or if there was none yet about its health or
        its models, or if the engine is the cluster that asks. Raises WorkerNotAllowed if the address of the engine is
        not allowed.
        """
        now = self._clock()
        outcomes: dict[Topic, _Outcome] = {}
        for topic in self._due(now, outcomes):
            outcomes[topic] = outcome = await self._ask(topic)
            self._take(topic, outcome)
        if _all_silent(outcomes):
            self._missing.clear()
            self._had_requests = False
            self._state_due = self._capacity_due = now
            raise next(outcome.error for outcome in outcomes.values() if outcome.error)
        for topic in _STATE:
            error = outcomes.get(topic, _Outcome()).error
            if error and topic not in self._known:
                raise error  # silence is no reason to call an engine not ready that may serve requests
        if "models" in outcomes:
            self._state_due = now + _STATE_INTERVAL
        if "capacity" in outcomes:
            self._capacity_due = now + _CAPACITY_INTERVAL
        load = outcomes.get("load", _Outcome())
        status = self._status(load)
        failed_before, self._load_failed = self._load_failed, bool(load.error or load.refusal)
        if not status.ready or (self._load_failed and not failed_before):
            self._state_due = now
        return status

    def _due(self, now: float, outcomes: Mapping[Topic, _Outcome]) -> Iterator[Topic]:
        """Yield the topics of this poll. Each poll has one at least, because it also shows that the engine responds.

        outcomes: those of the topics so far. If there is no response to the load, another route may respond.
        """
        load, health = bool(self._open("load")), bool(self._open("health"))
        if load:
            yield "load"
        state = now >= self._state_due or _all_silent(outcomes)
        if health and (state or not load):
            yield "health"
        if _all_silent(outcomes) and "health" in outcomes:
            return
        if state or not (load or health):
            yield "models"
        if state and self._open("awake"):
            yield "awake"
        if now >= self._capacity_due and not self._capacity_in_load and self._open("capacity"):
            yield "capacity"

    def _open(self, topic: Topic) -> list[Question]:
        """Return the questions of a topic without those for routes that the engine does not have."""
        questions: tuple[Question, ...] = getattr(self._engine, topic)
        return [question for question in questions if question.path not in self._missing]

    async def _ask(self, topic: Topic) -> _Outcome:
        """Ask the questions of a topic until one of them is answered."""
        problem = ""
        for question in self._open(topic):
            try:
                answer = await self._client.get(self._name, question.path, self._key, self._timeout)
            except WorkerError as error:
                return _Outcome(error=error)
            refuse_own_cluster(answer, self._name)
            problem = f"{question.path} {refusal(answer)}"
            if answer.status == 200:
                try:
                    reading = question.read(answer.body)
                    return _Outcome(reading, self._lag(question, reading))
                except OtherShape as error:
                    problem = f"the answer of {question.path} {error}"
            elif answer.status not in NO_ROUTE:
                break
            if topic != "models":  # an engine without a list of models cannot be used, so it is asked for it again
                self._missing.add(question.path)
        return _Outcome(refusal=problem)

    def _lag(self, question: Question, reading: Reading) -> float:
        """Return the lag of a load. Some engines report no request for longer after their start (vllm#49538)."""
        self._had_requests = self._had_requests or bool(reading.running or reading.waiting)
        return question.lag if self._had_requests else max(question.lag, question.lag_at_start)

    def _take(self, topic: Topic, outcome: _Outcome) -> None:
        """Update the known state of the engine."""
        if not outcome.error:
            self._known.add(topic)
        if topic == "health":
            self._take_health(outcome)
        if topic == "models" and not outcome.error:
            self._no_models = outcome.refusal
        reading = outcome.reading
        if reading is None:
            return
        if topic == "load":
            self._problem = reading.problem
            self._capacity_in_load = reading.capacity is not None
        if reading.models is not None:
            self._models = reading.models
        if reading.asleep is not None:
            self._asleep = reading.asleep
        if reading.capacity is not None and not (topic == "capacity" and self._capacity_in_load):
            self._capacity = reading.capacity

    def _take_health(self, outcome: _Outcome) -> None:
        """One silence is tolerated if other routes respond: a busy engine may be slow to check its health."""
        if outcome.error:
            self._silences += 1
            if self._silences >= _MAX_SILENCES:
                self._unhealthy = str(outcome.error).rstrip(".")
            return
        self._silences = 0
        # Without the route, the list of models shows whether the engine is ready.
        self._unhealthy = outcome.refusal if self._open("health") else ""

    def _status(self, load: _Outcome) -> EngineStatus:
        reading = load.reading or Reading()
        return EngineStatus(
            models=self._models,
            not_ready=self._not_ready(),
            running=reading.running,
            waiting=reading.waiting,
            full=reading.full,
            kv_use=reading.kv_use,
            capacity=self._capacity,
            lag=load.lag,
        )

    def _not_ready(self) -> str:
        """Return why the engine should get no requests. "" if it is ready."""
        if problem := self._unhealthy or self._no_models or self._problem:
            return problem
        if self._asleep:
            return "it is asleep"
        if not self._models:
            return "it lists no models"
        if self._required and not self._required.intersection(model.name for model in self._models):
            return f"it lists none of the models {', '.join(sorted(self._required))[:200]}"
        return ""


def _all_silent(outcomes: Mapping[Topic, _Outcome]) -> bool:
    """Return True if there was no response to any question."""
    return bool(outcomes) and all(outcome.error for outcome in outcomes.values())
