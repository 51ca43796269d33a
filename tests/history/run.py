"""Runs a history: rounds of calls and faults, each checked in another process while the next one runs."""

import asyncio
import multiprocessing
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from tests.history.check import Verdict, check
from tests.history.clients import Client, Operator, Recorder, WorkerClient
from tests.history.cluster import Cluster, cluster
from tests.history.faults import FAULTS, LOSSY_FAILOVER, Faults
from tests.history.operations import KINDS, Observation, Operation, Round, WorkerCall
from tests.model.calls import UNKNOWN, Release
from tests.model.worker_calls import Drain, Remove
from tests.support.waiting import wait_until

# The names are addresses on this machine at which no program listens.
MODELS: Final = {
    "churning": [f"http://127.0.0.1:1/c{number}" for number in range(3)],
    "steady": [f"http://127.0.0.1:1/s{number}" for number in range(3)],
}
STEADY: Final = ["steady"]
NAMES: Final = [name for names in MODELS.values() for name in names]
CLIENTS_PER_MODEL: Final = 3
ROUND_SECONDS: Final = 1.0
SNAPSHOT_SECONDS: Final = 1.5  # many snapshot intervals, because no route shows what a snapshot contains
KEPT_ROUNDS: Final = 4


class Actor(Protocol):
    """A client, a worker or an operator."""

    async def run(self, rng: random.Random, stop: asyncio.Event) -> None:
        """Make calls until `stop` is set."""


class Violation(AssertionError):
    """The history is not one that a single controller could have given."""


@dataclass
class Summary:
    """The contents of a history."""

    seed: int
    rounds: int = 0
    exact: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    no_worker: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    given_up: int = 0
    seconds: float = 0.0

    def add(self, this: Round, verdict: Verdict) -> None:
        self.rounds += 1
        self.exact += verdict.exact
        self.given_up += len(verdict.given_up)
        for operation in this.operations:
            kind = KINDS[type(operation.call).__name__]
            self.calls[kind] += 1
            self.unknown[kind] += not operation.has_answer
            self.degraded += operation.degraded is not None
            self.no_worker += operation.answer == ""

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()) if number) or "none"

        return "\n".join(
            [
                f"HISTORY_SEED={self.seed}: {self.rounds} rounds in {self.seconds:.0f} s, {self.calls.total()} calls",
                f"calls: {listed(self.calls)}",
                f"faults: {listed(self.faults)}",
                f"unknown outcomes: {listed(self.unknown)}",
                f"dispatches: {self.degraded} from snapshots, {self.no_worker} without a worker",
                f"checked: {len(MODELS)} models in each round, with costs in {self.exact} rounds; "
                f"{self.given_up} searches given up",
            ]
        )


class History:
    """A history of one cluster. Its seed determines the faults, their times and the calls that clients make.

    faults: the names of the faults to choose from.
    """

    def __init__(self, cluster: Cluster, seed: int, faults: Sequence[str]) -> None:
        self.cluster = cluster
        self.summary = Summary(seed)
        self._faults = faults
        self._recorder = Recorder(cluster)
        self._injector = Faults(cluster, self._recorder)
        self._clients = [Client(self._recorder, model) for model in MODELS for _ in range(CLIENTS_PER_MODEL)]
        self._workers = {
            name: WorkerClient(self._recorder, name, model) for model, names in MODELS.items() for name in names
        }
        self._churning = [self._workers[name] for name in NAMES if name not in _steady_names()]
        self._operator = Operator(self._recorder, NAMES, MODELS["churning"])
        self._kept: deque[tuple[Observation, list[Operation]]] = deque(maxlen=KEPT_ROUNDS)
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._checks: deque[tuple[Round, Future[Verdict]]] = deque()

    async def run(self, seconds: float, report: Callable[[str], None] = lambda _: None) -> None:
        """Run rounds for some seconds. Raises Violation."""
        began = time.monotonic()
        try:
            await self._register_all()
            number = 0
            while time.monotonic() < began + seconds:
                rng = random.Random(f"{self.summary.seed}-{number}")
                await self._round(number, rng)
                number += 1
                await self._collect(block=len(self._checks) > 4)
                report(f"round {number}, {time.monotonic() - began:.0f} s")
            while self._checks:
                await self._collect(block=True)
        finally:
            self.summary.seconds = time.monotonic() - began
            await self._injector.close()
            self._pool.shutdown(cancel_futures=True)

    async def _register_all(self) -> None:
        rng = random.Random(self.summary.seed)
        for name in NAMES:
            await self._workers[name].register(rng, checks=name not in _steady_names())
        self._recorder.operations.clear()

    async def _round(self, number: int, rng: random.Random) -> None:
        names = [*FAULTS, LOSSY_FAILOVER]
        weights = [FAULTS[name].weight if name in FAULTS else 1 for name in names]
        weights = [weight * (name in self._faults) for name, weight in zip(names, weights, strict=True)]
        [fault] = rng.choices(names, weights)
        self.summary.faults[fault] += 1
        if fault == LOSSY_FAILOVER:
            await self._lose_data(rng)
            return
        before, failures = await self._observe(), await self.cluster.failures()
        self._kept.append((before, []))
        stop = asyncio.Event()
        actors: list[Actor] = [*self._clients, *self._churning, self._operator]
        tasks = [asyncio.create_task(actor.run(random.Random(f"{rng.random()}"), stop)) for actor in actors]
        try:
            await FAULTS[fault].inject(self._injector, rng, ROUND_SECONDS)
        finally:
            stop.set()
            await asyncio.gather(*tasks)
        await self.cluster.wait_for_recovery()
        operations = self._take_operations()
        await self._wait_for_releases(operations)
        failed = any(number > failures.get(pid, 0) for pid, number in (await self.cluster.failures()).items())
        exact = not failed and all(each.degraded is None for each in operations)
        if fault not in ("none", "SCRIPT FLUSH", "replica killed"):
            _doubt_releases(operations)
        earlier = [each for _, kept in self._kept for each in kept]
        after = await self._observe()
        this = Round(number, fault, MODELS, STEADY, before, after, operations, self._kept[0][0], earlier)
        self._kept[-1][1].extend(each for each in operations if isinstance(each.call, WorkerCall))
        self._fail_if([*self._recorder.problems], this)
        self._checks.append((this, self._pool.submit(check, this, exact)))

    async def _wait_for_releases(self, operations: Sequence[Operation]) -> None:
        """Wait until the replicas have released the leases that ended while Redis was unavailable."""
        ended = {each.call.lease for each in operations if isinstance(each.call, Release) and each.error == "503"}

        async def are_released() -> bool:
            return not ended & (await self._observe()).leases

        try:
            await wait_until(are_released, "leases that ended during an outage are released", timeout=10.0)
        except AssertionError as error:
            raise Violation(f"HISTORY_SEED={self.summary.seed}: {error}: {sorted(ended)}") from error

    async def _observe(self) -> Observation:
        return await self.cluster.observe(NAMES)

    def _take_operations(self) -> list[Operation]:
        operations = list(self._recorder.operations)
        self._recorder.operations.clear()
        self._recorder.lost.clear()
        return operations

    async def _collect(self, block: bool) -> None:
        while self._checks and (block or self._checks[0][1].done()):
            this, future = self._checks.popleft()
            verdict = await asyncio.wrap_future(future)
            self.summary.add(this, verdict)
            self._fail_if(verdict.problems, this)
            block = False

    def _fail_if(self, problems: Sequence[str], this: Round) -> None:
        if problems:
            raise Violation(
                f"HISTORY_SEED={self.summary.seed}, round {this.number} ({this.fault}):\n" + "\n".join(problems)
            )

    # A failover to a copy that lacks the latest calls

    async def _lose_data(self, rng: random.Random) -> None:
        """Fail over to a server that lacks some calls of the operator. The replicas have to repeat them."""
        stop = asyncio.Event()
        heartbeats = [asyncio.create_task(worker.send_heartbeats(rng, stop)) for worker in self._churning]
        try:
            await self._fail_over_to_old_copy(rng)
        finally:
            stop.set()
            await asyncio.gather(*heartbeats)
        await self.cluster.follow()
        missing = _steady_names() - (await self._observe()).workers.keys()
        for name in sorted(missing):
            await self._workers[name].register(rng, checks=False)
        self._take_operations()
        self._kept.clear()

    async def _fail_over_to_old_copy(self, rng: random.Random) -> None:
        await self.cluster.standby.execute("REPLICAOF", "NO", "ONE")
        before = await self._observe()
        draining = {name for name, worker in before.workers.items() if worker.draining}
        early, late = rng.sample([None, *MODELS["steady"]], 2)
        for name in rng.sample(NAMES, len(NAMES) // 2 + 1):
            await self._recorder.call(rng, partial(Drain, name=name, drain=name not in draining))
        if early is not None:
            await self._recorder.call(rng, partial(Remove, name=early))
        await asyncio.sleep(SNAPSHOT_SECONDS)
        before = await self._observe()
        old = self.cluster.master
        old.kill()
        self.cluster.swap()
        expected = _steady_names() & before.workers.keys()
        doubtful: set[str] = set()
        if late is not None:  # no replica may restore it from its snapshot
            removed = await self._recorder.call(rng, partial(Remove, name=late))
            expected -= {late}
            # Redis keeps the marker of a removed worker for as long as a heartbeat, which is short here. A replica that
            # takes longer to notice the loss restores the worker.
            if removed is not True or not await self.cluster.answer_within(0.2, watched_for=0.6):
                doubtful.add(late)
        old.start()
        await wait_until(old.answers, "Redis replies")
        await self.cluster.wait_for_recovery()
        await asyncio.sleep(SNAPSHOT_SECONDS)
        try:
            await wait_until(
                partial(self._is_repaired, before, expected, doubtful), "the replicas have repaired Redis", timeout=5.0
            )
        except AssertionError as error:
            lines = [f"HISTORY_SEED={self.summary.seed}, {LOSSY_FAILOVER}: {error}", f"expected: {expected}"]
            for title, observed in (("before", before), ("after", await self._observe())):
                lines += [f"{title}:", *(f"  {name}: {worker}" for name, worker in sorted(observed.workers.items()))]
            raise Violation("\n".join(lines)) from error

    async def _is_repaired(self, before: Observation, expected: set[str], doubtful: set[str]) -> bool:
        """Return True if Redis has the changes again that the old copy lacked.

        expected: the workers without heartbeats that must be there. The doubtful ones may be there or not.
        The heartbeats in the old copy have expired. A worker with heartbeats that was resumed after the copy was made
        may drain when it is restored.
        """
        after = await self._observe()
        steady = _steady_names()
        return (steady & after.workers.keys()) - doubtful == expected - doubtful and all(
            after.workers[name].draining == worker.draining
            for name, worker in before.workers.items()
            if name in after.workers and (name in steady or worker.draining)
        )


def _steady_names() -> set[str]:
    return {name for model in STEADY for name in MODELS[model]}


def _doubt_releases(operations: Sequence[Operation]) -> None:
    """Remove answers that a second run may have given. Redis keeps no replies for releases."""
    for operation in operations:
        if isinstance(operation.call, Release) and operation.answer is False:
            operation.answer = UNKNOWN


async def run_history(
    directory: Path,
    seconds: float,
    seed: int,
    *,
    replicas: int = 3,
    faults: Sequence[str] = (*FAULTS, LOSSY_FAILOVER),
    source: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Run a history in a directory. Raises Violation.

    source: as in Cluster.
    """
    async with cluster(directory, replicas, source=source) as opened:
        history = History(opened, seed, faults)
        await history.run(seconds, report)
        return history.summary
