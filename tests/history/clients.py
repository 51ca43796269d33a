"""Clients, workers and an operator. They call the replicas directly and record each call."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp

from tests.history.cluster import EXPIRATION, Cluster, Replica
from tests.history.operations import Operation
from tests.model.calls import UNKNOWN, Answer, Call, Dispatch, Release
from tests.model.worker_calls import Drain, Heartbeat, Register, Remove

LEASE_MS: Final = 86_400_000  # longer than any history
QUEUES: Final = range(8, 14)  # more requests than leases that a worker can have
MAX_HELD: Final = 2  # leases of one client


class NotSent(Exception):
    """The replica did not take the connection, so the call has certainly not run."""


class Recorder:
    """Makes calls and records them.

    lost: the calls whose connection broke, by replica. The caller adds the time until which they may have run.
    problems: responses that no fault explains.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.operations: list[Operation] = []
        self.lost: list[tuple[Replica, Operation]] = []
        self.problems: list[str] = []

    async def call(self, rng: random.Random, make: Callable[[int], Call]) -> Answer:
        """Make a call on a random replica. Return its answer, or UNKNOWN."""
        while True:
            replica = rng.choice(self.cluster.up)
            try:
                return await self._send(replica, make(replica.number))
            except NotSent:
                await asyncio.sleep(0.01)

    async def _send(self, replica: Replica, call: Call) -> Answer:
        path, body, read = _request(call)
        operation = Operation(call, time.monotonic())
        try:
            async with self.cluster.http.post(replica.url + path, json=body) as response:
                text = await response.text()
                status, headers = response.status, response.headers
        except aiohttp.ClientConnectorError as error:
            raise NotSent from error
        except TimeoutError:
            self.problems.append(f"no response within 30 s: {operation}")
            self.operations.append(operation)
            return UNKNOWN
        except (aiohttp.ClientError, OSError) as error:
            operation.error = type(error).__name__
            self.operations.append(operation)
            self.lost.append((replica, operation))
            return UNKNOWN
        ended = time.monotonic()
        self.operations.append(operation)
        if status == 503 and not isinstance(call, Dispatch):
            operation.error = "503"
            return UNKNOWN
        if status != 200:
            self.problems.append(f"{status} {text}: {operation}")
            return UNKNOWN
        operation.end, operation.answer = ended, read(json.loads(text))
        if "x-controller-degraded" in headers:
            operation.degraded = float(headers["x-controller-degraded"])
        elif "x-controller-error" in headers:
            operation.degraded, operation.error = 0.0, headers["x-controller-error"]
        return operation.answer


def _request(call: Call) -> tuple[str, dict[str, Any], Callable[[Any], Answer]]:
    """Return the path and the body of a request, and a function that reads the answer from the response."""
    match call:
        case Dispatch(model=model, lease_ms=lease_ms):
            lease = {"lease": lease_ms / 1000} if lease_ms else {}
            return "/get_worker_address", {"model": model, **lease}, lambda body: body.get("lease") or body["address"]
        case Release(lease=lease_name):
            return "/release_worker", {"lease": lease_name}, lambda body: body["released"]
        case Heartbeat(name=name, queue=queue):
            return "/receive_heart_beat", {"worker_name": name, "queue_length": queue}, lambda body: body["exist"]
        case Drain(name=name, drain=drain):
            return "/drain_worker" if drain else "/resume_worker", {"worker_name": name}, lambda body: body["exist"]
        case Remove(name=name):
            return "/remove_worker", {"worker_name": name}, lambda body: body["exist"]
        case Register(name=name):
            status = {"model_names": call.models, "speed": call.speed, "queue_length": call.queue}
            registration = {"worker_name": name, "check_heart_beat": call.checks, "worker_status": status}
            return "/register_worker", registration, lambda _: None
    raise AssertionError(f"no route for {call}")


class Client:
    """Dispatches requests of one model, with leases and without, and releases the leases."""

    def __init__(self, recorder: Recorder, model: str) -> None:
        self._recorder = recorder
        self._model = model
        self._held: list[str] = []
        self._released = ""

    async def run(self, rng: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._step(rng)
            await asyncio.sleep(rng.choice([0.0, 0.01, 0.02, 0.04]))

    async def _step(self, rng: random.Random) -> None:
        if self._released and rng.random() < 0.05:
            lease = self._released
            await self._recorder.call(rng, lambda replica: Release(replica, lease))
        elif self._held and (len(self._held) == MAX_HELD or rng.random() < 0.4):
            self._released = lease = self._held.pop(rng.randrange(len(self._held)))
            await self._recorder.call(rng, lambda replica: Release(replica, lease))
        else:
            lease_ms = rng.choice([0, LEASE_MS])
            answer = await self._recorder.call(rng, lambda replica: Dispatch(replica, self._model, lease_ms))
            if answer is not UNKNOWN and "@" in answer:
                self._held.append(answer)


class WorkerClient:
    """Registers a worker, sends heartbeats, restarts and sometimes sends nothing until the worker has expired."""

    def __init__(self, recorder: Recorder, name: str, model: str) -> None:
        self._recorder = recorder
        self._name = name
        self._model = model
        self._silent_until = 0.0

    async def run(self, rng: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if time.monotonic() >= self._silent_until:
                await self._step(rng)
            await _sleep(rng.uniform(0.05, 0.25), stop)

    async def _step(self, rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.1:
            self._silent_until = time.monotonic() + EXPIRATION * rng.uniform(0.9, 1.6)
        elif kind < 0.15 or await self.heartbeat(rng) is False:
            await self.register(rng)

    async def send_heartbeats(self, rng: random.Random, stop: asyncio.Event) -> None:
        """Keep the worker registered."""
        while not stop.is_set():
            if await self.heartbeat(rng) is False:
                await self.register(rng)
            await _sleep(0.2, stop)

    async def heartbeat(self, rng: random.Random) -> Answer:
        queue = rng.choice(QUEUES)
        return await self._recorder.call(
            rng, lambda replica: Heartbeat(replica, self._name, queue, EXPIRATION, in_flight=False)
        )

    async def register(self, rng: random.Random, checks: bool = True) -> None:
        queue, speed = (rng.choice(QUEUES), rng.choice([1, 1, 2])) if checks else (0, 1)
        await self._recorder.call(
            rng,
            lambda replica: Register(
                replica, self._name, (self._model,), queue, checks, False, EXPIRATION, speed=speed
            ),
        )


class Operator:
    """Drains, resumes and removes workers."""

    def __init__(self, recorder: Recorder, names: Sequence[str], removable: Sequence[str]) -> None:
        self._recorder = recorder
        self._names = names
        self._removable = removable

    async def run(self, rng: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.step(rng)
            await _sleep(rng.uniform(0.05, 0.25), stop)

    async def step(self, rng: random.Random) -> None:
        name = rng.choice(self._names)
        kind = rng.random()
        if kind < 0.15 and name in self._removable:
            await self._recorder.call(rng, lambda replica: Remove(replica, name))
        else:
            await self._recorder.call(rng, lambda replica: Drain(replica, name, drain=kind < 0.42))


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
