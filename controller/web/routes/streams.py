"""Responses that continue until the client disconnects, the replica ends, or the token is revoked."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

EVENT_STREAM: Final = "text/event-stream"
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}  # nginx would hold pieces back


def wants_events(headers: Mapping[str, str]) -> bool:
    """Return True if a request accepts server-sent events."""
    for part in headers.get("accept", "").lower().split(","):
        media_type, *parameters = (each.strip() for each in part.split(";"))
        if media_type == EVENT_STREAM:
            return not any(re.fullmatch(r"q=0(\.0*)?", each) for each in parameters)
    return False


class FollowResponse(StreamingResponse):
    """A response that is made from a subscription, which it ends with itself.

    pieces: what is sent.
    subscription: from which the pieces are made.
    """

    def __init__(
        self, pieces: AsyncIterator[str | bytes | memoryview], subscription: AsyncGenerator[Any, None], media_type: str
    ) -> None:
        super().__init__(pieces, headers=_HEADERS, media_type=media_type)
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then end the subscription. The response to HEAD has no body, and ends at once."""
        try:
            if scope["method"] == "HEAD":
                await Response(headers=dict(self.headers))(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
        finally:
            await self._subscription.aclose()
