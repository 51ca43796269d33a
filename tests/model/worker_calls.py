"""Calls of workers, operators and background tasks: how a replica makes each, and their effect on the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from controller.domain.worker import WorkerStatus
from controller.replica import Replica
from controller.store.registry import Report
from tests.model.calls import UNKNOWN, Answer, Call
from tests.model.state import State, Worker
from tests.support.samples import OPERATOR
from tests.support.samples import worker as registration_of


@dataclass(frozen=True)
class Register(Call):
    """A registration that the worker sends itself."""

    name: str
    models: tuple[str, ...]
    queue: int
    checks: bool
    multimodal: bool
    expiration: float
    speed: float = 1
    resends_undo_others = True

    async def make(self, controller: Replica) -> Answer:
        await controller.membership.register(
            self.name,
            check_heart_beat=self.checks,
            status=WorkerStatus(self.models, self.speed, self.queue),
            multimodal=self.multimodal,
            caller=OPERATOR,
        )

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        after = state.copy()
        after.removed.discard(self.name)
        draining = after.begin_incarnation(self.name)
        for is_draining in (True, False) if draining is None else (draining,):
            expires_at = state.now + self.expiration if self.checks else inf
            other = after.copy()
            other.workers[self.name] = Worker(self.models, self.multimodal, self.checks, expires_at, is_draining)
            yield other


@dataclass(frozen=True)
class Probe(Call):
    """A refresh: registers a worker again with its current status, unless its registration has changed meanwhile."""

    name: str
    models: tuple[str, ...]
    registration: int
    checks: bool
    multimodal: bool
    expiration: float
    in_flight: bool
    resends_get_same_answer = False

    async def make(self, controller: Replica) -> Answer:
        registration = registration_of(
            self.name, *self.models, check_heart_beat=self.checks, multimodal=self.multimodal
        )
        return await controller.breaker.call(controller.registry.refresh, registration, self.registration)

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        is_current = self.name in state.workers and state.workers[self.name].registration == self.registration
        if answer is not UNKNOWN and answer != is_current:
            return
        after = state.copy()
        if is_current:
            worker = after.workers[self.name]
            worker.models, worker.registration = self.models, None
            worker.expires_at = state.now + self.expiration if self.checks else inf
            worker.report(self.in_flight)
            worker.clear_failure()
        yield after


@dataclass(frozen=True)
class Heartbeat(Call):
    """A heartbeat, or with of_polls an answer to a status poll."""

    name: str
    queue: int
    expiration: float
    in_flight: bool
    of_polls: bool = False
    resends_undo_others = True

    async def make(self, controller: Replica) -> Answer:
        if not self.of_polls:
            return await controller.membership.heartbeat(self.name, self.queue)
        reports = [Report(self.name, self.queue)]
        [known] = await controller.breaker.call(controller.registry.take_poll_answers, reports)
        return known

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        if answer is not UNKNOWN and answer != (self.name in state.workers):
            return
        after = state.copy()
        if self.name in state.workers:
            worker = after.workers[self.name]
            worker.report(self.in_flight)
            if self.of_polls:
                worker.polled = True
                worker.clear_failure()
            else:
                worker.failing = ""
                worker.expires_at = state.now + self.expiration if worker.checks else inf
        yield after


@dataclass(frozen=True)
class ReportFailure(Call):
    name: str
    of_polls: bool = False
    resends_undo_others = True

    async def make(self, controller: Replica) -> Answer:
        if not self.of_polls:
            return await controller.dispatcher.report_failure(self.name)
        return await controller.breaker.call(controller.registry.report_failure, self.name, of_polls=True)

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        worker = state.workers.get(self.name)
        ignored = worker is not None and self.of_polls and not worker.polled
        if answer is not UNKNOWN and answer is not (None if ignored else worker is not None):
            return
        after = state.copy()
        if worker is not None and not ignored:
            failing = "polls" if self.of_polls and worker.failing != "request" else "request"
            after.workers[self.name].failing = failing
        yield after


@dataclass(frozen=True)
class Drain(Call):
    name: str
    drain: bool
    resends_undo_others = True

    async def make(self, controller: Replica) -> Answer:
        return await controller.membership.drain(self.name, self.drain, caller=OPERATOR)

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        if answer is not UNKNOWN and answer != (self.name in state.workers):
            return
        after = state.copy()
        if self.name in state.workers:
            after.workers[self.name].draining = self.drain
        if not self.drain:
            after.drained.pop(self.name, None)
        yield after


@dataclass(frozen=True)
class Remove(Call):
    """A removal by an operator. With a registration, a removal by a refresh that got no answer from the worker."""

    name: str
    registration: int | None = None

    async def make(self, controller: Replica) -> Answer:
        if self.registration is None:
            return await controller.membership.remove(self.name, caller=OPERATOR)
        return await controller.breaker.call(controller.registry.remove, self.name, self.registration)

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        worker = state.workers.get(self.name)
        removes = worker is not None and self.registration in (None, worker.registration)
        if answer is not UNKNOWN and answer != removes:
            return
        after = state.copy()
        if self.registration is None:
            after.drained.pop(self.name, None)
        if worker is not None and removes:
            del after.workers[self.name]
            after.removed.add(self.name)
            if worker.draining and self.registration is not None:
                after.drained[self.name] = state.now
        yield after


@dataclass(frozen=True)
class Sweep(Call):
    """A sweep. Its answer contains the names of expired workers."""

    resends_get_same_answer = False

    async def make(self, controller: Replica) -> Answer:
        return await controller.breaker.force_call(controller.registry.sweep, 0.001)

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        if answer is UNKNOWN or not state.workers.keys() & set(answer):
            yield state
