"""Leases in Redis."""

from collections.abc import Sequence
from typing import Final

from controller.store.runner import ScriptRunner

_PAGE: Final = 100


class LeaseStore(ScriptRunner):
    """Releases and renews leases. The dispatch scripts grant them."""

    async def release(self, leases: Sequence[str]) -> list[bool]:
        """Release leases. Return for each whether it was active."""
        released = await self._run_each("release", lambda: (self._decays,), leases, lambda lease: (lease,))
        return [bool(each) for each in released]

    async def renew(self, lease: str) -> bool:
        """Renew one lease, as renew_many() does."""
        return (await self.renew_many([lease]))[0]

    async def renew_many(self, leases: Sequence[str]) -> list[bool]:
        """Renew leases for their full time, from now on.

        Returns for each whether it is active and its worker is alive.
        """
        return [bool(renewed) for renewed in await self._run("renew", *leases)]

    async def shorten_leases(self) -> None:
        """Shorten leases that would outlast their time after the clock of Redis was set back."""
        cursor = "0"
        while True:
            cursor = await self._run("shorten_leases", cursor, _PAGE)
            if cursor == "0":
                return
