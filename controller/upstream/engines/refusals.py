"""Puts the error responses of engines into words. Their content is not trusted."""

from typing import Final

from controller.domain.errors import WorkerUnreachable
from controller.upstream.client import WorkerAnswer
from controller.upstream.engines.reading import OtherShape, field, parse_json

# The statuses of a route that an engine does not have. A 5xx or a timeout may be over in a moment.
NO_ROUTE: Final = frozenset({404, 405, 501})
REFUSED_KEY: Final = frozenset({401, 403})
_LOOP: Final = 508  # a controller returns it to a request that its own cluster has sent
_MAX_MESSAGE: Final = 200


def refuse_own_cluster(answer: WorkerAnswer, address: str) -> None:
    """Raise WorkerUnreachable if an engine is the cluster that asks it."""
    if answer.status == _LOOP:
        raise WorkerUnreachable(
            f"{address} leads to this cluster itself, so it cannot be an engine of it. Register the addresses of the "
            "engines, or of another cluster."
        )


def refusal(answer: WorkerAnswer) -> str:
    """Return what an error response says, as the rest of a sentence: "returned status 503: Loading model"."""
    said = f"returned status {answer.status}"
    if answer.status in REFUSED_KEY:
        return f"{said}: the engine requires a key, or rejects the key that is sent"
    if 300 <= answer.status <= 399:
        return f"{said}, a redirect. Register the address to which it leads"
    message = _message(answer.body)
    return f"{said}: {message}" if message else said


def _message(body: bytes) -> str:
    """Return the message in the JSON body of an error. Each engine has it in another field."""
    try:
        value = parse_json(body)
    except OtherShape:
        return ""
    for names in (("error", "message"), ("error",), ("message",), ("detail",)):
        text = field(value, *names)
        if isinstance(text, str):
            return repr(text.strip())[1:-1][:_MAX_MESSAGE].rstrip(".")
    return ""
