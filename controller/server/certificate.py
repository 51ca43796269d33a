"""The certificate of --ssl, which may be renewed while a replica serves."""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger("controller.server")

_LOOK_INTERVAL: Final = 1.0
_START_PATIENCE: Final = 10.0  # seconds in which a pair that does not fit may be completed
_RETRY_INTERVAL: Final = 0.2


class Certificate:
    """A certificate file and its key file, read again when one of them changes.

    New connections get the new certificate. A pair of files that does not belong together, such as one that is half
    replaced, changes nothing.
    """

    def __init__(self, certfile: Path, keyfile: Path) -> None:
        self._files = (certfile, keyfile)
        self._state: object = None  # of the files, as they were last loaded
        self._failed: object = None  # the same, as they could not be loaded
        self._current: ssl.SSLContext | None = None

    def context(self, _config: object, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """Make the context that uvicorn serves with: uvicorn.Config's `ssl_context_factory`.

        A replica that is started while the pair is being replaced waits for it. Raises SystemExit if it waits in vain.
        """
        deadline = time.monotonic() + _START_PATIENCE
        while True:
            state = self._look()
            try:
                self._current = self._load()
                context = make()
                break
            except (OSError, ValueError) as error:
                if time.monotonic() > deadline:
                    logger.error("The certificate cannot be loaded: %s. Renew %s and %s.", error, *self._files)  # noqa: TRY400 - the message says it all
                    raise SystemExit(1) from error
            time.sleep(_RETRY_INTERVAL)
        self._state = state
        # OpenSSL calls this in each handshake, also if the client names no server.
        context.sni_callback = self._choose
        return context

    async def watch_forever(self) -> None:
        """Look for changed files, once a second."""
        while True:
            await asyncio.sleep(_LOOK_INTERVAL)
            await asyncio.to_thread(self.reload)  # the files may lie on a network

    def reload(self) -> None:
        """Load the files if they have changed."""
        state = self._look()
        if state == self._state:
            return
        try:
            self._current = self._load()
        except (OSError, ValueError) as error:
            if state != self._failed:
                logger.warning(
                    "%s or %s has changed, but the two cannot be used: %s. The old certificate is served until a pair "
                    "of PEM files that belong together is there.",
                    *self._files,
                    error,
                )
            self._failed = state
            return
        self._state, self._failed = state, None
        logger.info("Certificate reloaded, valid until %s.", _valid_until(self._files[0]))

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._current is not None:
            connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files, password=_no_password)
        return context

    def _look(self) -> object:
        """What changes when a file is written to or replaced, or a symbolic link on the way to it is."""
        state: list[object] = []
        for file in self._files:
            try:
                found = file.stat()
            except OSError as error:
                state.append(error.errno)
            else:
                state.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return state


def _no_password() -> str:
    raise ValueError("the key has a password")


def _valid_until(certfile: Path) -> str:
    """The end of a certificate's validity, for the log. The standard library has no public function for it."""
    with contextlib.suppress(AttributeError, KeyError, OSError, ValueError):
        decoded: dict[str, Any] = ssl._ssl._test_decode_cert(str(certfile))  # type: ignore[attr-defined]
        return str(decoded["notAfter"])
    return "an unknown time"
