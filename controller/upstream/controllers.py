"""An HTTP client for the controllers of a cluster, for the agent of an engine. It uses the first that responds."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from controller.domain.errors import ControllerBusy, ControllerRefused, ControllerUnreachable
from controller.security.parent_addresses import ParentAddress
from controller.upstream.response import UNREACHABLE, one_line
from controller.upstream.session import Body, Session

logger = logging.getLogger("controller")

_MAX_RESPONSE_BYTES: Final = 1024 * 1024
_RETRIED: Final = (408, 429)  # the statuses below 500 after which the same request may succeed
_ERROR: Final = "X-Controller-Error"  # a header with the error code, in responses without a JSON body


class _Error(msgspec.Struct):
    code: Any = None  # of another type in the responses of other servers
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

        Raises ControllerRefused if a controller would refuse the request again, ControllerBusy if one responded that it
        cannot serve the request now, and ControllerUnreachable if no address returns a valid response.
        """
        problems = []
        kind = ControllerUnreachable
        for address in tuple(self._addresses):
            try:
                return await self._post(address, path, body)
            except ControllerRefused:
                raise
            except ControllerUnreachable as error:
                problems.append(str(error))
                if isinstance(error, ControllerBusy):
                    kind = ControllerBusy
                self._addresses.remove(address)  # the others go first from now on
                self._addresses.append(address)
        raise kind(" ".join(problems))

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
            error_code, message = _parse_error(content)
            kind = ControllerUnreachable if response.status >= 500 or response.status in _RETRIED else ControllerRefused
            # A load balancer without a replica returns 503, too, but not our error codes.
            if response.status == 503 and (isinstance(error_code, str) or _ERROR in response.headers):
                kind = ControllerBusy
            raise kind(f"{url} returned status {response.status}: {address.without_secrets(message)}")
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


def _parse_error(content: bytes) -> tuple[Any, str]:
    """Return the code of an error response, or None, and its message, or its first characters."""
    try:
        error = msgspec.json.decode(content, type=_ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        error = _Error(message=content.decode("utf-8", "replace"))
    return error.code, " ".join(error.message.split())[:500]
