"""Builds the API document and its page."""

import base64
import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

import msgspec

from controller.domain.headers import Headers
from controller.web.openapi.page import STYLE, render

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
DOCUMENT_HEADERS: Final[Headers] = (
    (b"cache-control", b"no-cache"),  # replicas are upgraded
    (b"x-content-type-options", b"nosniff"),
)
PAGE_HEADERS: Final[Headers] = (
    *DOCUMENT_HEADERS,
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
)


class ApiPages:
    """Builds the document and the page on first use, because most replicas never serve them.

    build: returns the document. The route table contains the handlers that serve it, so it cannot be imported here.
    """

    def __init__(self, build: Callable[[], dict[str, Any]]) -> None:
        self._build = build

    @cached_property
    def _content(self) -> dict[str, Any]:
        return self._build()

    @cached_property
    def document(self) -> bytes:
        """The document in JSON."""
        return msgspec.json.encode(self._content)

    @cached_property
    def page(self) -> bytes:
        """The page in HTML."""
        return render(self._content).encode()
