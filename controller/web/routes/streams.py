"""Responses that go on until the client disconnects, the replica ends, or the token is revoked."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

EVENT_STREAM: Final = "text/event-stream"
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}  # nginx would hold pieces back


class FollowResponse(StreamingResponse):
    """A response that is made from a subscription, which it ends with itself.

    pieces: what is sent.
    subscription: from which the pieces are made.
    """

    def __init__(
        self, pieces: AsyncIterator[str | bytes], subscription: AsyncGenerator[Any, None], media_type: str
    ) -> None:
        super().__init__(pieces, headers=_HEADERS, media_type=media_type)
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then end the subscription."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._subscription.aclose()
