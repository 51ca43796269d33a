"""An HTTP client for workers. It sends the requests of FastChat's controller and does not trust the responses."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from math import inf
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

import aiohttp

from controller.domain.errors import InvalidInput, StreamBroken, WorkerUnreachable
from controller.domain.hops import hop_headers
from controller.domain.worker import WorkerStatus
from controller.json_bodies import read_status
from controller.security.upstream_tokens import UpstreamTokens
from controller.security.worker_addresses import WorkerAddresses
from controller.upstream.decoding import CODINGS, DecodedBody
from controller.upstream.response import (
    FIRST_BYTE,
    GRACE_PERIOD,
    UNREACHABLE,
    ReadRules,
    WorkerResponse,
    one_line,
    upstream_errors,
)
from controller.upstream.session import Body, Response, Session, location

_MAX_STATUS_BYTES: Final = 1024 * 1024
# The metrics of a vLLM server have about 60 KB for each of its engines.
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
CONNECT_TIMEOUT: Final = 2.0  # seconds, which allow for one lost packet
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class WorkerAnswer(NamedTuple):
    """The response to a GET request: its status, its headers and its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class WorkerClient:
    """An HTTP client for workers. Create and close it in the running event loop.

    probe_timeout: for a whole status call, in seconds.
    worker_timeout: for each wait for a worker, in seconds: for the head of its response, and for each read of the body.
    connect_timeout: for the name lookup and the connection, in seconds. worker_timeout limits it, too.
    first_byte_timeout: for the wait for the first piece of an engine's response, in seconds. 0: no limit.
    addresses: the rule for the addresses of workers. By default, --worker-allow is not set.
    tokens: the tokens that workers require. By default, there are none.
    streams_ended: True after end_streams().
    """

    def __init__(
        self,
        probe_timeout: float,
        worker_timeout: float,
        addresses: WorkerAddresses | None = None,
        tokens: UpstreamTokens | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        first_byte_timeout: float = 0.0,
    ) -> None:
        self._probe_timeout = probe_timeout
        self._worker_timeout = worker_timeout
        self._connect_timeout = min(connect_timeout, worker_timeout)
        self._first_byte_timeout = first_byte_timeout or inf
        self.streams_ended = False
        self._waits: set[_Wait] = set()
        self._responses: set[WorkerResponse] = set()
        self._addresses = addresses or WorkerAddresses()
        self._tokens = tokens or UpstreamTokens()
        self._session = Session(self._addresses)
        self.cluster_id: Callable[[], str] = str  # returns the id of this cluster for the hop list, "" if it has none

    def end_streams(self) -> None:
        """Make all running requests raise StreamBroken, including those whose responses have not begun."""
        self.streams_ended = True
        for wait in self._waits:
            wait.end()
        for response in self._responses:
            response.fail(_shutdown_error())

    async def close(self) -> None:
        """Close all responses and connections."""
        for response in list(self._responses):
            response.close()
        await self._session.close()

    async def check_address(self, name: str) -> None:
        """Look up the host of a worker and check its addresses. Raises WorkerNotAllowed if one is not allowed.

        With --worker-allow, raises WorkerUnreachable if the host name has no address and no pattern covers the name.
        The worker's clients might later resolve the name to an address that was never checked.
        """
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._session.resolve(name)
        except (*UNREACHABLE, TimeoutError) as error:
            if not self._addresses.allows_name(*location(name)):
                raise WorkerUnreachable(
                    f"The host name of {name} was not found, so it cannot be compared with --worker-allow: "
                    f"{one_line(error)}. Register again when it can be looked up from the controller, or under an "
                    "address."
                ) from error

    def _with_token(self, name: str, headers: Mapping[str, str], key: str = "") -> Mapping[str, str]:
        token = f"Bearer {key}" if key else self._tokens.header(name)
        return {**headers, "Authorization": token} if token else headers

    async def status(self, name: str, headers: Mapping[str, str] = NO_HEADERS) -> WorkerStatus:
        """Return a worker's status (FastChat: `/worker_get_status`).

        Raises WorkerUnreachable unless the worker returns 200 and a valid status, within the timeout and the size
        limit. Redirects are not followed. Raises WorkerNotAllowed if its address is not allowed.
        """
        url = f"{name}/worker_get_status"
        try:
            async with asyncio.timeout(self._probe_timeout):
                body = await self._status_body(url, self._with_token(name, headers))
            return read_status(body)
        except TimeoutError as error:
            raise WorkerUnreachable(f"{url} did not respond within {self._probe_timeout:g} s.") from error
        except InvalidInput as error:
            raise WorkerUnreachable(f"{url} returned an invalid worker status: {one_line(error)}") from error
        except UNREACHABLE as error:
            raise WorkerUnreachable(f"{url} cannot be reached: {one_line(error)}") from error

    async def _status_body(self, url: str, headers: Mapping[str, str]) -> bytes:
        async with await self._session.post(url, None, headers) as response:
            if response.status != 200:
                raise WorkerUnreachable(f"{url} returned status {response.status} instead of 200.")
            return await _whole_body(url, response, _MAX_STATUS_BYTES)

    async def get(self, name: str, path: str, key: str = "", time_limit: float | None = None) -> WorkerAnswer:
        """Send a GET request to a worker, and return the response, whatever its status is.

        The request has this cluster as its hop list: the worker may be another cluster.

        path: with its query.
        key: sent as a bearer token. By default, the token that --upstream-tokens-file has for the worker is sent.
        time_limit: in seconds. By default, and at most, that of a status call.

        Raises WorkerUnreachable unless a whole response arrives within the timeout and the size
        limit. Redirects are not followed. Raises WorkerNotAllowed if the worker's address is not allowed.
        """
        url = name + path
        limit = self._probe_timeout if time_limit is None else min(time_limit, self._probe_timeout)
        cluster = self.cluster_id()
        headers = self._with_token(name, hop_headers("", cluster) if cluster else NO_HEADERS, key)
        try:
            async with (
                asyncio.timeout(limit),
                await self._session.get(url, headers) as response,
            ):
                body = await _whole_body(url, response, _MAX_ANSWER_BYTES)
                return WorkerAnswer(response.status, response.headers, body)
        except TimeoutError as error:
            raise WorkerUnreachable(f"{url} did not respond within {limit:g} s.") from error
        except UNREACHABLE as error:
            raise WorkerUnreachable(f"{url} cannot be reached: {one_line(error)}") from error

    async def post(self, name: str, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> WorkerResponse:
        """Send a JSON body to a worker. Return the response when its head has arrived. The caller must close it.

        Raises WorkerUnreachable if the connection fails, and WorkerSilent or StreamBroken if no valid head arrives.
        """
        url, sent = name + path, Body(body)
        request = self._session.post(url, sent, self._with_token(name, headers), self._connect_timeout)
        return await self._respond(url, request, sent, self._worker_timeout, ReadRules(self._worker_timeout))

    async def post_to_engine(
        self,
        name: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str],
        key: str = "",
        trial_limit: float = inf,
    ) -> WorkerResponse:
        """Send a body of any type to an engine, otherwise like post().

        target: path and query, encoded.
        headers: all that the engine gets, besides those that describe the connection.
        key: as in get().
        trial_limit: for the wait for the first piece in seconds, if it is less than first_byte_timeout.

        The body of the response stays as the engine encodes it. The wait until its first piece is limited by
        first_byte_timeout instead of worker_timeout. Raises as post().
        """
        sent = Body(body)
        limit, setting = self._first_byte_timeout, FIRST_BYTE
        if trial_limit < limit:
            limit, setting = trial_limit, f"the {trial_limit:g} s of a trial"
        rules = ReadRules(self._worker_timeout, limit, setting, decompresses=False)
        url = name + target
        request = self._session.post_as_is(url, sent, self._with_token(name, headers, key), self._connect_timeout)
        logged = url.partition("?")[0]  # the query is the client's, and may have a secret
        return await self._respond(logged, request, sent, limit, rules, setting)

    async def _respond(
        self,
        url: str,
        request: Coroutine[Any, Any, Response],
        sent: Body,
        limit: float,
        rules: ReadRules,
        setting: str = "",
    ) -> WorkerResponse:
        """Return a response when its head has arrived, within `limit` seconds, which `setting` sets."""
        with upstream_errors(url):
            sent.progress_at += self._connect_timeout  # the connection has a timeout of its own
            response = await self._head(request, sent, limit, setting)
        if not 200 <= response.status <= 599:
            response.close()
            raise StreamBroken(f"{url} returned the invalid HTTP status {response.status}.")
        coding = response.headers.get("Transfer-Encoding", "chunked").strip().lower()
        if coding not in ("chunked", "identity"):
            response.close()
            raise StreamBroken(f"{url} used Transfer-Encoding {coding[:100]!r}, which the request did not allow.")
        if rules.first_timeout is not None:  # the wait for the head is a part of it
            left = max(GRACE_PERIOD, sent.progress_at + rules.first_timeout - time.monotonic())
            rules = ReadRules(rules.timeout, left, rules.first_setting, rules.decompresses)
        opened = self._opened(url, response, rules)
        self._responses.add(opened)
        return opened

    def _opened(self, url: str, response: Response, rules: ReadRules) -> WorkerResponse:
        return WorkerResponse(url, response, rules, self._responses.discard)

    async def _head(self, request: Coroutine[Any, Any, Response], body: Body, limit: float, setting: str) -> Response:
        """Wait for the head of a response. Raises an error if end_streams() is called meanwhile."""
        if self.streams_ended:
            request.close()
            raise _shutdown_error()
        wait = _Wait(body, limit)
        self._waits.add(wait)
        try:
            return await request
        except BaseException as error:
            if wait.has_ended() and isinstance(error, asyncio.CancelledError):
                raise (_shutdown_error() if self.streams_ended else TimeoutError(setting)) from error
            raise
        finally:
            wait.stop()
            self._waits.discard(wait)


class _Wait:
    """A wait for the head of a response, for `limit` seconds.

    The time starts again with each part of the body that is sent, because a busy worker may receive a large body
    slowly. This does what asyncio.timeout() does, at a part of its cost for a wait without a limit.
    """

    def __init__(self, body: Body, limit: float) -> None:
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._ended = False
        self._body = body
        self._limit = limit
        self._grace_used_at = 0.0  # the progress that got the grace period
        self._timer: asyncio.TimerHandle | None = None
        if limit != inf:
            # The connection may take less than its timeout, which is left until the body is sent.
            self._timer = asyncio.get_running_loop().call_later(limit, self._check)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def end(self) -> None:
        """End the wait: cancel its task."""
        if not self._ended:
            self._ended = True
            self._task.cancel()

    def has_ended(self) -> bool:
        """Return True if end() has cancelled the task, and nothing else. The task then continues. Call this once."""
        return self._ended and self._task.uncancel() <= self._cancelling

    def _check(self) -> None:
        progress_at = self._body.progress_at
        left = progress_at + self._limit - time.monotonic()
        if left <= 0 and self._grace_used_at != progress_at:
            self._grace_used_at, left = progress_at, GRACE_PERIOD
        if left <= 0:
            self.end()
        else:
            self._timer = asyncio.get_running_loop().call_later(min(left, self._limit), self._check)


async def _whole_body(url: str, response: Response, limit: int) -> bytes:
    """Return the body of a response. Raises WorkerUnreachable if it has more than `limit` bytes."""
    body = bytearray()
    read = response.content.readany
    coding = response.headers.get("Content-Encoding", "").strip().lower().encode("latin-1", "replace")
    if coding in CODINGS:
        read = DecodedBody(coding, read, limit).read
    while chunk := await read():
        body += chunk
        if len(body) > limit:
            raise WorkerUnreachable(f"{url} returned more than {limit} bytes.")
    return bytes(body)


def _shutdown_error() -> aiohttp.ClientConnectionError:
    return aiohttp.ClientConnectionError("this replica is shutting down")
