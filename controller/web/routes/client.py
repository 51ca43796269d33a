"""The routes of clients: dispatch, leases and lists of models.

FastChat's clients ignore the status of a response and use its body. So dispatches and lists of models get a 200 even if
Redis is unavailable and there is no fresh snapshot. The address or the list is then empty, and the header
`x-controller-error` names the reason. The other routes return an error status.
"""

from typing import Final

from controller.domain.errors import StoreError
from controller.web.asgi.endpoint import Answer, degraded
from controller.web.routes.answers import empty_answer
from controller.web.schemas import fastchat as schemas
from controller.web.schemas.responses import Exists, Models, Released, Renewed, TotalStatus
from controller.web.services import Services

_NO_ADDRESS: Final = b'{"address":""}'
_NO_LEASE: Final = b'{"address":"","lease":""}'
_NO_MODELS: Final = b'{"models":[]}'


async def get_worker_address(services: Services, body: bytes, token: str) -> Answer:
    """Choose a worker for a request to a model, and book the request. With `lease`, it counts until the lease ends.

    With `--by-way` and without `lease`, return the address of this cluster if the model has a live worker. Nothing is
    booked until the client sends its request there.
    """
    model, lease = schemas.parse_dispatch(body)
    if lease is not False:
        return await _lease(services, model, None if lease is True else lease, token)
    try:
        if services.by_way:
            worker, snapshot_age = await services.dispatcher.find_worker(model)
            return Answer(
                b'{"address":"%s"}' % (services.by_way.encode() if worker else b""), headers=degraded(snapshot_age)
            )
        address, snapshot_age = await services.dispatcher.dispatch(model)
    except StoreError as error:
        return empty_answer(_NO_ADDRESS, error)
    return Answer(b'{"address":"%s"}' % address.encode(), headers=degraded(snapshot_age))  # a URL needs no escaping


async def _lease(services: Services, model: str, lease_time: float | None, token: str) -> Answer:
    try:
        leased, snapshot_age = await services.dispatcher.dispatch_with_lease(model, lease_time, token)
    except StoreError as error:
        return empty_answer(_NO_LEASE, error)
    return Answer(schemas.encode(leased._asdict()), headers=degraded(snapshot_age))


async def release_worker(services: Services, body: bytes) -> Answer:
    """Release a lease: its request has ended."""
    return Answer(schemas.encode(Released(await services.dispatcher.release(schemas.parse_lease(body)))))


async def renew_lease(services: Services, body: bytes) -> Answer:
    """Renew a lease for its full time, from now on."""
    return Answer(schemas.encode(Renewed(await services.dispatcher.renew(schemas.parse_lease(body)))))


async def report_failure(services: Services, body: bytes) -> Answer:
    """Report that a worker cannot be reached. It is deprioritised until its next heartbeat.

    A worker without heartbeats is deprioritised until it answers a poll.
    """
    return Answer(schemas.encode(Exists(await services.dispatcher.report_failure(schemas.parse_name(body)))))


async def list_models(services: Services, _: bytes) -> Answer:
    """List the models of all live workers."""
    return await _list(services, None)


async def list_multimodal_models(services: Services, _: bytes) -> Answer:
    """List the models of live multimodal workers."""
    return await _list(services, True)


async def list_language_models(services: Services, _: bytes) -> Answer:
    """List the models of live workers that are not multimodal."""
    return await _list(services, False)


async def _list(services: Services, multimodal: bool | None) -> Answer:
    try:
        models, snapshot_age = await services.dispatcher.list_models(multimodal)
    except StoreError as error:
        return empty_answer(_NO_MODELS, error)
    return Answer(schemas.encode(Models(models)), headers=degraded(snapshot_age))


async def worker_get_status(services: Services, _: bytes, hops: str) -> Answer:
    """Describe all live workers as one worker, for a parent controller. Return 508 to a request of this cluster."""
    status, snapshot_age = await services.membership.status(hops)
    return Answer(schemas.encode(TotalStatus.of(status)), headers=degraded(snapshot_age))
