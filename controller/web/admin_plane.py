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
        """Whether this replica can serve: 200, or 503 with the reason. Also 200, with the reason, from a snapshot."""
        reason, snapshot_age = await self._controller.check()
        if snapshot_age is None:
            return Answer(b'{"ready":true}')
        return Answer(wire.encode({"ready": True, "degraded": reason}), headers=degraded(snapshot_age))

    async def test_connection(self, _: bytes) -> Answer:
        """FastChat's sign of life."""
        return Answer(b'"success"')

    async def healthz(self, _: bytes) -> Answer:
        """Whether this process answers at all; says nothing of the store."""
        return Answer(b'{"healthy":true}')

    async def metrics(self, _: Request) -> Response:
        """The counters, for Prometheus."""
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")
