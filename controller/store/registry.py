"""The registry of workers in Redis: one method an operation, one Lua script a method, the same name for both."""

import json
import random
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.commands.core import AsyncScript
from redis.exceptions import LockError, RedisError, ResponseError

from controller.domain.errors import StoreUnavailable
from controller.domain.worker import Registration, Worker, WorkerStatus
from controller.store import keys, scripts

# The answer of a dispatch is kept for a repeated call, which follows within twice the timeout of a call.
_REPLY_KEPT_MS: Final = 5_000
_SWEEP_LIMIT: Final = 1_000


class Registry:
    """The workers of one namespace, as any number of replicas see them at once.

    heartbeat_expiration is in seconds. deviate draws from the exponential distribution of mean 1; the tests pass
    their own. Every method raises StoreUnavailable when the store does not answer or cannot serve; whether the
    operation took place is then unknown, and it may be repeated.
    """

    def __init__(
        self,
        client: Redis,
        namespace: str,
        heartbeat_expiration: float,
        deviate: Callable[[], float] = lambda: random.expovariate(1.0),
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._keys = [keys.namespace(namespace)]
        self._expiration_ms = max(1, round(heartbeat_expiration * 1000))
        self._deviate = deviate
        self._scripts: dict[str, AsyncScript] = {
            name: client.register_script(scripts.source(name)) for name in scripts.names()
        }

    async def register(self, registration: Registration, only_if: int | None = None) -> bool | None:
        """Register a worker, or register it again; it is alive from now on.

        only_if is the number of a registration: the call does nothing, and returns None, when the worker has
        registered again since or is gone. Otherwise returns whether the worker is new.
        """
        status = registration.status
        result = await self._run(
            "register",
            registration.name,
            self._expiration_ms if registration.check_heart_beat else "",
            repr(status.speed),
            status.queue_length,
            int(registration.multimodal),
            "" if only_if is None else only_if,
            json.dumps(status.model_names, ensure_ascii=False),
            *(repr(self._deviate()) for _ in status.model_names),
        )
        return None if result == -1 else bool(result)

    async def heartbeat(self, reports: Sequence[tuple[str, int]]) -> list[bool]:
        """Take heartbeats, each a worker's name and queue length; for each, whether the worker is registered."""
        arguments = (argument for report in reports for argument in report)
        return [bool(known) for known in await self._run("heartbeat", self._expiration_ms, *arguments)]

    async def dispatch_shortest_queue(self, models: Sequence[str]) -> list[str]:
        """Choose and book a worker for each model; "" where a model has no live worker."""
        answer: list[str] = await self._run("dispatch_shortest_queue", self._request_id(), _REPLY_KEPT_MS, *models)
        return answer

    async def dispatch_lottery(self, models: Sequence[str]) -> list[str]:
        """Draw a worker for each model, in proportion to speed; "" where a model has no live worker."""
        arguments = (argument for model in models for argument in (model, repr(self._deviate())))
        answer: list[str] = await self._run("dispatch_lottery", self._request_id(), _REPLY_KEPT_MS, *arguments)
        return answer

    async def remove(self, name: str, only_if: int | None = None) -> bool:
        """Remove a worker; whether there was such a live one. only_if is as for register()."""
        return bool(await self._run("remove", name, "" if only_if is None else only_if))

    async def list_workers(self) -> list[Worker]:
        """All live workers, in order of name."""
        return [_worker(fields) for fields in await self._run("list_workers")]

    async def list_models(self, multimodal: bool | None = None) -> list[str]:
        """The models of all live workers, of the multimodal ones (True) or of the others (False), sorted."""
        return sorted(await self._run("list_models", "" if multimodal is None else int(multimodal)))

    async def sweep(self, interval: float) -> list[str]:
        """Tidy away lapsed workers, unless some replica did within `interval` seconds; their names."""
        removed: list[str] = await self._run("sweep", max(1, round(interval * 1000)), _SWEEP_LIMIT)
        return removed

    def refresh_lock(self, timeout: float) -> "RefreshLock":
        """The lock that lets one replica at a time ask all workers for their status; see RefreshLock."""
        return RefreshLock(self._client, keys.refresh(self._namespace), timeout)

    async def check(self) -> None:
        """Raise StoreUnavailable, saying why, unless the store answers and is set up to keep what it is given."""
        try:
            await self._client.ping()
            policy = (await self._client.info("memory")).get("maxmemory_policy", "noeviction")
        except ResponseError:
            return  # it does not tell (fakeredis, an ACL without INFO)
        except RedisError as error:
            raise _unavailable(error) from error
        if policy != "noeviction":
            raise StoreUnavailable(
                f"The store's maxmemory-policy is {policy}: when its memory is full it drops heartbeats, and workers "
                "with them. Set it to noeviction."
            )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _run(self, script: str, *arguments: str | int) -> Any:
        try:
            return await self._scripts[script](keys=self._keys, args=arguments)
        except RedisError as error:
            raise _unavailable(error) from error

    @staticmethod
    def _request_id() -> str:
        return secrets.token_hex(12)


class RefreshLock:
    """A lock in Redis that is given up by itself after `timeout` seconds, should its holder die."""

    def __init__(self, client: Redis, key: str, timeout: float) -> None:
        self._lock = Lock(client, key, timeout=timeout)

    async def acquire(self) -> bool:
        """Take the lock if nobody has it; whether it was taken. Never waits."""
        try:
            return bool(await self._lock.acquire(blocking=False))
        except RedisError as error:
            raise _unavailable(error) from error

    async def held(self) -> bool:
        """Whether anybody has the lock."""
        try:
            return await self._lock.locked()
        except RedisError as error:
            raise _unavailable(error) from error

    async def release(self) -> None:
        """Give the lock up; nothing happens when it was lost meanwhile."""
        try:
            await self._lock.release()
        except LockError:
            pass
        except RedisError as error:
            raise _unavailable(error) from error


def _unavailable(error: RedisError) -> StoreUnavailable:
    return StoreUnavailable(
        f"The store does not serve ({type(error).__name__}: {error}). Nothing is lost; try again in a few seconds."
    )


def _worker(fields: Sequence[Any]) -> Worker:
    name, models, speed, queue_length, multimodal, check_heart_beat, registration, age_ms, expires_in_ms = fields
    status = WorkerStatus(tuple(json.loads(models)), _number(speed), int(queue_length))
    return Worker(
        name=name,
        status=status,
        check_heart_beat=check_heart_beat == "1",
        multimodal=multimodal == "1",
        registration=int(registration),
        heartbeat_age=age_ms / 1000,
        expires_in=None if expires_in_ms < 0 else expires_in_ms / 1000,
    )


def _number(text: str) -> float:
    """A number as the worker wrote it: 1 stays 1 and does not become 1.0."""
    return float(text) if "." in text or "e" in text else int(text)
