"""Keeps the tokens of one replica up to date: those in Redis and those in a file."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

from controller.availability.circuit_breaker import CircuitBreaker
from controller.domain.errors import InvalidInput, StoreError
from controller.file_version import file_version
from controller.fleet.shared_list import INTERVAL, SharedList
from controller.security.access import Access, Caller
from controller.security.audit import Audit, AuditEvent
from controller.security.tokens import Plane, Token, create_secret, decode_token, parse_file, token_of
from controller.store.entries import ListName
from controller.store.registry import Registry

logger = logging.getLogger("controller")


class Tokens:
    """The tokens of a cluster, on one replica.

    file: the file of --tokens-file, or None.
    """

    def __init__(
        self, breaker: CircuitBreaker, registry: Registry, access: Access, audit: Audit, file: Path | None
    ) -> None:
        self._breaker = breaker
        self._registry = registry
        self._access = access
        self._audit = audit
        self._file = TokensFile(file) if file is not None else None
        self._stored = SharedList(registry, ListName.TOKENS)
        if self._file is not None:
            access.replace("file", self._file.read() or ())

    async def run(self) -> None:
        """Look for changes until cancelled. Return at once if the controller needs no tokens."""
        while self._access.is_closed:
            with contextlib.suppress(StoreError):  # the circuit breaker has logged it, and the known tokens stay
                await self._breaker.call(self.update)
            if self._file is not None:
                tokens = await asyncio.to_thread(self._file.read)
                if tokens is not None:
                    self._access.replace("file", tokens)
                    logger.info("Read %d tokens from %s.", len(tokens), self._file.path)
            await asyncio.sleep(INTERVAL)

    async def update(self) -> None:
        """Get the tokens from Redis if they have changed. Restore them there if Redis lost some. Raises StoreError.

        A token that another program wrote and that is unreadable is left out, so it opens nothing.
        """
        if not await self._stored.update():
            return
        tokens = []
        for name, record in self._stored.entries.items():
            with contextlib.suppress(InvalidInput):
                tokens.append(decode_token(name, record))
        self._access.replace("store", tokens)

    async def create(
        self, plane: Plane, name: str, workers: Iterable[str], models: Iterable[str], caller: Caller
    ) -> str:
        """Create a token and return its secret. All replicas that reach Redis know it then.

        Raises InvalidInput if the controller needs no tokens, if there is a token with this name, or if there are too
        many. Raises StoreUnavailable.
        """
        if not self._access.is_closed:
            raise InvalidInput(
                "token",
                "would protect nothing, because this controller accepts requests without one. Start it with "
                "CONTROLLER_ADMIN_TOKENS=name=token first. With an admin token you can create others",
            )
        secret = create_secret()
        token = token_of(name, plane, secret, workers, models)
        await self._breaker.call(self.update)  # restores lost tokens first, because later they would replace this one
        if self._access.token_named(name) or not await self._breaker.call(self._registry.set_token, name, token):
            raise InvalidInput("name", f"{name!r} is the name of a token already. Revoke it first, or choose another")
        await self._spread()
        bound = "".join(
            f", {kind}={','.join(part)}" for kind, part in (("workers", workers), ("models", models)) if part
        )
        self._record("create_token", name, f"plane {plane}{bound}", caller)
        return secret

    async def revoke(self, name: str, caller: Caller) -> bool:
        """Revoke a token that was created at runtime. Return False if there is none. Raises StoreUnavailable."""
        await self._breaker.call(self.update)  # restores lost tokens first, because later this one would be among them
        revoked = await self._breaker.call(self._registry.set_token, name, None)
        if not revoked and any(token.name == name for _, token in self._access.tokens()):
            raise InvalidInput(
                "name",
                f"{name!r} comes from the environment or from the file of --tokens-file. Remove it there",
            )
        if revoked:
            await self._spread()
            self._record("revoke_token", name, "", caller)
        return revoked

    async def _spread(self) -> None:
        """Wait until each replica has looked at Redis once more."""
        await self._breaker.call(self.update)
        await asyncio.sleep(2 * INTERVAL)

    def _record(self, action: str, name: str, detail: str, caller: Caller) -> None:
        self._audit.record(AuditEvent(action, "done", caller.name, caller.address, name, detail))


class TokensFile:
    """A file with tokens, which is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: object = None
        self._failed = False

    def read(self) -> list[Token] | None:
        """Return the tokens if the file has changed since the last call. None if it has not, or is wrong.

        A wrong file is logged once. The tokens that were read before stay valid.
        """
        try:
            seen = file_version(self.path)
            if seen == self._seen:
                return None
            tokens = parse_file(self.path.read_text())
        except (OSError, UnicodeDecodeError, InvalidInput) as error:
            if not self._failed:
                logger.error("--tokens-file %s cannot be used, so the tokens stay as they were: %s", self.path, error)  # noqa: TRY400 - no traceback needed
            self._failed = True
            return None
        self._seen, self._failed = seen, False
        return tokens
