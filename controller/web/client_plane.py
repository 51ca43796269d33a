"""What clients call: which models there are, and which worker to use.

While the store is away, answers are found in a snapshot, and a header says how old that is. And should there be none:
FastChat's clients take the body of an answer for a worker's address whatever its status is. So a well-formed request
is then answered 200 all the same, with "no worker" or "no models"; another header says that it is so.
"""

from typing import Final

from controller.domain.errors import StoreError
from controller.service import Controller
from controller.web import wire
from controller.web.endpoint import Answer, degraded

_NO_ADDRESS: Final = b'{"address":""}'
_NO_LEASE: Final = b'{"address":"","lease":""}'
_NO_MODELS: Final = b'{"models":[]}'
_NULL: Final = b"null"


class ClientPlane:
    """The handlers of the clients' routes; each takes a body and returns an answer."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def get_worker_address(self, body: bytes) -> Answer:
        """Choose a worker for a model."""
        model, lease = wire.parse_dispatch(body)
        if lease is not False:
            return await self._lease(model, None if lease is True else lease)
        try:
            address, snapshot_age = await self._controller.dispatch(model)
        except StoreError as error:
            return _without_store(_NO_ADDRESS, error)
        return Answer(b'{"address":"%s"}' % address.encode(), headers=degraded(snapshot_age))  # a URL needs no escaping

    async def _lease(self, model: str, lease_time: float | None) -> Answer:
        try:
            leased, snapshot_age = await self._controller.dispatch_with_lease(model, lease_time)
        except StoreError as error:
            return _without_store(_NO_LEASE, error)
        return Answer(wire.encode(leased._asdict()), headers=degraded(snapshot_age))

    async def release_worker(self, body: bytes) -> Answer:
        """End a lease."""
        return Answer(wire.encode({"released": await self._controller.release(wire.parse_lease(body))}))

    async def renew_lease(self, body: bytes) -> Answer:
        """Prolong a lease."""
        return Answer(wire.encode({"renewed": await self._controller.renew(wire.parse_lease(body))}))

    async def report_failure(self, body: bytes) -> Answer:
        """Put a worker behind all others."""
        return Answer(wire.encode({"exist": await self._controller.report_failure(wire.parse_name(body))}))

    async def list_models(self, _: bytes) -> Answer:
        """List the models of all live workers."""
        return await self._list(None)

    async def list_multimodal_models(self, _: bytes) -> Answer:
        """List the models of the live workers that are multimodal."""
        return await self._list(True)

    async def list_language_models(self, _: bytes) -> Answer:
        """List the models of the live workers that are not multimodal."""
        return await self._list(False)

    async def _list(self, multimodal: bool | None) -> Answer:
        try:
            models, snapshot_age = await self._controller.list_models(multimodal)
        except StoreError as error:
            return _without_store(_NO_MODELS, error)
        return Answer(wire.encode({"models": models}), headers=degraded(snapshot_age))

    async def refresh_all_workers(self, _: bytes) -> Answer:
        """Ask all workers for their status."""
        try:
            await self._controller.refresh()
        except StoreError as error:
            return _without_store(_NULL, error)
        return Answer(_NULL)


def _without_store(body: bytes, error: StoreError) -> Answer:
    """A good answer with nothing in it. A header says why."""
    return Answer(body, headers=((b"x-controller-error", error.code.encode()),))
