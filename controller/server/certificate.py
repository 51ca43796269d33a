"""The certificate of --ssl, which can be renewed while a replica serves."""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from controller.file_version import file_version

logger = logging.getLogger("controller.server")

_CHECK_INTERVAL: Final = 1.0  # seconds between two checks of the files
_START_TIMEOUT: Final = 10.0  # seconds that a starting replica waits for files that belong together
_RETRY_INTERVAL: Final = 0.2


class Certificate:
    """A certificate file and its key file, reloaded when one of them changes.

    New connections get the new certificate. If the two files do not belong together, because only one of them has been
    replaced yet, the old certificate stays in use.
    """

    def __init__(self, certfile: Path, keyfile: Path) -> None:
        self._files = (certfile, keyfile)
        self._loaded_state: object = None  # state of the files at the last successful load
        self._failed_state: object = None  # state of the files at the last failed load
        self._current: ssl.SSLContext | None = None

    def context(self, _config: object, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """Return the SSL context for uvicorn. This is the `ssl_context_factory` of uvicorn.Config.

        If the replica starts while the files are being replaced, wait until they belong together. Raises SystemExit
        after a timeout.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            state = self._read_state()
            try:
                self._current = self._load()
                context = make()
                break
            except (OSError, ValueError) as error:
                if time.monotonic() > deadline:
                    logger.error(  # noqa: TRY400 - the message has all details
                        "The certificate cannot be loaded: %s. Ending this replica. Put a certificate and its key into "
                        "%s and %s.",
                        error,
                        *self._files,
                    )
                    raise SystemExit(1) from error
            time.sleep(_RETRY_INTERVAL)
        self._loaded_state = state
        # OpenSSL calls this in each handshake, even if the client sends no server name.
        context.sni_callback = self._use_current
        return context

    async def watch_forever(self) -> None:
        """Reload changed files, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL)
            await asyncio.to_thread(self.reload)  # a network file system could block the event loop

    def reload(self) -> None:
        """Load the files if they have changed."""
        state = self._read_state()
        if state == self._loaded_state:
            return
        try:
            self._current = self._load()
        except (OSError, ValueError) as error:
            if state != self._failed_state:
                logger.warning(
                    "%s or %s has changed, but the two cannot be loaded: %s. The old certificate stays in use until "
                    "both are PEM files that belong together.",
                    *self._files,
                    error,
                )
            self._failed_state = state
            return
        self._loaded_state, self._failed_state = state, None
        logger.info("Certificate reloaded, valid until %s.", _valid_until(self._files[0]))

    def _use_current(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        if self._current is not None:
            connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files, password=_no_password)
        return context

    def _read_state(self) -> object:
        """Return a value that changes if one of the files changes or becomes unreadable."""
        state: list[object] = []
        for file in self._files:
            try:
                state.append(file_version(file))
            except OSError as error:
                state.append(error.errno)
        return state


def _no_password() -> str:
    raise ValueError("the key has a password")


def _valid_until(certfile: Path) -> str:
    """Return the end of a certificate's validity for the log. The standard library has no public function for it."""
    with contextlib.suppress(AttributeError, KeyError, OSError, ValueError):
        decoded: dict[str, Any] = ssl._ssl._test_decode_cert(str(certfile))  # type: ignore[attr-defined]
        return str(decoded["notAfter"])
    return "an unknown time"
