"""The registry in Redis: one method for each Lua script, with the same name.

The scripts of the dispatch methods are the exception: they share dispatch_some().
"""

import asyncio
import contextlib
import secrets
from typing import Final

from redis.exceptions import NoPermissionError

from controller.domain.errors import StoreIncompatible, StoreUnavailable
from controller.store import keys
from controller.store.capacities import CapacityStore
from controller.store.connection import close, reconnect
from controller.store.coordination import CoordinationStore
from controller.store.diagnosis import DiagnosisStore
from controller.store.dispatches import REFUSED, TOKEN_REFUSED, Choice, DispatchStore, Find, Request
from controller.store.errors import FAILURES, store_error
from controller.store.events import EventPage, EventStore, NewEvent
from controller.store.leases import LeaseStore
from controller.store.listings import ListingStore, WorkerList
from controller.store.tokens import TokenStore
from controller.store.workers import (
    DrainCall,
    FailureCall,
    Refusal,
    RegisterCall,
    RemoveCall,
    Report,
    WorkerStore,
    digest_of,
)

__all__ = [
    "REFUSED",
    "SCHEMA",
    "TOKEN_REFUSED",
    "Choice",
    "DrainCall",
    "EventPage",
    "FailureCall",
    "Find",
    "NewEvent",
    "Refusal",
    "RegisterCall",
    "Registry",
    "RemoveCall",
    "Report",
    "Request",
    "WorkerList",
    "digest_of",
]

SCHEMA: Final = "4"  # version of the key layout. Scripts of another version must not touch these keys.


class Registry(
    DispatchStore,
    WorkerStore,
    ListingStore,
    CapacityStore,
    LeaseStore,
    CoordinationStore,
    TokenStore,
    EventStore,
    DiagnosisStore,
):
    """The registry of one namespace, shared by any number of replicas.

    Each method raises StoreUnavailable if Redis does not answer or cannot serve. Whether the operation took place is
    then unknown, and it may be repeated. ReplicaBusy means that the call was not sent. StoreRejection means a bug, or
    that another program wrote to our keys.

    memory: the bytes that Redis used at the last check(), and its limit. 0 if it has none, or if INFO is not available.
    """

    memory: tuple[int, int] = (0, 0)

    async def check(self) -> None:
        """Check that Redis takes writes and is set up to keep them. Raises StoreUnavailable with the reason if not.

        Raises StoreIncompatible if Redis holds the registry of another version of this program.
        """
        found = await self._run("check", SCHEMA, secrets.token_hex(8))
        if found != SCHEMA:
            raise StoreIncompatible(
                f"The registry in Redis has key layout version {found}. This program needs version {SCHEMA} and has "
                "changed nothing. Run the version that the other replicas run, or give this one a --namespace of its "
                f"own. When no replica of the other version is left, you can delete the key "
                f"{keys.schema(self._namespace)} and all others that begin with {keys.namespace(self._namespace)}: "
                "the workers register again by themselves."
            )
        try:
            policy = await self._read_memory()
        except FAILURES as error:
            if not (isinstance(error, NoPermissionError) or "unknown command" in str(error)):
                raise store_error(error) from error
            return  # INFO is not available: forbidden by an ACL, or missing in fakeredis
        if policy != "noeviction":
            raise StoreUnavailable(
                f"The maxmemory-policy of Redis is {policy}: when its memory is full it evicts heartbeats, and the "
                "workers with them. Set it to noeviction."
            )

    async def _read_memory(self) -> str:
        """Update `memory`. Return the eviction policy of Redis."""
        info = await self._calls.run(lambda: self._client.info("memory", **self._own_node()))
        self.memory = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
        return str(info.get("maxmemory_policy", "noeviction"))

    async def reconnect(self) -> None:
        """Drop idle connections, so that the next call looks for the master again."""
        with contextlib.suppress(*FAILURES):  # a hung server may not answer when a connection is closed
            async with asyncio.timeout(self._calls.deadline):
                await reconnect(self._client)

    async def close(self) -> None:
        """Close all connections."""
        await self._calls.close()
        await close(self._client)
