"""Selects the headers that are forwarded: of a worker's response to the client, and of a request to the worker."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final

from controller.domain.request_ids import HEADER

Headers = tuple[tuple[bytes, bytes], ...]

_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
_REQUEST_ID: Final = HEADER.encode()  # our response has the id of the request, which the worker got, too
# X-Accel-* headers control the proxy in front of a server. A worker must not control the proxy in front of us.
_DROPPED_PREFIXES: Final = (b"proxy-", b"x-controller-", b"x-accel-")
# The client's credentials are for us. The trace context and the request id are added after a check of their form.
_NOT_FOR_ENGINES: Final = frozenset(
    {b"authorization", b"cookie", b"host", b"content-length", b"expect", b"http2-settings"}
    | {_REQUEST_ID, b"traceparent", b"tracestate"}
)
# Of headers such as X-Api-Key, X-Goog-Api-Key, Ocp-Apim-Subscription-Key and X-Auth-Token.
_CREDENTIAL_SUFFIXES: Final = (b"api-key", b"subscription-key", b"auth-token")
# A client needs these to understand the body, so they have priority if there are too many headers.
_ESSENTIAL: Final = frozenset(
    {b"content-type", b"content-encoding", b"content-length", b"content-range", b"location", b"retry-after"}
)
_DESCRIBING_ENCODED_BODY: Final = frozenset(
    {b"content-encoding", b"content-length", b"content-md5", b"content-digest", b"etag", b"accept-ranges"}
)
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}\Z")
_MAX_REMEMBERED: Final = 64  # bytes of the name of a header
_WITHOUT_BODY: Final = (204, 304)

# Common limits: http.client accepts 100 headers, aiohttp 8,190 bytes for each header, and HAProxy 15 KiB for a head.
_MAX_HEADERS: Final = 80
_MAX_HEADER_BYTES: Final = 8_000
_MAX_TOTAL_BYTES: Final = 12 * 1024
# Later versions of the standard may append parts.
_TRACE_PARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{0,200})?")
_PRINTABLE: Final = re.compile(rb"[\t\x20-\x7e]+")


def _remembered(judge: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
    """Remember what a function returns for short names. Clients choose the names, so the memory is bounded."""
    remembering = lru_cache(maxsize=1024)(judge)
    return lambda name: remembering(name) if len(name) <= _MAX_REMEMBERED else judge(name)


@_remembered
def _is_for_engines(name: bytes) -> bool:
    return bool(
        name not in _HOP_BY_HOP
        and name not in _NOT_FOR_ENGINES
        and not name.startswith(_DROPPED_PREFIXES)
        and not name.endswith(_CREDENTIAL_SUFFIXES)
        and _TOKEN.match(name)
    )


@_remembered
def _is_for_clients(name: bytes) -> bool:
    return bool(
        name not in _HOP_BY_HOP
        and name != _REQUEST_ID
        and not name.startswith(_DROPPED_PREFIXES)
        and _TOKEN.match(name)
    )


def trace_context(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of W3C Trace Context of a request, which go to the worker unchanged.

    The parts of a divided `tracestate` are joined. As the standard says, there is no trace context if `traceparent` is
    invalid or repeated. `tracestate` is left out if it has characters other than printable ASCII, or is too long.
    """
    parents = [value for name, value in headers if name == b"traceparent"]
    if len(parents) != 1 or not _TRACE_PARENT.fullmatch(parents[0]):
        return {}
    state = b",".join(value for name, value in headers if name == b"tracestate")
    found = {"traceparent": parents[0].decode()}
    if len(state) <= _MAX_HEADER_BYTES and _PRINTABLE.fullmatch(state):
        found["tracestate"] = state.decode()
    return found


def for_engine(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of a request that an engine gets. The values of a repeated header are joined, as in RFC 9110.

    The engine does not get hop-by-hop headers, credentials for the controller, and headers that the controller writes
    itself. A value that is not UTF-8 is dropped, because the HTTP client could not send it unchanged.
    """
    options = _connection_options(headers)
    joined: dict[str, str] = {}
    for name, value in headers:
        if name in options or not _is_for_engines(name) or _CONTROL.search(value):
            continue
        try:
            text = value.decode()
        except UnicodeDecodeError:
            continue
        key = name.decode()
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return joined


def _connection_options(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    return {option.strip().lower() for name, value in headers if name == b"connection" for option in value.split(b",")}


def end_to_end(headers: Iterable[tuple[bytes, bytes]], status: int) -> Headers:
    """Return the headers of a response that are meant for the client, with names in lower case.

    Duplicates are kept. Content-Length is dropped if it is not a number or if no body follows. Headers that exceed the
    limits of common clients are dropped.
    """
    lowered = [(name.lower(), value) for name, value in headers]
    options = _connection_options(lowered)
    kept = [
        (name, _CONTROL.sub(b" ", value))
        for name, value in lowered
        if name not in options
        and _is_for_clients(name)
        and (name != b"content-length" or (status not in _WITHOUT_BODY and _LENGTH.match(value)))
    ]
    return tuple(_within_limits(kept))


def _within_limits(headers: list[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    number = size = 0
    for name, value in sorted(headers, key=lambda header: header[0] not in _ESSENTIAL):
        length = len(name) + len(value)
        if number < _MAX_HEADERS and length <= _MAX_HEADER_BYTES and size + length <= _MAX_TOTAL_BYTES:
            number += 1
            size += length
            yield name, value


def without_length(headers: Headers) -> Headers:
    """Return the headers without Content-Length, for a body whose length may change."""
    return tuple(header for header in headers if header[0] != b"content-length")


def without_body(headers: Headers) -> Headers:
    """Drop the headers that describe the body, for a response whose body is replaced."""
    return tuple(header for header in headers if not header[0].startswith(b"content-") and header[0] != b"etag")


def content_coding(headers: Headers) -> bytes:
    """Return the content coding of the body in lower case, or b"" if there is none or more than one."""
    codings = [value.strip().lower() for name, value in headers if name == b"content-encoding"]
    return codings[0] if len(codings) == 1 else b""


def without_coding(headers: Headers) -> Headers:
    """Drop the headers that describe the encoded body, for a body that was decoded."""
    return tuple(header for header in headers if header[0] not in _DESCRIBING_ENCODED_BODY)


def is_encoded(headers: Headers) -> bool:
    """Return True if the body is compressed or otherwise encoded."""
    return any(name == b"content-encoding" and value.lower() not in (b"", b"identity") for name, value in headers)
