"""What operators and parent controllers call: to see the cluster, whole or in sum."""

from starlette.requests import Request
from starlette.responses import Response

from controller.metrics import Metrics
from controller.service import Controller
from controller.web import wire
from controller.web.endpoint import Answer


class AdminPlane:
    """The handlers of the operators' routes."""

    def __init__(self, controller: Controller, metrics: Metrics) -> None:
        self._controller = controller
        self._metrics = metrics

    async def worker_get_status(self, _: bytes) -> Answer:
        """All live workers as one, as a parent controller asks for it."""
        return Answer(wire.encode(wire.status_body(await self._controller.status())))

    async def workers(self, _: bytes) -> Answer:
        """Every live worker."""
        workers = await self._controller.list_workers()
        return Answer(wire.encode({"workers": [wire.worker_body(worker) for worker in workers]}))

    async def readyz(self, _: bytes) -> Answer:
        """Whether this replica can serve: 200, or 503 with the reason."""
        await self._controller.check()
        return Answer(b'{"ready":true}')

    async def test_connection(self, _: bytes) -> Answer:
        """FastChat's sign of life."""
        return Answer(b'"success"')

    async def healthz(self, _: bytes) -> Answer:
        """Whether this process answers at all; says nothing of the store."""
        return Answer(b'{"healthy":true}')

    async def metrics(self, _: Request) -> Response:
        """The counters, for Prometheus."""
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")
