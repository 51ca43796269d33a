"""The lock that lets one replica at a time probe all workers."""

from typing import Final

from redis.asyncio.lock import Lock
from redis.exceptions import LockError

from controller.store.client import StoreCalls
from controller.store.connection import StoreClient
from controller.store.errors import FAILURES, store_error

_MARGIN: Final = 60.0  # seconds by which the timeouts of two replicas may differ


class RefreshLock:
    """A lock in Redis. If its holder crashes, it expires after `timeout` seconds."""

    def __init__(self, client: StoreClient, key: str, timeout: float, calls: StoreCalls) -> None:
        self._client = client
        self._key = key
        self._timeout = timeout
        self._lock = Lock(client, key, timeout=timeout)
        self._calls = calls

    async def acquire(self) -> bool:
        """Acquire the lock if it is free. Return True if it was acquired. Never waits. Raises StoreError.

        An existing lock with too long a TTL is deleted: it was acquired before the clock of Redis was set back.
        """
        try:
            return bool(await self._calls.run(self._acquire))
        except FAILURES as error:
            raise store_error(error) from error

    async def held(self) -> bool:
        """Return True if a replica holds the lock. Raises StoreError."""
        try:
            return await self._calls.run(self._lock.locked)
        except FAILURES as error:
            raise store_error(error) from error

    async def release(self) -> None:
        """Release the lock. Does nothing if it has expired. Raises StoreError."""
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
