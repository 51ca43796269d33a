"""The routes of operators: draining, removing, listing and probing workers, their capacities, and metrics."""

from controller.domain.errors import StoreError
from controller.web.asgi.endpoint import Answer, degraded
from controller.web.routes.answers import EXISTS, NULL, UNKNOWN, empty_answer
from controller.web.schemas import admin
from controller.web.schemas import fastchat as schemas
from controller.web.services import Services


async def drain_worker(services: Services, body: bytes) -> Answer:
    """Stop dispatching to a worker. The requests that it has go on."""
    return EXISTS if await services.membership.drain(schemas.parse_name(body)) else UNKNOWN


async def resume_worker(services: Services, body: bytes) -> Answer:
    """Dispatch to a draining worker again."""
    return EXISTS if await services.membership.drain(schemas.parse_name(body), drain=False) else UNKNOWN


async def remove_worker(services: Services, body: bytes) -> Answer:
    """Remove a worker."""
    return EXISTS if await services.membership.remove(schemas.parse_name(body)) else UNKNOWN


async def refresh_all_workers(services: Services, _: bytes) -> Answer:
    """Probe all workers. A worker that answers is updated. A worker that fails two probes is removed.

    FastChat's API server calls this each time that one of its clients lists the models.
    """
    try:
        await services.refresher.refresh()
    except StoreError as error:
        return empty_answer(NULL.body, error)
    return NULL


async def workers(services: Services, _: bytes) -> Answer:
    """List all live workers."""
    found, snapshot_age = await services.membership.list_workers()
    body = schemas.encode({"workers": [schemas.worker_body(worker) for worker in found]})
    return Answer(body, headers=degraded(snapshot_age))


async def set_capacity(services: Services, body: bytes) -> Answer:
    """Set how many requests a worker, or each worker of a model, runs at once.

    `capacity: null` removes what was set. The next dispatch uses the new capacity. A worker need not be registered. The
    setting is kept until it is removed.
    """
    change = await services.capacities.set(*admin.parse_capacity(body))
    return Answer(schemas.encode(admin.capacity_change_body(change)))


async def capacities(services: Services, _: bytes) -> Answer:
    """List the capacities that were set for workers and models."""
    found, snapshot_age = await services.capacities.list()
    return Answer(schemas.encode(admin.capacities_body(found)), headers=degraded(snapshot_age))


async def metrics(services: Services, _: bytes) -> Answer:
    """Return the metrics in Prometheus's text format."""
    return Answer(services.metrics.render(), content_type=b"text/plain; version=0.0.4; charset=utf-8")
