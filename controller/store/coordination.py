"""Coordination of replicas in Redis: membership, singleton jobs and the refresh lock."""

from controller.store import keys
from controller.store.refresh_lock import RefreshLock
from controller.store.runner import ScriptRunner


class CoordinationStore(ScriptRunner):
    """Lets replicas find each other and share work."""

    async def join_replicas(self, replica: str, ttl: float, description: str = "{}") -> list[str]:
        """Send the heartbeat of a replica, valid for `ttl` seconds. Return the ids of all live replicas.

        description: a JSON object. The first one of a replica is stored. With "", the membership is only extended if it
            has not expired, and the id is missing otherwise.
        """
        replicas: list[str] = await self._run("join_replicas", replica, round(ttl * 1000), description)
        return replicas

    async def leave_replicas(self, replica: str) -> None:
        """End the membership of a replica."""
        await self._run("join_replicas", replica, 0, "{}")

    async def list_replicas(self) -> list[tuple[str, str]]:
        """Return the id and the description of each live replica. It is "" for replicas of older versions."""
        listed = await self._run("list_replicas")
        return list(zip(listed[::2], listed[1::2], strict=True))

    async def mark_listing(self, replica: str, known: int, number: int) -> bool:
        """Store the number of a replica's listing of the workers.

        known: the last number that the replica has stored. 0 if there is none.

        Returns False, and stores nothing, if Redis has lost this number.
        """
        return bool(await self._run("mark_listing", replica, known, number))

    async def acquire_job(
        self, job: str, replica: str, ttl: float, *, max_pause: float = 86_400.0, urgent: bool = False
    ) -> tuple[bool, str]:
        """Try to acquire the lock of a singleton job for `ttl` seconds.

        max_pause: the longest pause between two runs of the job, in seconds. A longer one is an effect of a clock that
        was set back, and is ignored.
        urgent: acquire the lock even if the job is not due.

        Returns whether this replica has the lock, and the result of the last run, or "".
        """
        milliseconds = round(ttl * 1000), int(urgent), round(max_pause * 1000)
        acquired, result = await self._run("acquire_job", job, replica, *milliseconds)
        return bool(acquired), result

    async def complete_job(self, job: str, replica: str, due_in: float, result: str, result_ttl: float) -> bool:
        """Release the lock of a singleton job, which is due again in `due_in` seconds.

        result: kept for `result_ttl` seconds for the next run. "" if the job was not done.

        Returns whether this replica still had the lock.
        """
        return bool(
            await self._run("complete_job", job, replica, round(due_in * 1000), result, round(result_ttl * 1000))
        )

    def refresh_lock(self, timeout: float) -> RefreshLock:
        """Return the lock that lets one replica at a time probe all workers; see RefreshLock."""
        return RefreshLock(self._client, keys.refresh(self._namespace), timeout, self._calls)
