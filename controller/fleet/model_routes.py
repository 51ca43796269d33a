"""Keeps the routes of model names up to date on one replica, and changes them on behalf of operators."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping, Sequence

from controller.availability.circuit_breaker import CircuitBreaker
from controller.availability.snapshot import MaybeStale
from controller.domain.errors import InvalidInput, StoreError, StoreIncompatible, StoreUnavailable
from controller.domain.model_route import MAX_ROUTES, ModelRoute
from controller.domain.worker import model_name
from controller.fleet.shared_list import INTERVAL, SharedList
from controller.security.access import Caller
from controller.security.audit import Audit, AuditEvent
from controller.store.entries import ListName
from controller.store.registry import Registry

logger = logging.getLogger("controller")


class ModelRoutes:
    """The routes of a cluster, on one replica. Without Redis, the replica uses the routes of its last read."""

    def __init__(self, breaker: CircuitBreaker, registry: Registry, audit: Audit) -> None:
        self._breaker = breaker
        self._registry = registry
        self._audit = audit
        self._stored = SharedList(registry, ListName.ROUTES)
        self._routes: Mapping[str, ModelRoute] = {}
        self._updated_at: float | None = None  # on the monotonic clock

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            with contextlib.suppress(StoreError):  # the circuit breaker has logged it, and the known routes stay
                await self._breaker.call(self.update)
            await asyncio.sleep(INTERVAL)

    async def update(self) -> None:
        """Get the routes from Redis if they have changed. Restore them there if Redis lost some. Raises StoreError.

        A route that another program wrote and that is unreadable is left out and logged.
        """
        has_changed = await self._stored.update()
        self._updated_at = time.monotonic()
        if not has_changed:
            return
        routes = {}
        for model, record in sorted(self._stored.entries.items()):
            try:
                routes[model_name(model)] = ModelRoute.decode(record)
            except InvalidInput as error:
                logger.error(  # noqa: TRY400 - no traceback needed
                    "The route of %(model)r in Redis is not used, because another program has written it: %(error)s",
                    {"model": model, "error": error},
                )
        self._routes = routes

    def candidates(self, model: str) -> Sequence[str]:
        """Return the models to try for a request, as ModelRoute.candidates(). A name without a route is a model."""
        route = self._routes.get(model)
        return (model,) if route is None else route.candidates(random.random)

    def models(self, model: str) -> Sequence[str]:
        """Return the models that the route of a name may use, targets first. Empty if it has no route."""
        route = self._routes.get(model)
        return () if route is None else route.models

    def names(self) -> Sequence[str]:
        """Return the names that have a route, sorted."""
        return tuple(self._routes)

    async def list(self) -> MaybeStale[Mapping[str, ModelRoute]]:
        """Return the routes by name, sorted. While Redis is unavailable, return those that this replica uses.

        Raises StoreError, also if Redis is unavailable and this replica has not read the routes yet.
        """
        try:
            await self._breaker.call(self.update)
        except StoreUnavailable as error:
            if self._updated_at is None or isinstance(error, StoreIncompatible):
                raise
            return MaybeStale(self._routes, time.monotonic() - self._updated_at)
        return MaybeStale(self._routes)

    async def set(self, model: str, route: ModelRoute, caller: Caller) -> None:
        """Set the route of a name. It replaces an earlier one. All replicas that reach Redis use it then.

        A call that failed can be repeated. Raises InvalidInput if there are too many routes, and StoreUnavailable.
        """
        if await self._write(model, route.encode()) is None:
            raise InvalidInput(
                "model", f"{MAX_ROUTES} names have a route already, which is the limit. Remove one, and try again"
            )
        await self._spread("set_model_route", model, str(route), caller)

    async def remove(self, model: str, caller: Caller) -> bool:
        """Remove the route of a name. Return False if it has none. No replica that reaches Redis uses it then.

        Raises StoreUnavailable.
        """
        if not await self._write(model, ""):
            return False
        await self._spread("remove_model_route", model, "", caller)
        return True

    async def _write(self, model: str, record: str) -> bool | None:
        # If Redis has lost the routes, restore them first. Later, the restored list would replace this change.
        await self._breaker.call(self.update)
        return await self._breaker.call(
            lambda: self._registry.set_entry(ListName.ROUTES, model, record, limit=MAX_ROUTES),
        )

    async def _spread(self, action: str, model: str, detail: str, caller: Caller) -> None:
        """Record a change, and wait until each replica has looked at Redis once more."""
        self._audit.record(AuditEvent(action, "done", caller.name, caller.address, f"model {model}", detail))
        await self._breaker.call(self.update)
        await asyncio.sleep(2 * INTERVAL)
