"""The id of a request. It connects the response that a client has with the log of the controller and of the worker."""

import os
import re
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final

HEADER: Final = "x-request-id"
_HEADER: Final = HEADER.encode()
# Printable ASCII without spaces, quotes and backslashes: an id is written into lines of the log as it is.
_VALID: Final = re.compile(rb"[!#-&(-\[\]-_a-~]{1,128}")

# The id of the request that runs. "" outside of requests, and in requests of the hot routes that carry no id.
current: Final[ContextVar[str]] = ContextVar("request_id", default="")


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id that a request carries. "" if it carries none, an invalid one, or more than one."""
    found = b""
    for name, value in headers:
        if name == _HEADER:
            if found:
                return ""
            found = value
    return found.decode() if found and _VALID.fullmatch(found) else ""


def new_id() -> str:
    """Return an id for a request that carries none."""
    return os.urandom(16).hex()  # as uuid4(), which takes several times as long
