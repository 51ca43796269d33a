"""What operators and parent controllers call: to see the cluster, whole or in sum."""

from starlette.requests import Request
from starlette.responses import Response

from controller.metrics import Metrics
from controller.service import Controller
from controller.web import wire
from controller.web.endpoint import Answer, degraded


class AdminPlane:
    """The handlers of the operators' routes."""

    def __init__(self, controller: Controller, metrics: Metrics) -> None:
        self._controller = controller
        self._metrics = metrics

    async def worker_get_status(self, _: bytes, way: str) -> Answer:
        """All live workers as one, as a parent controller asks for it. 508 if that is this cluster itself."""
        self._controller.pass_through(way)
        status, snapshot_age = await self._controller.status()
        return Answer(wire.encode(wire.status_body(status)), headers=degraded(snapshot_age))

    async def workers(self, _: bytes) -> Answer:
        """Every live worker."""
        workers, snapshot_age = await self._controller.list_workers()
        body = wire.encode({"workers": [wire.worker_body(worker) for worker in workers]})
        return Answer(body, headers=degraded(snapshot_age))

    async def readyz(self, _: bytes) -> Answer:
        """Return 200 if this replica can serve, with the reason if it serves from a snapshot; else 503 with the reason.

        After a jump of the store's clock, the answer mentions it for as long as heartbeats last.
        """
        reason, snapshot_age = await self._controller.check()
        body: dict[str, object] = {"ready": True}
        if snapshot_age is not None:
            body["degraded"] = reason
        if self._controller.recent_clock_jump is not None:
            jump, age = self._controller.recent_clock_jump
            direction = "ahead" if jump > 0 else "back"
            body["warning"] = f"The clock of Redis was set {direction} by {abs(jump):.1f} s, {age:.0f} s ago."
        return Answer(wire.encode(body), headers=degraded(snapshot_age))

    async def test_connection(self, _: bytes) -> Answer:
        """FastChat's sign of life."""
        return Answer(b'"success"')

    async def healthz(self, _: bytes) -> Answer:
        """Whether this process answers at all; says nothing of the store."""
        return Answer(b'{"healthy":true}')

    async def metrics(self, _: Request) -> Response:
        """The counters, for Prometheus."""
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")
