"""Decompresses the bodies of workers that compress them although the request did not allow it."""

import zlib
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

_GZIP: Final = 16 + zlib.MAX_WBITS
CODINGS: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})

Read = Callable[[], Awaitable[bytes]]


class DecodedBody:
    """Decompresses a body piece by piece.

    coding: one of CODINGS.
    read: returns the next piece of the compressed body, or b"" at its end.
    limit: maximum bytes of a decompressed piece. Without it, a small body could fill the memory.
    """

    def __init__(self, coding: bytes, read: Read, limit: int) -> None:
        self._is_gzip = coding != b"deflate"
        self._read_raw = read
        self._limit = limit
        self._inflater: zlib._Decompress | None = None
        self._raw = b""  # received, but not decompressed yet
        self._ended = False  # the last member that arrived is complete

    async def read(self) -> bytes:
        """Return the next piece, or b"" at the end. Raises ClientPayloadError if the body is damaged or incomplete."""
        try:
            while True:
                if not self._raw:
                    self._raw = await self._read_raw()
                    if not self._raw:
                        return self._rest()
                if piece := self._inflate():
                    return piece
        except zlib.error as error:
            raise aiohttp.ClientPayloadError(f"the compressed body is damaged: {error}") from error

    def _inflate(self) -> bytes:
        if self._ended and not self._is_gzip:
            self._raw = b""  # data after the end of a zlib stream does not belong to it
            return b""
        if self._inflater is None or self._ended:  # a gzip file may have several members
            self._inflater = zlib.decompressobj(self._window_bits(self._raw[0]))
            self._ended = False
        piece = self._inflater.decompress(self._raw, self._limit)
        self._ended = self._inflater.eof
        self._raw = self._inflater.unused_data if self._ended else self._inflater.unconsumed_tail
        return piece

    def _window_bits(self, first: int) -> int:
        if self._is_gzip:
            return _GZIP
        # RFC 9110 defines "deflate" as the zlib format. Some servers send raw deflate data, whose first byte differs.
        return zlib.MAX_WBITS if first & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS

    def _rest(self) -> bytes:
        if self._inflater is None or self._ended:
            return b""
        rest = self._inflater.flush()
        self._ended = self._inflater.eof
        if not self._ended:
            raise aiohttp.ClientPayloadError("the compressed body is incomplete")
        return rest
