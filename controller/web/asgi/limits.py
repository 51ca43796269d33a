"""Limits that one replica shares between its requests: memory for bodies, and registrations by address."""

import asyncio
import contextlib
import time
from math import ceil
from typing import Final

from controller.domain.errors import (
    ControllerError,
    TooManyBodies,
    TooManyLeases,
    TooManyRegistrations,
    TooManyWorkers,
)
from controller.metrics import Metrics
from controller.security.networks import network_of
from controller.settings import Settings

# Bytes. Smaller bodies are not counted: 10,000 connections with such bodies occupy at most 160 MiB.
SMALL_BODY: Final = 16 * 1024
_MIB: Final = 1024 * 1024
# The values of the label `limit`. Forwards are counted where they are refused, because their routes return frames.
_LIMIT_OF: Final = {
    TooManyBodies: "body_memory",
    TooManyWorkers: "workers",
    TooManyLeases: "leases",
    TooManyRegistrations: "registrations",
}
_BURST: Final = 10.0  # seconds of its rate that an address may send at once
_MAX_ADDRESSES: Final = 10_000


class BodyMemory:
    """Counts the bytes of large bodies that are in memory, and refuses more than `limit`. 0 means no limit."""

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self.used = 0

    def add(self, size: int) -> None:
        """Count more bytes. Raises TooManyBodies, and counts nothing, if they exceed the limit."""
        if self._limit and self.used + size > self._limit:
            raise TooManyBodies(
                f"The bodies of other requests occupy {self.used // _MIB} MiB of this replica, and --max-body-memory "
                f"allows {self._limit // _MIB} MiB. The request was not read. Send it again later."
            )
        self.used += size

    def remove(self, size: int) -> None:
        """Stop counting bytes."""
        self.used -= size


class AddressRate:
    """Limits the calls of each address to `rate` per second, by a token bucket (GCRA) of `burst` calls.

    A call beyond the rate is delayed. It is refused only if the delay would exceed `max_delay` seconds, because
    FastChat's workers stop sending heartbeats for good when a registration is refused.

    The addresses of one IPv6 network of 64 bits count as one. At most `max_addresses` are remembered. Further ones
    share a bucket until a remembered one has been quiet for a while.
    """

    def __init__(
        self,
        rate: float,
        max_delay: float,
        burst: float | None = None,
        max_addresses: int = _MAX_ADDRESSES,
    ) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._max_delay = max_delay
        self._ahead = _BURST if burst is None else burst * self._interval
        self._max_addresses = max_addresses
        self._due: dict[str, float] = {}  # by address: when its bucket is full again
        self._stopped = asyncio.Event()

    async def admit(self, address: str) -> None:
        """Wait until a call from an address may begin. Raises TooManyRegistrations."""
        if not self._interval:
            return
        delay = self._reserve(address, time.monotonic())
        if delay > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopped.wait()

    def stop(self) -> None:
        """Let all delayed calls begin, because this replica is about to end."""
        self._stopped.set()

    def _reserve(self, address: str, now: float) -> float:
        """Count a call and return its delay in seconds."""
        key = network_of(address)
        if key not in self._due and len(self._due) >= self._max_addresses:
            self._due = {each: due for each, due in self._due.items() if due > now}
            if len(self._due) >= self._max_addresses:
                key = ""
        due = max(self._due.get(key, now), now)
        delay = due - now - self._ahead
        if delay > self._max_delay:
            raise TooManyRegistrations(
                f"{address or 'This address'} exceeds the {1 / self._interval:g} registrations per second of "
                f"--registration-rate: this one would wait {delay:.0f} s. The worker was not registered.",
                retry_after=max(1, ceil(delay - self._max_delay)),
            )
        self._due[key] = due + self._interval
        return delay


class RequestLimits:
    """The limits of one replica that its endpoints apply. The defaults limit nothing."""

    def __init__(
        self,
        bodies: BodyMemory | None = None,
        registrations: AddressRate | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.bodies = bodies or BodyMemory()
        self.registrations = registrations or AddressRate(0.0, 0.0)
        self._metrics = metrics

    def count(self, error: ControllerError) -> None:
        """Count a request that was refused because a limit was reached."""
        if self._metrics is not None and (limit := _LIMIT_OF.get(type(error))):
            self._metrics.refusals.labels(limit).inc()

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> "RequestLimits":
        """Return the limits that the settings describe."""
        return cls(
            BodyMemory(settings.max_body_memory * _MIB),
            AddressRate(settings.registration_rate, settings.register_timeout),
            metrics,
        )
