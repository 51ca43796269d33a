"""The routes of workers: registration and heartbeats."""

from controller.security.access import Caller
from controller.web.asgi.endpoint import Answer
from controller.web.routes.answers import EXISTS, NULL, UNKNOWN
from controller.web.schemas import fastchat as schemas
from controller.web.services import Services


async def register_worker(services: Services, body: bytes, hops: str, caller: Caller) -> Answer:
    """Register a worker. 502 if the worker did not return its status. 508 if the worker is this cluster itself.

    A token that is bound to workers or models registers only these.
    """
    request = schemas.parse_register(body)
    await services.membership.register(
        request.name,
        check_heart_beat=request.check_heart_beat,
        status=request.status,
        multimodal=request.multimodal,
        hops=hops,
        caller=caller,
    )
    return NULL


async def receive_heart_beat(services: Services, body: bytes, caller: Caller) -> Answer:
    """Record a heartbeat. `exist` is false only if Redis holds no such worker. While Redis is unavailable, 503."""
    name, queue_length = schemas.parse_heartbeat(body)
    caller.check_worker(name)
    known = await services.membership.heartbeat(name, queue_length)
    return EXISTS if known else UNKNOWN
