"""A worker's response on its way to the client."""

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from math import inf
from time import monotonic
from typing import Final

from controller.domain.errors import WorkerError
from controller.upstream.response import WorkerResponse

logger = logging.getLogger("controller")

# A client that does not read stops its worker, which may break off at a time limit of its own.
_HOLD: Final = 1.0  # seconds without a read. Workers allow more
_DRAIN: Final = 30.0  # seconds after which the client has read what the worker sent before it broke off


class Forwarded:
    """A worker's response, of which the head has arrived.

    The caller must close it. This ends the request and releases its lease, at once or after `detach`.

    first: first piece of the body.
    on_end: called once with the outcome, or with "" if the outcome was counted already, with the bytes that the
        client was sent, and with True if a broken response may be the fault of a client that did not read.
    detach: called with this response if it is closed before its end. The function must call finish(). None if the
        worker ends the request when its connection is closed.
    """

    def __init__(
        self,
        response: WorkerResponse,
        first: bytes,
        rest: AsyncGenerator[bytes],
        on_end: Callable[[str, int, bool], None],
        detach: Callable[["Forwarded"], object] | None,
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self.encoded = response.encoded
        self._response = response
        self._first = first
        self._rest = rest
        self._on_end = on_end
        self._detach = detach
        self._outcome = "client_gone"
        self._closed = False
        self._size = 0
        self._held_at = -inf  # when the client last read after a time without a read

    @property
    def is_whole(self) -> bool:
        """True if the first piece is the whole body, by its Content-Length."""
        return (b"content-length", b"%d" % len(self._first)) in self.headers

    async def take_whole(self) -> bytes:
        """Return the body of a response that is whole, instead of pieces()."""
        self._size = len(self._first)
        self._outcome = "complete"
        await self._rest.aclose()
        return self._first

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the body as it arrives. Call this once. Raises WorkerError if the response is incomplete."""
        try:
            if self._first:
                self._size += len(self._first)
                sent_at = monotonic()
                yield self._first
                self._note_hold(sent_at)
            async for piece in self._rest:
                self._size += len(piece)
                sent_at = monotonic()
                yield piece
                self._note_hold(sent_at)
        except WorkerError as error:
            self._outcome = "broken"
            logger.warning("A forwarded response failed, and its client gets an error: %(reason)s", {"reason": error})
            raise
        else:
            self._outcome = "complete"
        finally:
            if self._detach is None:
                await self._rest.aclose()

    def _note_hold(self, sent_at: float) -> None:
        now = monotonic()
        if now - sent_at >= _HOLD:
            self._held_at = now

    def time_out(self) -> None:
        """Make pieces() raise WorkerSilent."""
        self._response.fail(TimeoutError())

    def close(self) -> None:
        """Close the response. Synchronous on purpose: a cancelled caller could be cancelled again at any `await`."""
        if self._closed:
            return
        self._closed = True
        if self._outcome == "client_gone" and self._detach is not None:
            self._detach(self)
        else:
            self._end()

    async def finish(self, counted: bool = False) -> None:
        """Read the rest of the body and drop it. Then end the request.

        counted: the outcome of the request was counted already.
        """
        if counted:
            self._outcome = ""
        try:
            with contextlib.suppress(WorkerError):
                async for _ in self._response.pieces():  # not self._rest, which a cancelled read has ended
                    pass
        finally:
            self._end()

    def _end(self) -> None:
        self._response.close()
        self._on_end(self._outcome, self._size, monotonic() - self._held_at < _DRAIN)
