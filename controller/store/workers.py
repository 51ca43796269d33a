"""The workers in Redis: registrations, heartbeats, draining, failures and removal."""

import json
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

from controller.domain.worker import Registration
from controller.store.runner import ScriptRunner

_CORRECTED_AT_ONCE: Final = 100


class Report(NamedTuple):
    """A queue length that a worker reported.

    queue_length: None if it is unknown. Then only the worker's heartbeat is renewed.
    written_at: time of the report on this replica's monotonic clock. None means now.
    """

    name: str
    queue_length: int | None
    written_at: float | None = None


class Refusal(Enum):
    """The reason why a worker was not registered. The values are those of `register.lua`."""

    WORKER_LIMIT = -1  # max_workers others are alive
    TOKEN_WORKER_LIMIT = -2  # the token has registered max_workers_per_token others


class RegisterCall(NamedTuple):
    """The arguments of one WorkerStore.register()."""

    registration: Registration
    repeatable_for: float = 0.0


class FailureCall(NamedTuple):
    """The arguments of one WorkerStore.report_failure()."""

    name: str
    of_polls: bool = False


class DrainCall(NamedTuple):
    """The arguments of one WorkerStore.drain().

    by, reason: who does it and why, for the event.
    by_agent: the agent of an engine does it. It resumes only an engine that an agent drained.
    """

    name: str
    drain: bool = True
    by: str = ""
    reason: str = ""
    by_agent: bool = False


class RemoveCall(NamedTuple):
    """The arguments of one WorkerStore.remove().

    by, reason: as in DrainCall.
    """

    name: str
    only_if: int | None = None
    by: str = ""
    reason: str = ""


class WorkerStore(ScriptRunner):
    """The workers of one namespace."""

    async def register(self, registration: Registration, repeatable_for: float = 0.0) -> bool | Refusal:
        """Register a worker, which is alive from now on. Its load is the queue length that it reports.

        Returns True if the worker was not alive before. If a Refusal is returned, nothing was done.

        repeatable_for: seconds for which a repeated call with the same registration changes nothing, at least.
        """
        return (await self.register_many([RegisterCall(registration, repeatable_for)]))[0]

    async def register_many(self, calls: Sequence[RegisterCall]) -> list[bool | Refusal]:
        """Register any number of workers, as register() does."""
        results = await self._run_each(
            "register",
            lambda: (self._decays, self._max_workers, self._max_workers_per_token),
            calls,
            lambda call: self._registration_arguments(call.registration, repeatable_for=call.repeatable_for),
            weight=lambda call: max(1, len(call.registration.status.model_names)),
        )
        return [Refusal(result) if result < 0 else bool(result) for result in results]

    async def refresh(
        self,
        registration: Registration,
        only_if: int,
        *,
        expires_in: float | None = None,
        written_at: float | None = None,
    ) -> bool:
        """Update a registered worker, whose leases stay active. Return False if nothing was done.

        only_if: number of a registration. Nothing is done if the worker has registered again since, or is gone.
        expires_in: seconds until its heartbeat expires. None for a whole heartbeat expiration from now.
        written_at: as in Report.
        """
        arguments = self._registration_arguments(registration, expires_in)
        common = self._decays, self._in_flight_window_ms
        [result] = await self._run("refresh", *common, *arguments, only_if, _age_ms(written_at))
        return bool(result != -1)

    async def restore(
        self,
        registration: Registration,
        *,
        expires_in: float | None = None,
        draining: bool = False,
        polled: bool = False,
    ) -> bool:
        """Register a worker again that Redis lost. Return False if it is alive or was removed a short while ago.

        Also returns False if max_workers others are alive.

        expires_in: as in refresh().
        draining: it is draining.
        polled: it has answered a status poll.
        """
        arguments = self._registration_arguments(registration, expires_in)
        common = self._decays, self._max_workers
        [result] = await self._run("restore", *common, *arguments, int(draining), int(polled))
        return bool(result != -1)

    def _registration_arguments(
        self, registration: Registration, expires_in: float | None = None, repeatable_for: float = 0.0
    ) -> Sequence[str | int]:
        status, engine = registration.status, registration.engine
        expiration_ms = self._expiration_ms if engine is None else self._engine_expiration_ms
        if expires_in is not None:
            expiration_ms = max(1, round(expires_in * 1000))
        models = registration.indexed_models
        return (
            registration.request_id,
            round(1000 * repeatable_for) + self._reply_ttl_ms,
            registration.name,
            expiration_ms if registration.check_heart_beat else "",
            repr(status.speed),
            status.queue_length,
            int(registration.multimodal),
            json.dumps(models, ensure_ascii=False),
            digest_of(models),
            "" if status.capacity is None else status.capacity,
            self._default_capacity(status.model_names),
            registration.registered_by,
            "" if engine is None else engine.encode(),
        )

    async def heartbeat(self, reports: Sequence[Report]) -> list[bool]:
        """Record heartbeats. Return for each whether the worker is registered."""
        return await self._report(reports, self._expiration_ms, of_polls=False)

    async def take_poll_answers(self, reports: Sequence[Report]) -> list[bool]:
        """Record answers to polls of FastChat's workers, which do not keep a worker alive. Return as heartbeat()."""
        return await self._report(reports, "", of_polls=True)

    async def take_engine_answers(self, reports: Sequence[Report]) -> list[bool]:
        """Record answers to polls of engines, which keep an engine alive. Return as heartbeat()."""
        return await self._report(reports, self._engine_expiration_ms, of_polls=True)

    async def clear_failures(self, names: Sequence[str]) -> list[bool]:
        """Clear the failures of workers that have served requests. Their heartbeats and loads do not change.

        Returns for each whether the worker is alive.
        """
        return await self._report([Report(name, None) for name in names], "", of_polls=False)

    async def _report(self, reports: Sequence[Report], expiration: int | str, *, of_polls: bool) -> list[bool]:
        known = await self._run_each(
            "heartbeat",
            lambda: (*self._repeatable(), expiration, int(of_polls), self._decays, self._in_flight_window_ms),
            reports,
            lambda report: (
                report.name,
                "" if report.queue_length is None else report.queue_length,
                _age_ms(report.written_at),
            ),
        )
        return [bool(each) for each in known]

    async def drain(self, name: str, drain: bool = True, reason: str = "") -> bool:
        """Stop dispatching to a worker, or resume. Return True if the worker is alive."""
        return (await self.drain_many([DrainCall(name, drain, reason=reason)]))[0]

    async def drain_many(self, calls: Sequence[DrainCall]) -> list[bool]:
        """Drain or resume any number of workers, as drain() does."""
        results = await self._run_each(
            "drain",
            lambda: (*self._repeatable(), self._decays),
            calls,
            lambda call: (call.name, int(call.drain), int(call.by_agent), call.by, call.reason),
        )
        return [bool(result) for result in results]

    async def report_failure(self, name: str, *, of_polls: bool = False) -> bool | None:
        """Deprioritise a worker until its next heartbeat. Return True if the worker is alive.

        of_polls: the worker does not answer status polls. The next answer then clears the failure too. A worker that
        has never answered a poll is not deprioritised, and None is returned.
        """
        return (await self.report_failure_many([FailureCall(name, of_polls)]))[0]

    async def report_failure_many(self, calls: Sequence[FailureCall]) -> list[bool | None]:
        """Report any number of failures, as report_failure() does."""
        results = await self._run_each(
            "report_failure",
            lambda: (*self._repeatable(), self._decays),
            calls,
            lambda call: (call.name, "polls" if call.of_polls else "request"),
        )
        return [None if result == -1 else bool(result) for result in results]

    async def remove(self, name: str, only_if: int | None = None, reason: str = "") -> bool:
        """Remove a worker. Return True if it was alive and was removed.

        only_if: number of a registration. Nothing is done if the worker has registered again since.
        """
        return (await self.remove_many([RemoveCall(name, only_if, reason=reason)]))[0]

    async def remove_many(self, calls: Sequence[RemoveCall]) -> list[bool]:
        """Remove any number of workers, as remove() does."""
        results = await self._run_each(
            "remove",
            lambda: (*self._repeatable(), self._expiration_ms),
            calls,
            lambda call: (call.name, "" if call.only_if is None else call.only_if, call.by, call.reason),
        )
        return [bool(result) for result in results]

    async def correct_heartbeats(self, expected: Mapping[str, float]) -> int:
        """Correct the TTLs of heartbeats after the clock of Redis was set.

        expected: seconds until each worker's heartbeat should expire, by name. Returns how many were corrected.
        """
        corrected = 0
        items = list(expected.items())
        for first in range(0, len(items), _CORRECTED_AT_ONCE):
            page = items[first : first + _CORRECTED_AT_ONCE]
            arguments = (argument for name, left in page for argument in (name, max(1, round(left * 1000))))
            corrected += await self._run("correct_heartbeats", self._expiration_ms, *arguments)
        return corrected

    async def sweep(self, interval: float) -> list[str]:
        """Purge expired workers and end expired leases, unless a replica did so within the last `interval` seconds.

        Returns the names of the purged workers.
        """
        removed: list[str] = []
        unfinished = True
        while unfinished:
            unfinished, some = await self._run("sweep", max(1, round(interval * 1000)), self._decays)
            removed += some
        return removed


@lru_cache(maxsize=1_000)
def digest_of(models: tuple[str, ...]) -> str:
    """Return an id for a set of models, or "" for fewer than two."""
    if len(models) < 2:
        return ""
    return blake2b(json.dumps(sorted(models)).encode(), digest_size=12).hexdigest()


def _age_ms(written_at: float | None) -> int:
    return 0 if written_at is None else max(0, int((time.monotonic() - written_at) * 1000))
