"""The id of a request: read from the request or made, shown in the log, and returned to the client."""

from starlette.types import Scope

from controller.domain import request_ids
from controller.domain.headers import Headers

_HEADER = request_ids.HEADER.encode()


def identify(scope: Scope) -> str:
    """Return the id of a request. It gets one if it has none yet, and the log shows it from now on."""
    known: str = scope.get("request_id", "")
    if not known:
        known = scope["request_id"] = request_ids.given_id(scope["headers"]) or request_ids.new_id()
        request_ids.current.set(known)
    return known


def header(scope: Scope) -> Headers:
    """Return the header that tells a client the id of its request. Requests of the hot routes may have no id."""
    known: str = scope.get("request_id", "")
    return ((_HEADER, known.encode()),) if known else ()
