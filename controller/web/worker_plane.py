"""What workers call: to register, to send heartbeats, to leave."""

from controller.service import Controller
from controller.web import wire
from controller.web.endpoint import Answer

_NULL = Answer(b"null")
_KNOWN = Answer(b'{"exist":true}')
_UNKNOWN = Answer(b'{"exist":false}')


class WorkerPlane:
    """The handlers of the workers' routes; each takes a body and returns an answer."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def register_worker(self, body: bytes, way: str) -> Answer:
        """Register a worker. 502 if it had to be asked for its status and did not tell it; 508 if that is us."""
        request = wire.parse_register(body)
        await self._controller.register(
            request.name,
            check_heart_beat=request.check_heart_beat,
            status=request.status,
            multimodal=request.multimodal,
            way=way,
        )
        return _NULL

    async def receive_heart_beat(self, body: bytes) -> Answer:
        """Take a heartbeat. "exist" is false only if the store has said so. Without the store the answer is a 503."""
        known = await self._controller.heartbeat(*wire.parse_heartbeat(body))
        return _KNOWN if known else _UNKNOWN

    async def remove_worker(self, body: bytes) -> Answer:
        """Remove a worker."""
        return _KNOWN if await self._controller.remove(wire.parse_name(body)) else _UNKNOWN

    async def drain_worker(self, body: bytes) -> Answer:
        """Send a worker no new requests."""
        return _KNOWN if await self._controller.drain(wire.parse_name(body)) else _UNKNOWN

    async def resume_worker(self, body: bytes) -> Answer:
        """Send a worker that drains new requests again."""
        return _KNOWN if await self._controller.drain(wire.parse_name(body), drain=False) else _UNKNOWN
