"""Public routes: health and readiness for load balancers and supervisors, and the API document."""

from controller.web.asgi.endpoint import Answer, degraded
from controller.web.openapi.pages import DOCUMENT_HEADERS, PAGE_HEADERS
from controller.web.schemas import fastchat as schemas
from controller.web.schemas.responses import Ready
from controller.web.services import Services


async def test_connection(_services: Services, _: bytes) -> Answer:
    """Return "success", as FastChat's controller does."""
    return Answer(b'"success"')


async def healthz(_services: Services, _: bytes) -> Answer:
    """Return 200 if this process responds. The response says nothing about Redis."""
    return Answer(b'{"healthy":true}')


async def readyz(services: Services, _: bytes) -> Answer:
    """Return 200 if this replica accepts requests, and otherwise 503 with the reason, for example a shutdown.

    In degraded mode, a 200 has the reason of it. After a jump of Redis's clock, it has a warning for
    `--heartbeat-expiration`.
    """
    readiness = services.readiness
    reason, snapshot_age = await readiness.check()
    body = Ready(True)
    if snapshot_age is not None:
        body.degraded = reason or ""
    if readiness.recent_clock_jump is not None:
        jump, age = readiness.recent_clock_jump
        direction = "ahead" if jump > 0 else "back"
        body.warning = f"The clock of Redis was set {direction} by {abs(jump):.1f} s, {age:.0f} s ago."
    return Answer(schemas.encode(body), headers=degraded(snapshot_age))


async def openapi(services: Services, _: bytes) -> Answer:
    """Return the description of this API in the format OpenAPI 3.1."""
    return Answer(services.api.document, headers=DOCUMENT_HEADERS)


async def docs(services: Services, _: bytes) -> Answer:
    """Return the description of this API as a page."""
    return Answer(services.api.page, headers=PAGE_HEADERS, content_type=b"text/html; charset=utf-8")
