"""The registry of workers in Redis: one method an operation, one Lua script a method, the same name for both."""

import json
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.commands.core import AsyncScript
from redis.exceptions import ClusterCrossSlotError, DataError, LockError, NoPermissionError, RedisError, ResponseError

from controller.domain.errors import StoreError, StoreRejection, StoreUnavailable
from controller.domain.worker import Registration, Worker, WorkerStatus
from controller.store import keys, scripts

_SWEEP_BUDGET: Final = 2_000
# How errors begin that no waiting will mend; and what is said where a script stopped that is without fault.
_MISTAKES: Final = ("INVALID", "WRONGTYPE")
_NOT_THE_SCRIPTS_FAULT: Final = ("can't run this command", "killed")


class Registry:
    """The workers of one namespace, as any number of replicas see them at once.

    heartbeat_expiration is in seconds; call_timeout too, and is the client's. deviate draws from the exponential
    distribution of mean 1; the tests pass their own. Every method raises StoreUnavailable when the store does not
    answer or cannot serve; whether the operation took place is then unknown, and it may be repeated. StoreRejection
    is a mistake: of ours, or of whoever put other things under our keys.
    """

    def __init__(
        self,
        client: Redis,
        namespace: str,
        heartbeat_expiration: float,
        call_timeout: float = 1.0,
        deviate: Callable[[], float] = lambda: random.expovariate(1.0),
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._keys = [keys.namespace(namespace)]
        self._expiration_ms = max(1, round(heartbeat_expiration * 1000))
        # The answer of a dispatch is kept for a repeated call: longer than it can take to find that the first was lost
        # (a connection to wait for, to make, to hear nothing on; then another).
        self._reply_kept_ms = max(1000, round(6000 * call_timeout))
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

        def run(request_id: str, models: Sequence[str]) -> Awaitable[list[str | None]]:
            return self._run("dispatch_shortest_queue", request_id, self._reply_kept_ms, *models)

        return await self._dispatch(run, models)

    async def dispatch_lottery(self, models: Sequence[str]) -> list[str]:
        """Draw a worker for each model, in proportion to speed; "" where a model has no live worker."""

        def run(request_id: str, models: Sequence[str]) -> Awaitable[list[str | None]]:
            arguments = (argument for model in models for argument in (model, repr(self._deviate())))
            return self._run("dispatch_lottery", request_id, self._reply_kept_ms, *arguments)

        return await self._dispatch(run, models)

    async def _dispatch(
        self, run: Callable[[str, Sequence[str]], Awaitable[list[str | None]]], models: Sequence[str]
    ) -> list[str]:
        """Run a dispatch script for the models, and again for those that it left because too many workers had died."""
        answers = await run(secrets.token_hex(12), models)
        while left := [i for i, answer in enumerate(answers) if answer is None]:
            try:
                more = await run(secrets.token_hex(12), [models[i] for i in left])
            except StoreError:
                break  # the others are booked: they must have their answers
            for i, answer in zip(left, more, strict=True):
                answers[i] = answer
        return [answer or "" for answer in answers]

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
        removed: list[str] = await self._run("sweep", max(1, round(interval * 1000)), _SWEEP_BUDGET)
        return removed

    def refresh_lock(self, timeout: float) -> "RefreshLock":
        """The lock that lets one replica at a time ask all workers for their status; see RefreshLock."""
        return RefreshLock(self._client, keys.refresh(self._namespace), timeout)

    async def check(self) -> None:
        """Raise StoreUnavailable, saying why, unless the store takes writes and is set up to keep them."""
        await self._run("check")
        try:
            policy = (await self._client.info("memory")).get("maxmemory_policy", "noeviction")
        except RedisError as error:
            if not (isinstance(error, NoPermissionError) or "unknown command" in str(error)):
                raise _store_error(error) from error
            return  # it does not tell: an ACL without INFO, or fakeredis
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
            raise _store_error(error) from error


class RefreshLock:
    """A lock in Redis that is given up by itself after `timeout` seconds, should its holder die."""

    def __init__(self, client: Redis, key: str, timeout: float) -> None:
        self._lock = Lock(client, key, timeout=timeout)

    async def acquire(self) -> bool:
        """Take the lock if nobody has it; whether it was taken. Never waits."""
        try:
            return bool(await self._lock.acquire(blocking=False))
        except RedisError as error:
            raise _store_error(error) from error

    async def held(self) -> bool:
        """Whether anybody has the lock."""
        try:
            return await self._lock.locked()
        except RedisError as error:
            raise _store_error(error) from error

    async def release(self) -> None:
        """Give the lock up; nothing happens when it was lost meanwhile."""
        try:
            await self._lock.release()
        except LockError:
            pass
        except RedisError as error:
            raise _store_error(error) from error


def _store_error(error: RedisError) -> StoreError:
    """What an error of the client or the server means. What is not known to be a mistake may pass: wait for it."""
    text = str(error)
    mistaken_script = "user_script" in text and not any(words in text for words in _NOT_THE_SCRIPTS_FAULT)
    if isinstance(error, (ClusterCrossSlotError, DataError)) or (
        type(error) is ResponseError and (text.startswith(_MISTAKES) or mistaken_script)  # not its subclasses
    ):
        return StoreRejection(f"The store does not accept a call: {text}.")
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
