"""Which headers of a worker's answer are passed on: those meant for the client, not those meant for the next hop."""

import re
from collections.abc import Iterable
from typing import Final

Headers = tuple[tuple[bytes, bytes], ...]

_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
# X-Accel-* are orders to the proxy in front of a server. In front of us, they would be orders to our proxy.
_NOT_OURS_TO_PASS: Final = (b"proxy-", b"x-controller-", b"x-accel-")
# Without these the body cannot be understood, so they come first where not all headers can be passed on.
_NEEDED: Final = frozenset(
    {b"content-type", b"content-encoding", b"content-length", b"content-range", b"location", b"retry-after"}
)
_OF_THE_CODING: Final = frozenset(
    {b"content-encoding", b"content-length", b"content-md5", b"content-digest", b"etag", b"accept-ranges"}
)
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}\Z")
_WITHOUT_BODY: Final = (204, 304)

# Limits of the HTTP clients in the field: http.client takes 100 headers, aiohttp 8,190 bytes for each, and HAProxy
# 15 KiB for a head.
_MAX_HEADERS: Final = 80
_MAX_HEADER: Final = 8_000
_MAX_IN_ALL: Final = 12 * 1024


def end_to_end(headers: Iterable[tuple[bytes, bytes]], status: int) -> Headers:
    """Return the headers of an answer that are meant for the client, with names in lower case.

    Duplicates are kept. Content-Length is left out where no body follows or where it is not a number. Headers beyond
    what common clients take are left out.
    """
    lowered = [(name.lower(), value) for name, value in headers]
    options = {
        option.strip().lower() for name, value in lowered if name == b"connection" for option in value.split(b",")
    }
    passed = [
        (name, _CONTROL.sub(b" ", value))
        for name, value in lowered
        if name not in _HOP_BY_HOP
        and name not in options
        and not name.startswith(_NOT_OURS_TO_PASS)
        and _TOKEN.match(name)
        and (name != b"content-length" or (status not in _WITHOUT_BODY and _LENGTH.match(value)))
    ]
    return tuple(_within_limits(passed))


def _within_limits(headers: list[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    number = size = 0
    for name, value in sorted(headers, key=lambda header: header[0] not in _NEEDED):  # a stable sort
        length = len(name) + len(value)
        if number < _MAX_HEADERS and length <= _MAX_HEADER and size + length <= _MAX_IN_ALL:
            number += 1
            size += length
            yield name, value


def without_length(headers: Headers) -> Headers:
    """Return the headers without Content-Length, for a body that may get another length."""
    return tuple(header for header in headers if header[0] != b"content-length")


def without_body(headers: Headers) -> Headers:
    """Return the headers without those that describe the body, for an answer that gets another body."""
    return tuple(header for header in headers if not header[0].startswith(b"content-") and header[0] != b"etag")


def coding_of(headers: Headers) -> bytes:
    """Return the one content coding of the body in lower case; b"" if there is none, or more than one."""
    codings = [value.strip().lower() for name, value in headers if name == b"content-encoding"]
    return codings[0] if len(codings) == 1 else b""


def decoded(headers: Headers) -> Headers:
    """Return the headers without those that are true only of the encoded body."""
    return tuple(header for header in headers if header[0] not in _OF_THE_CODING)


def is_encoded(headers: Headers) -> bool:
    """Return True if the body is compressed or otherwise encoded."""
    return any(name == b"content-encoding" and value.lower() not in (b"", b"identity") for name, value in headers)
