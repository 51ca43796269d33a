"""The fleets of benchmarks/longest_scripts.py, and the registry that measures each run of a script."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from controller.domain.capacity import CapacityList, CapacityTarget
from controller.domain.dispatch import DispatchMethod
from controller.domain.worker import MAX_MODELS, Registration, WorkerStatus
from controller.store import keys
from controller.store.connection import StoreClient
from controller.store.registry import (
    Choice,
    RegisterCall,
    Registry,
    Request,
)

Item = TypeVar("Item")

NAMESPACE: Final = "longest"
BATCH: Final = 256  # the limit of a Coalescer
BATCHES: Final = 4  # full batches of a kind
LEASE_MS: Final = 3_600_000


@dataclass(frozen=True)
class Fleet:
    """A kind of fleet.

    models: returns the models of a worker by its number.
    leases: how many leases expire in the cases about these. Fewer where one call cannot end many of them anyway.
    max_workers: the size of a fleet whose workers take long to register.
    """

    title: str
    models: Callable[[int], tuple[str, ...]]
    leases: int = 100_000
    max_workers: int = 10_000_000


def own_set(number: int, i: int) -> tuple[str, ...]:
    return ("m", *(f"m-{i}-{j}" for j in range(number - 1)))


FLEETS: Final = {
    "one": Fleet("one model for all", lambda _: ("m",)),
    "each": Fleet("a model for each", lambda i: (f"m-{i}",)),
    "sets": Fleet("20 sets of 200 models", lambda i: tuple(f"m-{i % 20}-{j}" for j in range(200))),
    "same": Fleet(f"{MAX_MODELS} models for all", lambda _: tuple(f"m-{j}" for j in range(MAX_MODELS))),
    "own": Fleet(f"{MAX_MODELS} models, own sets", partial(own_set, MAX_MODELS), leases=200, max_workers=500),
    "own-16": Fleet("16 models, own sets", partial(own_set, 16), leases=10_000),
}


@dataclass
class Runs:
    """The runs of a script in a case. All times are in milliseconds.

    times: of each run, on the clock.
    processor: the longest processor time of a run, by round.
    """

    times: list[float] = field(default_factory=list)
    processor: dict[int, float] = field(default_factory=dict)


class MeasuredRegistry(Registry):
    """Measures each run of a script. Its calls must not be concurrent."""

    def __init__(self, client: StoreClient) -> None:
        super().__init__(client, NAMESPACE, 86_400.0, 60.0)
        self.last_id = ""  # of the last call, if its script has an id
        self._case = ""
        self._round = 0
        self.runs: defaultdict[tuple[str, str], Runs] = defaultdict(Runs)  # by script and case

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Measure the scripts that run in the context, as a part of a round."""
        self._case = name
        yield
        self._case = ""

    def end_round(self) -> None:
        """Let the next runs belong to another round."""
        self._round += 1

    async def _run(self, script: str, *arguments: str | int) -> Any:
        self.last_id = str(arguments[0]) if arguments else ""
        if not self._case:
            return await super()._run(script, *arguments)
        time_before, processor_before = await self._used()
        result = await super()._run(script, *arguments)
        time, processor = await self._used()
        runs = self.runs[script, self._case]
        runs.times.append(time - time_before)
        runs.processor[self._round] = max(runs.processor.get(self._round, 0.0), processor - processor_before)
        return result

    async def _used(self) -> tuple[float, float]:
        """Return the time on the clock that all scripts took, and the processor time of the server, in milliseconds."""
        info = await self._client.execute_command("INFO", "commandstats", "cpu")
        microseconds = info.get("cmdstat_evalsha", {"usec": 0})["usec"]
        return microseconds / 1000, 1000 * (info["used_cpu_user"] + info["used_cpu_sys"])


@dataclass
class Subject:
    """A fleet on the store. Each group of cases leaves it as it was, except for the loads."""

    client: StoreClient
    registry: MeasuredRegistry
    fleet: Fleet
    size: int
    version: int = 0  # of the configured capacities
    tokens_version: int = 0
    routes_version: int = 0

    @property
    def names(self) -> list[str]:
        return [name(i) for i in range(self.size)]

    @property
    def first(self) -> list[str]:
        """The workers of some full batches."""
        return self.names[: BATCHES * BATCH]

    def registrations(self, names: Iterable[str]) -> list[RegisterCall]:
        return [
            RegisterCall(Registration(each, WorkerStatus(self.fleet.models(number(each)), 1, 0), True, False))
            for each in names
        ]

    def requests(self, lease_ms: int = 0) -> list[Request]:
        """Return a full batch of requests for as many different models as there are."""
        step = max(1, self.size // BATCH)
        return [Request(self.fleet.models(i * step % self.size)[-1], lease_ms) for i in range(BATCH)]

    def requests_of_one_model(self, lease_ms: int = 0) -> list[Request]:
        return [Request(self.fleet.models(0)[0], lease_ms)] * BATCH

    async def register(self, names: Sequence[str]) -> None:
        for some in batches(names):
            await self.registry.register_many(self.registrations(some))

    async def dispatch(self, method: DispatchMethod, requests: Sequence[Request]) -> list[Choice]:
        """Dispatch a batch in one call. Requests that its budget does not suffice for are left out."""
        return [choice for choice in await self.registry.dispatch_some(method, requests) if choice]

    async def grant(self, number: int) -> list[str]:
        """Grant leases for as many different models as there are."""
        leases: list[str] = []
        requests = self.requests(LEASE_MS)
        while len(leases) < number:
            choices = await self.dispatch(DispatchMethod.SHORTEST_QUEUE, requests)
            leases += [choice.lease for choice in choices]
            requests = requests[len(choices) :] + requests[: len(choices)]
        return leases

    async def expire_heartbeats(self, names: Sequence[str]) -> None:
        """Let heartbeats expire now, which the scripts and the sweep have yet to notice."""
        for some in batches(names):
            await self.client.delete(*(keys.heartbeat(NAMESPACE, each) for each in some))
            await self.client.zadd(keys.workers(NAMESPACE), dict.fromkeys(some, 1.0), xx=True)

    async def configure(self, capacities: dict[CapacityTarget, int]) -> None:
        self.version += 1
        await self.registry.restore_capacities(CapacityList(self.version, capacities))


def name(i: int) -> str:
    return f"http://127.1.{i // 250}.{i % 250}:21002"


def number(worker: str) -> int:
    _, _, high, low = worker.removeprefix("http://").removesuffix(":21002").split(".")
    return 250 * int(high) + int(low)


def batches(items: Sequence[Item], size: int = BATCH) -> Iterable[Sequence[Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))
