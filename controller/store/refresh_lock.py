"""The lock that lets one replica at a time ask all workers for their status."""

from typing import Final

from redis.asyncio.lock import Lock
from redis.exceptions import LockError

from controller.store.client import StoreCalls
from controller.store.connection import StoreClient
from controller.store.errors import FAILURES, store_error

_MARGIN: Final = 60.0  # seconds by which the timeouts of two replicas may differ


class RefreshLock:
    """A lock in Redis that is given up by itself after `timeout` seconds, should its holder die."""

    def __init__(self, client: StoreClient, key: str, timeout: float, calls: StoreCalls) -> None:
        self._client = client
        self._key = key
        self._timeout = timeout
        self._lock = Lock(client, key, timeout=timeout)
        self._calls = calls

    async def acquire(self) -> bool:
        """Take the lock if nobody has it; whether it was taken. Never waits.

        A lock that would be held for longer than any can was taken before the store's clock was set back.
        That one is dropped.
        """
        try:
            return bool(await self._calls.run(self._acquire))
        except FAILURES as error:
            raise store_error(error) from error

    async def held(self) -> bool:
        """Whether anybody has the lock."""
        try:
            return await self._calls.run(self._lock.locked)
        except FAILURES as error:
            raise store_error(error) from error

    async def release(self) -> None:
        """Give the lock up; nothing happens when it was lost meanwhile."""
        try:
            await self._calls.run(self._lock.release)
        except LockError:
            pass
        except FAILURES as error:
            raise store_error(error) from error

    async def _acquire(self) -> bool:
        if await self._client.pttl(self._key) > 1000 * (self._timeout + _MARGIN):
            await self._client.delete(self._key)
        return bool(await self._lock.acquire(blocking=False))
