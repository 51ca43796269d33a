"""The registry of workers in Redis: one method an operation, one Lua script a method, the same name for both."""

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeVar

from redis.asyncio import RedisCluster
from redis.commands.core import AsyncScript
from redis.exceptions import NoPermissionError

from controller.domain.clock import ClockReading
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import InvalidInput, StoreIncompatible, StoreRejection, StoreUnavailable
from controller.domain.worker import Registration, Worker, WorkerStatus
from controller.store import keys, scripts
from controller.store.calls import StoreCalls
from controller.store.connection import StoreClient, close, reconnect
from controller.store.failures import FAILURES, store_error
from controller.store.refresh_lock import RefreshLock
from controller.store.settlement import Settlement, split

Item = TypeVar("Item")

SCHEMA: Final = "4"  # of the keys; another number for a layout that this one's scripts cannot work with
NOT_ALIVE: Final = 0  # as the number of a registration: of a worker that has none

_REPLY_KEPT_MS: Final = 6_000
_MAX_UNANSWERED: Final = 1_000
_PAGE: Final = 250
_LISTINGS: Final = 3  # to try, when the store loses its memory in the middle of one


def _new_id() -> str:
    return secrets.token_hex(12)


class Request(NamedTuple):
    """A request for a worker. lease_ms is for how many milliseconds a lease is wanted, 0 for none."""

    model: str
    lease_ms: int = 0


class Report(NamedTuple):
    """What a worker said of its queue, and when, on this replica's monotonic clock; None is now."""

    name: str
    queue_length: int
    written_at: float | None = None


@dataclass(frozen=True, slots=True)
class RegisterCall:
    """One call of Registry.register(), whose arguments these are.

    repeatable_for: for how many seconds the call may be repeated with the same registration and changes nothing more.
    """

    registration: Registration
    only_if: int | None = None
    expires_in: float | None = None
    written_at: float | None = None
    draining: bool = False
    polled: bool = False
    repeatable_for: float = 0.0


class FailureCall(NamedTuple):
    """One call of Registry.report_failure(), whose arguments these are."""

    name: str
    of_polls: bool = False


class DrainCall(NamedTuple):
    """One call of Registry.drain(), whose arguments these are."""

    name: str
    drain: bool = True


class RemoveCall(NamedTuple):
    """One call of Registry.remove(), whose arguments these are."""

    name: str
    only_if: int | None = None


class WorkerList(NamedTuple):
    """All live workers, in order of name.

    sequence counts registrations, requested dispatches, drains and removals; epoch the name of the store's memory:
    less of the one, or another of the other, and the store has forgotten what it knew before. clock is a reading of the
    store's clock.
    """

    workers: list[Worker]
    sequence: int
    epoch: str
    clock: ClockReading


class Registry:
    """The workers of one namespace, as any number of replicas see them at once.

    heartbeat_expiration is in seconds; deadline too: see StoreCalls. booking_decay and booking_delay are as in the
    settings. draw returns a number from the uniform distribution on [0, 1); the tests pass their own.

    Every method raises StoreUnavailable when the store does not answer or cannot serve. Whether the operation took
    place is then unknown, and it may be repeated. ReplicaBusy means that the call was not sent. StoreRejection is a
    mistake: of ours, or of whoever put other things under our keys.
    """

    def __init__(
        self,
        client: StoreClient,
        namespace: str,
        heartbeat_expiration: float,
        deadline: float = 5.0,
        booking_decay: bool = True,
        booking_delay: float = 0.2,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._keys = [keys.namespace(namespace)]
        self._expiration_ms = max(1, round(heartbeat_expiration * 1000))
        self._fades = int(booking_decay)
        self._unseen_for_ms = round(booking_delay * 1000)
        self._draw = draw
        self._calls = StoreCalls(self._ping, deadline)
        # Calls that chose and booked, maybe: their answers never came. settle() will tell the store.
        self._unanswered: deque[str] = deque(maxlen=_MAX_UNANSWERED)
        # Answers are kept for a repeated call, and for settle(): longer than a replica needs to find the store again.
        self._reply_kept_ms = max(_REPLY_KEPT_MS, round(6_000 * deadline))
        self._scripts: dict[str, AsyncScript] = {
            name: client.register_script(scripts.source(name)) for name in scripts.names()
        }

    async def register(
        self,
        registration: Registration,
        only_if: int | None = None,
        expires_in: float | None = None,
        written_at: float | None = None,
        draining: bool = False,
        polled: bool = False,
    ) -> bool | None:
        """Register a worker, or register it again; it is alive from now on.

        only_if is the number of a registration: the call does nothing, and returns None, when the worker has
        registered again since or is gone; with NOT_ALIVE, when it is alive or was removed of late. Otherwise returns
        whether the worker is new. expires_in is for a worker whose heartbeat was not now, in seconds; written_at is as
        in Report. One that was draining drains on; with draining, so does this one. polled is for one that has
        answered a poll.
        """
        call = RegisterCall(registration, only_if, expires_in, written_at, draining, polled)
        return (await self.register_many([call]))[0]

    async def register_many(self, calls: Sequence[RegisterCall]) -> list[bool | None]:
        """As register(), for any number of workers."""
        results = await self._run_each("register", lambda: (self._fades, self._unseen_for_ms), calls, self._registering)
        return [None if result == -1 else bool(result) for result in results]

    def _registering(self, call: RegisterCall) -> Sequence[str | int]:
        registration, status = call.registration, call.registration.status
        expiration_ms = self._expiration_ms if call.expires_in is None else max(1, round(call.expires_in * 1000))
        return (
            registration.request_id,
            round(1000 * call.repeatable_for) + self._reply_kept_ms,
            registration.name,
            expiration_ms if registration.check_heart_beat else "",
            repr(status.speed),
            status.queue_length,
            int(registration.multimodal),
            "" if call.only_if is None else call.only_if,
            json.dumps(status.model_names, ensure_ascii=False),
            digest_of(status.model_names),
            "" if status.capacity is None else status.capacity,
            _age_ms(call.written_at),
            int(call.draining),
            int(call.polled),
        )

    async def heartbeat(self, reports: Sequence[Report], *, of_polls: bool = False) -> list[bool]:
        """Take heartbeats; for each, whether the worker is registered.

        of_polls is for answers to polls: they tell of queues just so, but prolong no life.
        """
        expiration = "" if of_polls else self._expiration_ms
        known = await self._run_each(
            "heartbeat",
            lambda: (*self._repeatable(), expiration, self._fades, self._unseen_for_ms),
            reports,
            lambda report: (report.name, report.queue_length, _age_ms(report.written_at)),
        )
        return [bool(each) for each in known]

    async def take_poll_answers(self, reports: Sequence[Report]) -> list[bool]:
        """Take answers to polls; for each, whether the worker is registered."""
        return await self.heartbeat(reports, of_polls=True)

    async def dispatch_shortest_queue(self, requests: Sequence[Request]) -> list[str]:
        """Choose and book a worker for each request: its name, or with a lease, that; see worker_of().

        "" where a model has no live worker.
        """
        return await self._dispatch_all(DispatchMethod.SHORTEST_QUEUE, requests)

    async def dispatch_lottery(self, requests: Sequence[Request]) -> list[str]:
        """Draw a worker for each request, in proportion to speed; as dispatch_shortest_queue()."""
        return await self._dispatch_all(DispatchMethod.LOTTERY, requests)

    async def dispatch_some(self, method: DispatchMethod, requests: Sequence[Request]) -> list[str | None]:
        """As dispatch_shortest_queue() or dispatch_lottery(), in one call of bounded work.

        None for each request that is left: ask again.
        """
        return await self._dispatch(method, _new_id(), requests)

    async def _dispatch_all(self, method: DispatchMethod, requests: Sequence[Request]) -> list[str]:
        request_ids = [_new_id()]
        answers = await self._dispatch(method, request_ids[0], requests)
        try:
            while left := [i for i, answer in enumerate(answers) if answer is None]:
                request_ids.append(_new_id())
                more = await self._dispatch(method, request_ids[-1], [requests[i] for i in left])
                for i, answer in zip(left, more, strict=True):
                    answers[i] = answer
        except BaseException:  # cancelled, too
            self._unanswered.extend(request_ids[:-1])  # nobody gets those answers either
            raise
        return [answer or "" for answer in answers]

    async def _dispatch(self, method: DispatchMethod, request_id: str, requests: Sequence[Request]) -> list[str | None]:
        """Run a dispatch script. When it fails, what it has booked is to be taken back."""
        arguments: Iterable[str | int]
        if method is DispatchMethod.SHORTEST_QUEUE:
            script = "dispatch_shortest_queue"
            arguments = (argument for request in requests for argument in request)
        else:
            script = "dispatch_lottery"
            arguments = (a for model, lease_ms in requests for a in (model, lease_ms, repr(self._draw())))
        try:
            answers: list[str | None] = await self._run(
                script, request_id, self._reply_kept_ms, self._fades, *arguments
            )
        except BaseException:  # cancelled, too
            self._unanswered.append(request_id)
            raise
        return answers

    async def release(self, leases: Sequence[str]) -> list[bool]:
        """End leases; for each, whether it was out."""
        ended = await self._run_each("release", lambda: (self._fades,), leases, lambda lease: (lease,))
        return [bool(each) for each in ended]

    async def renew(self, lease: str) -> bool:
        """As renew_many(), for one lease."""
        return (await self.renew_many([lease]))[0]

    async def renew_many(self, leases: Sequence[str]) -> list[bool]:
        """Renew leases for as long as they were granted for, from now on.

        Returns for each whether it is active and its worker is alive.
        """
        return [bool(renewed) for renewed in await self._run("renew", *leases)]

    async def drain(self, name: str, drain: bool = True) -> bool:
        """Send a worker no new requests, or send it some again; whether there is such a live one."""
        return (await self.drain_many([DrainCall(name, drain)]))[0]

    async def drain_many(self, calls: Sequence[DrainCall]) -> list[bool]:
        """As drain(), for any number of workers."""
        common = lambda: (*self._repeatable(), self._fades)  # noqa: E731
        results = await self._run_each("drain", common, calls, lambda call: (call.name, int(call.drain)))
        return [bool(result) for result in results]

    async def report_failure(self, name: str, *, of_polls: bool = False) -> bool | None:
        """Put a worker behind all others until its next heartbeat; whether there is such a live one.

        of_polls is for one that does not answer polls: an answer puts it back, too. One that has never answered any
        stays where it is, and None is returned.
        """
        return (await self.report_failure_many([FailureCall(name, of_polls)]))[0]

    async def report_failure_many(self, calls: Sequence[FailureCall]) -> list[bool | None]:
        """As report_failure(), for any number of workers."""
        results = await self._run_each(
            "report_failure",
            lambda: (*self._repeatable(), self._fades),
            calls,
            lambda call: (call.name, "polls" if call.of_polls else "request"),
        )
        return [None if result == -1 else bool(result) for result in results]

    async def meet(self, replica: str, stay: float) -> list[str]:
        """Tell the other replicas that this one is there, for `stay` seconds; the ids of all that are there."""
        replicas: list[str] = await self._run("meet", replica, round(stay * 1000))
        return replicas

    async def take_duty(
        self, duty: str, replica: str, hold: float, *, longest: float = 86_400.0, urgent: bool = False
    ) -> tuple[bool, str]:
        """Take what one replica has to do now and then for all, for `hold` seconds.

        Returns whether this one has it, and what was told when it was done last, or "". urgent: also if it is not due.
        longest is the most that can pass, in seconds, until it is due again.
        """
        milliseconds = round(hold * 1000), int(urgent), round(longest * 1000)
        taken, told = await self._run("take_duty", duty, replica, *milliseconds)
        return bool(taken), told

    async def end_duty(self, duty: str, replica: str, due_in: float, told: str, remembered: float) -> bool:
        """Give it back: it is due again in `due_in` seconds; `told`, "" if it was not done, is remembered.

        Returns whether this replica still had it.
        """
        return bool(await self._run("end_duty", duty, replica, round(due_in * 1000), told, round(remembered * 1000)))

    async def settle(self, settlement: Settlement) -> None:
        """Tell the store what it cannot know of dispatches: see Settlement. Repeating it settles nothing twice."""
        items: list[tuple[str, str | int]]
        items = [*((request_id, "") for request_id in settlement.unanswered), *settlement.bookings.items()]
        done = 0
        while True:  # the script settles as many items as its budget allows
            done += await self._run(
                "settle",
                f"{settlement.request_id}-{done}",  # the same ids in the same order, when all of it is repeated
                max(self._reply_kept_ms, self._expiration_ms),  # it may be repeated after a long outage
                settlement.sequence,
                self._fades,
                *(argument for item in items[done:] for argument in item),
            )
            if done >= len(items):
                return

    def settlements(self, bookings: Mapping[str, int], sequence: int) -> list[Settlement]:
        """What to settle: the calls that had no answer so far, which are then forgotten here, and the bookings.

        None if there are neither and sequence, which is as in WorkerList, is 0.
        """
        unanswered = list(self._unanswered)
        self._unanswered.clear()
        return split(bookings, unanswered, sequence)

    async def remove(self, name: str, only_if: int | None = None) -> bool:
        """As remove_many(), for one worker."""
        return (await self.remove_many([RemoveCall(name, only_if)]))[0]

    async def remove_many(self, calls: Sequence[RemoveCall]) -> list[bool]:
        """Remove workers. Returns for each whether it was alive and is removed."""
        results = await self._run_each(
            "remove",
            lambda: (*self._repeatable(), self._expiration_ms),
            calls,
            lambda call: (call.name, "" if call.only_if is None else call.only_if),
        )
        return [bool(result) for result in results]

    async def list_workers(self) -> WorkerList:
        """All live workers. One that comes or goes meanwhile may or may not be among them."""
        for _ in range(_LISTINGS):
            found: dict[str, Worker] = {}
            sent_at = time.monotonic()
            place, sequence, epoch, time_ms, workers = await self._run("list_workers", "0", _PAGE, self._fades)
            clock = ClockReading.between(sent_at, time_ms / 1000, time.monotonic())
            first = sequence, epoch
            found.update((fields[0], _worker(fields)) for fields in workers)
            while place != "0" and epoch == first[1] and sequence >= first[0]:
                place, sequence, epoch, _, workers = await self._run("list_workers", place, _PAGE, self._fades)
                found.update((fields[0], _worker(fields)) for fields in workers)
            if epoch == first[1] and sequence >= first[0]:
                return WorkerList([found[name] for name in sorted(found)], *first, clock)
        raise StoreUnavailable("The store forgets what it knows again and again: its workers cannot be listed.")

    async def list_models(self, multimodal: bool | None = None) -> list[str]:
        """The models of all live workers, of the multimodal ones (True) or of the others (False), sorted."""
        return await (self._list_all_models() if multimodal is None else self.list_models_by_kind(multimodal))

    async def _list_all_models(self) -> list[str]:
        models: set[str] = set()
        cursor = "0"
        unfinished: list[str] = []
        while True:
            cursor, found, unfinished = await self._run("list_models", cursor, _PAGE, *unfinished)
            models.update(found)
            if cursor == "0":
                if not unfinished:
                    return sorted(models)
                cursor = ""  # look only at the unfinished ones

    async def list_models_by_kind(self, multimodal: bool) -> list[str]:
        """The models of all live workers that are multimodal, or of those that are not, sorted."""
        lists: set[str] = set()
        cursor = "0"
        while True:
            cursor, found = await self._run("list_models_by_kind", cursor, _PAGE, int(multimodal))
            lists.update(found)
            if cursor == "0":
                return sorted({model for models in lists for model in json.loads(models)})

    async def correct_heartbeats(self, expected: Mapping[str, float]) -> int:
        """Correct the time that heartbeats have left, after the store's clock was set.

        expected is the seconds that each worker's heartbeat should have left, by its name. Returns how many were
        corrected.
        """
        corrected = 0
        items = list(expected.items())
        for first in range(0, len(items), _PAGE):
            page = items[first : first + _PAGE]
            arguments = (argument for name, left in page for argument in (name, max(1, round(left * 1000))))
            corrected += await self._run("correct_heartbeats", self._expiration_ms, *arguments)
        return corrected

    async def shorten_leases(self) -> None:
        """Shorten leases that would last longer than they can, after the store's clock was set back."""
        cursor = "0"
        while True:
            cursor = await self._run("shorten_leases", cursor, _PAGE)
            if cursor == "0":
                return

    async def sweep(self, interval: float) -> list[str]:
        """Tidy away lapsed workers, unless some replica did within `interval` seconds; their names."""
        removed: list[str] = []
        unfinished = True
        while unfinished:
            unfinished, some = await self._run("sweep", max(1, round(interval * 1000)), self._fades)
            removed += some
        return removed

    def refresh_lock(self, timeout: float) -> RefreshLock:
        """The lock that lets one replica at a time ask all workers for their status; see RefreshLock."""
        return RefreshLock(self._client, keys.refresh(self._namespace), timeout, self._calls)

    async def check(self) -> None:
        """Raise StoreUnavailable, saying why, unless the store takes writes and is set up to keep them.

        Raises StoreIncompatible if another version of this program keeps its registry there.
        """
        found = await self._run("check", SCHEMA, secrets.token_hex(8))
        if found != SCHEMA:
            raise StoreIncompatible(
                f"The registry in the store is laid out in version {found}, this program works with version {SCHEMA}. "
                "Nothing was touched. Run the version that the other replicas run, or give this one a --namespace of "
                f"its own; once no replica of the other is left, deleting the key "
                f"{keys.schema(self._namespace)} and all others that begin with "
                f"{keys.namespace(self._namespace)} lets this one begin anew, and the workers register by themselves."
            )
        try:
            policy = await self._eviction_policy()
        except FAILURES as error:
            if not (isinstance(error, NoPermissionError) or "unknown command" in str(error)):
                raise store_error(error) from error
            return  # it does not tell: an ACL without INFO, or fakeredis
        if policy != "noeviction":
            raise StoreUnavailable(
                f"The store's maxmemory-policy is {policy}: when its memory is full it drops heartbeats, and workers "
                "with them. Set it to noeviction."
            )

    async def _eviction_policy(self) -> str:
        info = await self._calls.run(lambda: self._client.info("memory", **self._own_node()))
        return str(info.get("maxmemory_policy", "noeviction"))

    async def _ping(self) -> object:
        return await self._client.ping(**self._own_node())

    def _own_node(self) -> dict[str, Any]:
        """The argument that sends a command to the node of a Cluster that has our keys."""
        if isinstance(self._client, RedisCluster):
            return {"target_nodes": self._client.get_node_from_key(self._keys[0])}
        return {}

    async def reconnect(self) -> None:
        """Drop idle connections, so that the next call finds out anew where the master is."""
        with contextlib.suppress(*FAILURES):  # such as a farewell that a hung server does not answer
            async with asyncio.timeout(self._calls.deadline):
                await reconnect(self._client)

    async def close(self) -> None:
        """Close all connections."""
        await self._calls.close()
        await close(self._client)

    def _repeatable(self) -> tuple[str, int]:
        """The id of a call, and for how many milliseconds its answer is kept: a repeated call gets the same."""
        return _new_id(), self._reply_kept_ms

    async def _run_each(
        self,
        script: str,
        common: Callable[[], Sequence[str | int]],
        items: Sequence[Item],
        arguments: Callable[[Item], Sequence[str | int]],
    ) -> list[Any]:
        """Run a script for items, again and again until it has got to all of them.

        `common` returns the arguments before those of the items. Each run does as many items as its budget allows, so
        other calls come in between.
        """
        results: list[Any] = []
        while len(results) < len(items):
            left = (argument for item in items[len(results) :] for argument in arguments(item))
            results += await self._run(script, *common(), *left)
        return results

    async def _run(self, script: str, *arguments: str | int) -> Any:
        try:
            return await self._calls.run(lambda: self._scripts[script](keys=self._keys, args=arguments))
        except FAILURES as error:
            raise store_error(error) from error


def worker_of(chosen: str) -> str:
    """The worker that a dispatch has chosen, by what it answered: a worker's name, or a lease."""
    return chosen if chosen[:1] == "h" else chosen.partition("@")[2]


@lru_cache(maxsize=1_000)
def digest_of(models: tuple[str, ...]) -> str:
    """A name for a set of models; "" where there are fewer than two."""
    if len(models) < 2:
        return ""
    return blake2b(json.dumps(sorted(models)).encode(), digest_size=12).hexdigest()


def _age_ms(written_at: float | None) -> int:
    return 0 if written_at is None else max(0, int((time.monotonic() - written_at) * 1000))


def _worker(fields: Sequence[Any]) -> Worker:
    name, models, speed, queue_length, multimodal, check_heart_beat, registration, age_ms, expires_in_ms = fields[:9]
    leased, capacity, draining, failing, polled, reported, booked = fields[9:]
    try:
        status = WorkerStatus(
            tuple(json.loads(models)), _number(speed), int(queue_length), int(capacity) if capacity else None
        )
    except (ValueError, TypeError, InvalidInput) as error:
        raise StoreRejection(f"The store holds a worker {name!r} that is not of our making: {error}.") from error
    return Worker(
        name=name,
        status=status,
        check_heart_beat=check_heart_beat == "1",
        multimodal=multimodal == "1",
        registration=int(registration),
        heartbeat_age=age_ms / 1000,
        expires_in=None if expires_in_ms < 0 else expires_in_ms / 1000,
        leased=leased,
        draining=draining == "1",
        failing=failing,
        polled=polled == "1",
        reported=reported,
        booked=booked,
    )


def _number(text: str) -> float:
    """A number as the worker wrote it: 1 stays 1 and does not become 1.0."""
    return float(text) if "." in text or "e" in text else int(text)
