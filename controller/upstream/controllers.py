"""An HTTP client for the controllers of a cluster, for the agent of an engine. It uses the first that responds."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from controller.domain.errors import ControllerRefused, ControllerUnreachable
from controller.security.parent_addresses import ParentAddress
from controller.upstream.response import UNREACHABLE, one_line
from controller.upstream.session import Body, Session

logger = logging.getLogger("controller")

_MAX_RESPONSE_BYTES: Final = 1024 * 1024
_RETRIED: Final = (408, 429)  # the statuses below 500 after which the same request may succeed


class _Error(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _Error


class Controllers:
    """The replicas of a cluster, or load balancers before them. Create and close it in the running event loop.

    addresses: at least one. The one that responded last is used as long as it responds.
    timeout: for the response of one of them, in seconds.
    """

    def __init__(self, addresses: Sequence[ParentAddress], timeout: float) -> None:
        self._addresses = list(addresses)
        self._timeout = timeout
        self._session = Session()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object of a response. Tries all addresses once.

        Raises ControllerRefused if a controller would refuse the request again, and ControllerUnreachable if no
        address returns a valid response.
        """
        problems = []
        for address in tuple(self._addresses):
            try:
                return await self._post(address, path, body)
            except ControllerRefused:
                raise
            except ControllerUnreachable as error:
                problems.append(str(error))
                self._addresses.remove(address)  # the others go first from now on
                self._addresses.append(address)
        raise ControllerUnreachable(" ".join(problems))

    async def _post(self, address: ParentAddress, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        url = address.address + path
        headers = {"Authorization": address.authorization} if address.authorization else {}
        try:
            async with (
                asyncio.timeout(self._timeout),
                await self._session.post(url, Body(msgspec.json.encode(body)), headers) as response,
            ):
                content = await _read(response.content)
        except TimeoutError as error:
            raise ControllerUnreachable(f"{url} did not respond within {self._timeout:g} s.") from error
        except UNREACHABLE as error:
            raise ControllerUnreachable(f"{url} cannot be reached: {one_line(error)}.") from error
        if response.status != 200:
            kind = ControllerUnreachable if response.status >= 500 or response.status in _RETRIED else ControllerRefused
            text = address.without_secrets(_message(content))
            raise kind(f"{url} returned status {response.status}: {text}")
        try:
            return msgspec.json.decode(content, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ControllerUnreachable(f"{url} did not return what a controller returns: {error}.") from error


async def _read(content: Any) -> bytes:
    """Return a body, or its first MiB, which is then invalid. Responses of a controller are shorter."""
    body = bytearray()
    while piece := await content.read(_MAX_RESPONSE_BYTES - len(body)):
        body += piece
    return bytes(body)


def _message(content: bytes) -> str:
    """Return the message of an error response, or its first characters."""
    try:
        message = msgspec.json.decode(content, type=_ErrorBody).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        message = content.decode("utf-8", "replace")
    return " ".join(message.split())[:500]
