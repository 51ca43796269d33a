"""Responses that several routes share."""

from typing import Final

from controller.domain.errors import StoreError
from controller.web.asgi.endpoint import Answer

NULL: Final = Answer(b"null")
EXISTS: Final = Answer(b'{"exist":true}')
UNKNOWN: Final = Answer(b'{"exist":false}')


def empty_answer(body: bytes, error: StoreError) -> Answer:
    """Return a 200 with an empty result. A header names the error."""
    return Answer(body, headers=((b"x-controller-error", error.code.encode()),))
