"""The HTTP client of the commands for a running controller."""

import contextlib
import json
from typing import Any, Final

import aiohttp

from controller.domain.errors import ControllerUnreachable
from controller.upstream.trust import trusted, warn_of_bundle

_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


async def request(controller_address: str, path: str, expected: str, body: object = None) -> dict[str, Any]:
    """Send a GET request to a controller, or a POST request with a body. Return the JSON object of the response.

    expected: a field of the response.

    Raises ControllerUnreachable if the response is an error or lacks the field. The message has the controller's words.
    """
    if not controller_address.lower().startswith(("http://", "https://")):
        raise ControllerUnreachable(f"--controller-address must begin with http:// or https://: {controller_address}")
    url = f"{controller_address.rstrip('/')}{path}"
    if url.lower().startswith("https:"):
        warn_of_bundle()
    method = "GET" if body is None else "POST"
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted()), timeout=_TIMEOUT) as session,
            session.request(method, url, json=body) as response,
        ):
            if response.status >= 400:
                _raise_refusal(url, response.status, await response.read())
            fields: dict[str, Any] = await response.json()
            _ = fields[expected]
            return fields
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise ControllerUnreachable(
            f"{url} did not return {expected}: {error or type(error).__name__}. Is the controller running, and is "
            "--controller-address right?"
        ) from error


def _raise_refusal(url: str, status: int, body: bytes) -> None:
    """Raise the error that a controller has returned."""
    message = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        message = str(json.loads(body)["error"]["message"])
    if status in (404, 405):
        message = f"{message} Run a version of the controller that has this route.".lstrip()
    if not message:
        raise ValueError(f"status {status}")
    raise ControllerUnreachable(f"{url} returned status {status}: {message}")
