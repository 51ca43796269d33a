"""The lock that lets one replica at a time ask all workers for their status."""

import asyncio
from typing import Final

from redis.asyncio.lock import Lock
from redis.exceptions import LockError

from controller.store.connection import StoreClient
from controller.store.failures import FAILURES, store_error

_MARGIN: Final = 60.0  # seconds by which the timeouts of two replicas may differ


class RefreshLock:
    """A lock in Redis that is given up by itself after `timeout` seconds, should its holder die.

    No call takes longer than `deadline` seconds.
    """

    def __init__(self, client: StoreClient, key: str, timeout: float, deadline: float) -> None:
        self._client = client
        self._key = key
        self._timeout = timeout
        self._lock = Lock(client, key, timeout=timeout)
        self._deadline = deadline

    async def acquire(self) -> bool:
        """Take the lock if nobody has it; whether it was taken. Never waits.

        A lock that would be held for longer than any can was taken before the store's clock was set back.
        That one is dropped.
        """
        try:
            async with asyncio.timeout(self._deadline):
                if await self._client.pttl(self._key) > 1000 * (self._timeout + _MARGIN):
                    await self._client.delete(self._key)
                return bool(await self._lock.acquire(blocking=False))
        except FAILURES as error:
            raise store_error(error) from error

    async def held(self) -> bool:
        """Whether anybody has the lock."""
        try:
            async with asyncio.timeout(self._deadline):
                return await self._lock.locked()
        except FAILURES as error:
            raise store_error(error) from error

    async def release(self) -> None:
        """Give the lock up; nothing happens when it was lost meanwhile."""
        try:
            async with asyncio.timeout(self._deadline):
                await self._lock.release()
        except LockError:
            pass
        except FAILURES as error:
            raise store_error(error) from error
