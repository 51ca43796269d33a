"""The secret in the header Authorization of a request."""

import base64
import binascii
from typing import Final

_MAX_HEADER: Final = 2_048  # bytes


def secret_of(header: bytes) -> str | None:
    """Return the secret in a header. None if there is none.

    `Bearer SECRET` and `Basic base64(NAME:SECRET)` are read. `requests`, `aiohttp` and `httpx` turn a URL such as
    http://NAME:SECRET@host:21001 into the second form, so FastChat's programs can authenticate. The name is ignored.
    """
    scheme, _, value = header.strip().partition(b" ")
    value = value.strip()
    if len(header) > _MAX_HEADER:
        return None
    match scheme.lower():
        case b"bearer":
            return value.decode("utf-8", "surrogateescape") or None
        case b"basic":
            try:
                decoded = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                return None
            return decoded.partition(b":")[2].decode("utf-8", "surrogateescape") or None
    return None
