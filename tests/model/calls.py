"""Calls of clients: how a replica makes each of them, and their effect on the reference model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

from controller.replica import Replica
from controller.store.registry import Request
from tests.model.state import Lost, State
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, texts_of, worker_of, worker_of_lease


class Unknown:
    """The answer of a call that was cancelled or failed. It is not known whether the call ran."""

    def __reduce__(self) -> str:
        return "UNKNOWN"  # there is only one instance, even after pickling


class Degraded(NamedTuple):
    """The answer of a dispatch from a snapshot. The store may have booked the request as well."""

    address: str


UNKNOWN: Final = Unknown()
Answer = Any


@dataclass(frozen=True)
class Call:
    """A call on one replica.

    A call is sent again if its reply is lost, so it may run twice. test_repeated_scripts.py tests the second runs.

    resends_get_same_answer: False if the second run can have a different answer from the first.
    resends_undo_others: True if the second run can undo the effects of other calls that ran in between.
    """

    replica: int
    resends_get_same_answer: ClassVar[bool] = True
    resends_undo_others: ClassVar[bool] = False

    async def make(self, controller: Replica) -> Answer:
        """Make the call on a replica, and return its answer."""
        raise NotImplementedError

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        """Yield each state of the model that the call can lead to.

        Yields nothing if the model cannot give this answer. If the answer is UNKNOWN, yields the states for all
        possible answers.

        leases: leases in the store after the call.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Dispatch(Call):
    """A dispatch.

    lottery: draw the worker, directly in the registry.
    direct: dispatch directly in the registry, without a snapshot for degraded mode.
    """

    model: str
    lease_ms: int = 0
    lottery: bool = False
    direct: bool = False

    async def make(self, controller: Replica) -> Answer:
        if self.lottery or self.direct:
            method = dispatch_lottery if self.lottery else dispatch_shortest_queue
            requests = [Request(self.model, self.lease_ms)]
            [chosen] = texts_of(await controller.breaker.call(method, controller.registry, requests))
            return chosen
        if not self.lease_ms:
            address, age = await controller.dispatcher.dispatch(self.model)
            return address if age is None else Degraded(address)
        (address, lease), age = await controller.dispatcher.dispatch_with_lease(self.model, self.lease_ms / 1000)
        return lease or address if age is None else Degraded(address)

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        serving = state.serving(self.model)
        if answer is not UNKNOWN:
            if answer == "":
                yield from [] if serving else [state]
            elif worker_of(answer) in serving and (worker_of(answer) != answer) == bool(self.lease_ms):
                name = worker_of(answer)
                best = [other for other in serving if not state.workers[other].failing]
                if (name in best or not best) and answer not in state.leases:
                    yield self.booked(state, answer)
        elif self.lease_ms:
            for lease in leases.keys() - state.leases.keys():
                if worker_of_lease(lease) in serving:
                    yield self.booked(state, lease)
        else:
            for name in serving:
                yield self.booked(state, name)

    def lost(self, state: State, leases: dict[str, int]) -> Iterator[State]:
        """Yield the same states for a failed call. The replica will take back its bookings when it reconciles."""
        for after in self.run(state, UNKNOWN, leases):
            new = after.leases.keys() - state.leases.keys()
            before = state.workers
            booked = [name for name, worker in after.workers.items() if worker.booked != before[name].booked]
            drawn = [name for name, worker in after.workers.items() if worker.drawn != before[name].drawn]
            after.unreconciled[self.replica].lost += [
                Lost(chosen, state.clock, chosen in drawn) for chosen in (*new, *booked, *drawn)
            ]
            yield after

    def booked(self, state: State, chosen: str) -> State:
        after = state.copy()
        worker = after.workers[worker_of(chosen)]
        if self.lease_ms:
            worker.leases.add(chosen)
            after.leases[chosen] = state.clock + self.lease_ms
        elif self.lottery:
            worker.drawn += 1
        else:
            worker.book(1)
        return after


@dataclass(frozen=True)
class Release(Call):
    lease: str
    resends_get_same_answer = False

    async def make(self, controller: Replica) -> Answer:
        return await controller.dispatcher.release(self.lease)

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        current = state.leases.get(self.lease, 0) > state.clock
        name = worker_of_lease(self.lease)
        holds = name in state.workers and self.lease in state.workers[name].leases
        allowed = {current and holds} | ({True} if current and self.lease in state.orphans else set())
        if answer is UNKNOWN or answer in allowed:
            after = state.copy()
            after.end_lease(self.lease)
            yield after


@dataclass(frozen=True)
class Renew(Call):
    lease: str

    async def make(self, controller: Replica) -> Answer:
        return await controller.dispatcher.renew(self.lease)

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        name = worker_of_lease(self.lease)
        renewed = (
            state.leases.get(self.lease, 0) > state.clock
            and name in state.workers
            and self.lease in state.workers[name].leases
        )
        if answer is UNKNOWN or answer == renewed:
            after = state.copy()
            if renewed:
                after.leases[self.lease] = state.clock + int(self.lease.split("-")[1])
            yield after


@dataclass(frozen=True)
class ListWorkers(Call):
    async def make(self, controller: Replica) -> Answer:
        workers, age = await controller.membership.list_workers()
        if age is not None:
            return UNKNOWN
        return {worker.name: (worker.status.model_names, worker.draining, worker.failing) for worker in workers}

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        listed = {name: (worker.models, worker.draining, worker.failing) for name, worker in state.workers.items()}
        if answer is UNKNOWN or answer == listed:
            yield state


@dataclass(frozen=True)
class ListModels(Call):
    multimodal: bool | None

    async def make(self, controller: Replica) -> Answer:
        models, age = await controller.dispatcher.list_models(self.multimodal)
        return UNKNOWN if age is not None else models

    def run(self, state: State, answer: Answer, leases: dict[str, int]) -> Iterator[State]:
        models = {
            model
            for worker in state.workers.values()
            if not worker.draining and self.multimodal in (None, worker.multimodal)
            for model in worker.models
        }
        if answer is UNKNOWN or answer == sorted(models):
            yield state
