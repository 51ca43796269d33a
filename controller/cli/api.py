"""The HTTP client of the commands for a running controller."""

import contextlib
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import aiohttp

from controller.cli.options import Controller
from controller.domain.errors import ControllerRefused, ControllerSilent, ControllerUnreachable
from controller.upstream.trust import trusted, warn_of_bundle

_SILENCE: Final = 60.0  # seconds without a line of a stream. An empty one comes every 15 s


class Reply(NamedTuple):
    """The response of a controller. is_degraded: it came from a snapshot, because Redis is unavailable."""

    fields: dict[str, Any]
    is_degraded: bool


async def request(controller: Controller, path: str, expected: str, body: object = None) -> dict[str, Any]:
    """Return the JSON object of a response, as request_reply()."""
    return (await request_reply(controller, path, expected, body)).fields


async def request_reply(controller: Controller, path: str, expected: str, body: object = None) -> Reply:
    """Send a GET request to a controller, or a POST request with a body. Return the response.

    expected: a field of the response. "" if the response has none: then the result is empty.

    Raises ControllerUnreachable if the response is an error, with the controller's words: ControllerRefused if its
    status is 4xx. Raises ControllerSilent if there is no response, or if it lacks the field.
    """
    url, headers = _target(controller.address, path)
    method = "GET" if body is None else "POST"
    limit = aiohttp.ClientTimeout(total=controller.timeout)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted()), timeout=limit) as session,
            session.request(method, url, json=body, headers=headers) as response,
        ):
            if response.status >= 400:
                _raise_refusal(url, response.status, await response.read())
            is_degraded = "x-controller-degraded" in response.headers
            if not expected:
                return Reply({}, is_degraded)
            fields: dict[str, Any] = await response.json()
            _ = fields[expected]
            return Reply(fields, is_degraded)
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise ControllerSilent(
            f"{url} did not return {expected or '200'}: {_reason(error, controller)}. Is the controller running, "
            "and is --controller-address right?"
        ) from error


async def follow(controller: Controller, path: str, parameters: Mapping[str, str]) -> AsyncIterator[str]:
    """Yield "" when the response begins, and then its lines, without empty ones. Ends if the connection is closed.

    Raises ControllerUnreachable if the controller cannot be reached, and ControllerRefused if its status is 4xx.
    """
    url, headers = _target(controller.address, path)
    silence = _SILENCE if parameters.get("follow") == "true" else controller.timeout
    timeout = aiohttp.ClientTimeout(connect=controller.timeout, sock_read=silence)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted()), timeout=timeout) as session,
            session.get(url, params=parameters, headers=headers) as response,
        ):
            if response.status >= 400:
                _raise_refusal(url, response.status, await response.read())
            yield ""
            async for line in response.content:
                if line.strip():
                    yield line.decode()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise ControllerUnreachable(
            f"The connection to {url} failed: {_reason(error, controller)}. Is the controller running, and is "
            "--controller-address right?"
        ) from error


def _reason(error: Exception, controller: Controller) -> str:
    if isinstance(error, TimeoutError):
        return f"no response within {controller.timeout:g} s"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return "the server does not speak TLS on this port. Try http://"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    text = str(error) or type(error).__name__
    is_broken = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | aiohttp.ClientResponseError)
    is_plain = controller.address.lower().startswith("http:")
    if is_plain and is_broken and not isinstance(error, aiohttp.ContentTypeError):
        return f"{text.rstrip('.')}. If the port is one for TLS, use https://"
    return text


def _target(controller_address: str, path: str) -> tuple[str, dict[str, str]]:
    """Return the URL of a path of the controller, and the headers of a request to it."""
    if not controller_address.lower().startswith(("http://", "https://")):
        shown = controller_address.rpartition("@")[2]
        raise ControllerUnreachable(f"--controller-address must begin with http:// or https://: {shown}")
    address, headers = _without_credentials(controller_address)
    url = f"{address.rstrip('/')}{path}"
    if url.lower().startswith("https:"):
        warn_of_bundle()
    return url, headers


def _without_credentials(controller_address: str) -> tuple[str, dict[str, str]]:
    """Return an address without the name and the token in it, for messages, and the header that has them.

    aiohttp would read them from the URL too, but its errors would show them.
    """
    try:
        parts = urlsplit(controller_address)
    except ValueError as error:
        raise ControllerUnreachable("--controller-address is not a URL such as http://localhost:21001.") from error
    credentials, _, location = parts.netloc.rpartition("@")
    if not credentials:
        return controller_address, {}
    header = f"Basic {b64encode(unquote(credentials).encode()).decode()}"
    return parts._replace(netloc=location).geturl(), {"Authorization": header}


def _raise_refusal(url: str, status: int, body: bytes) -> None:
    """Raise the error that a controller has returned."""
    message = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        message = str(json.loads(body)["error"]["message"])
    if status in (404, 405):
        message = (
            f"{message} Either --controller-address names a server that is not a controller, or the controller is of "
            "an older version, without this route."
        ).lstrip()
    if not message:
        raise ValueError(f"status {status}")
    is_final = status < 500 and status not in (408, 429)
    raise (ControllerRefused if is_final else ControllerUnreachable)(f"{url} returned status {status}: {message}")
