"""The route table: the only place that defines which paths exist and who may call them.

The router, the hot path and the reference page of the docs are built from it.
"""

from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial
from typing import Any, Final, NamedTuple

from starlette.types import ASGIApp

from controller.security.access import Guard
from controller.security.tokens import Plane
from controller.web.asgi.endpoint import (
    BodyEndpoint,
    CallerEndpoint,
    Endpoint,
    FileEndpoint,
    ForwardEndpoint,
    HeartbeatEndpoint,
    HopEndpoint,
    QueryEndpoint,
    RegistrationEndpoint,
    TokenEndpoint,
)
from controller.web.asgi.gateway import GatewayEndpoint, ModelEndpoint
from controller.web.asgi.limits import SMALL_BODY
from controller.web.routes import admin, client, events, forward, gateway, page, public, worker
from controller.web.services import Services


class Resend(Enum):
    """Says whether a load balancer sends a request to another replica if the first one fails.

    The files in deploy/ list the routes of the first two kinds.
    """

    QUICK = auto()  # yes, also if the first replica does not respond within 2 s
    SLOW = auto()  # yes, but the route waits for Redis, workers or other replicas, so it may take longer
    NEVER = auto()  # a worker may have begun to generate, or the second response would be another one


class Route(NamedTuple):
    """One route.

    handler: takes the Services and the parts of a request that the endpoint reads. Its docstring describes the route.
    plane: the plane whose callers may use the route.
    other_planes: further planes whose callers may use the route. The handler limits what they may do.
    endpoint: the ASGI application that reads requests for the handler.
    hot: requests bypass Starlette's router.
    changes_workers: a route of clients that changes workers, as the POST routes of the other planes do.
    resend: what load balancers do if a replica fails.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    plane: Plane
    endpoint: Callable[..., BodyEndpoint] = Endpoint
    hot: bool = False
    other_planes: tuple[Plane, ...] = ()
    changes_workers: bool = False
    resend: Resend = Resend.QUICK

    @property
    def refuses_other_sites(self) -> bool:
        """True if a page of another site must not use the route through a browser."""
        return self.changes_workers or (self.method == "POST" and self.plane not in (Plane.PUBLIC, Plane.CLIENT))

    def build(self, services: Services) -> ASGIApp:
        """Return the ASGI application of the route."""
        endpoint = self.endpoint(partial(self.handler, services))
        endpoint.limits = services.limits
        endpoint.hot = self.hot
        endpoint.refuses_other_sites = self.refuses_other_sites
        if self.plane is Plane.PUBLIC:
            endpoint.max_body = SMALL_BODY  # not counted, so that strangers cannot use up --max-body-memory
        elif services.access.is_closed:
            endpoint.guard = Guard(services.access, self.plane, self.other_planes, reads_api_key=endpoint.reads_api_key)
        return endpoint


ROUTES: Final = (
    Route("POST", "/get_worker_address", client.get_worker_address, Plane.CLIENT, TokenEndpoint, hot=True),
    Route("POST", "/release_worker", client.release_worker, Plane.CLIENT, hot=True),
    Route("POST", "/renew_lease", client.renew_lease, Plane.CLIENT),
    Route("POST", "/report_failure", client.report_failure, Plane.CLIENT, changes_workers=True),
    Route("POST", "/list_models", client.list_models, Plane.CLIENT),
    Route("POST", "/list_multimodal_models", client.list_multimodal_models, Plane.CLIENT),
    Route("POST", "/list_language_models", client.list_language_models, Plane.CLIENT),
    Route(
        "POST",
        "/worker_generate_stream",
        forward.worker_generate_stream,
        Plane.CLIENT,
        ForwardEndpoint,
        resend=Resend.NEVER,
    ),
    *(
        Route("POST", path, forward.worker_generate, Plane.CLIENT, ForwardEndpoint, resend=Resend.NEVER)
        for path in ("/worker_generate", "/worker_get_embeddings")
    ),
    *(
        Route("POST", path, forward.worker_lookup, Plane.CLIENT, ForwardEndpoint, resend=Resend.NEVER)
        for path in ("/count_token", "/worker_get_conv_template", "/model_details")
    ),
    Route("GET", "/v1/models", gateway.models, Plane.CLIENT, ModelEndpoint, resend=Resend.NEVER),
    Route("GET", "/v1/models/{model:path}", gateway.model, Plane.CLIENT, ModelEndpoint, resend=Resend.NEVER),
    Route("POST", "/worker_get_status", client.worker_get_status, Plane.CLIENT, HopEndpoint),
    Route("POST", "/receive_heart_beat", worker.receive_heart_beat, Plane.WORKER, HeartbeatEndpoint, hot=True),
    Route("POST", "/register_worker", worker.register_worker, Plane.WORKER, RegistrationEndpoint, resend=Resend.SLOW),
    Route("POST", "/register_engine", worker.register_engine, Plane.WORKER, RegistrationEndpoint, resend=Resend.SLOW),
    *(
        Route("POST", path, handler, Plane.ADMIN, CallerEndpoint, other_planes=(Plane.WORKER,))
        for path, handler in (
            ("/drain_worker", admin.drain_worker),
            ("/resume_worker", admin.resume_worker),
            ("/remove_worker", admin.remove_worker),
        )
    ),
    Route(
        "POST",
        "/refresh_all_workers",
        admin.refresh_all_workers,
        Plane.ADMIN,
        CallerEndpoint,
        other_planes=(Plane.CLIENT,),
        resend=Resend.SLOW,
    ),
    Route("POST", "/set_capacity", admin.set_capacity, Plane.ADMIN, CallerEndpoint),
    Route("POST", "/set_model_route", admin.set_model_route, Plane.ADMIN, CallerEndpoint, resend=Resend.SLOW),
    Route("POST", "/remove_model_route", admin.remove_model_route, Plane.ADMIN, CallerEndpoint, resend=Resend.NEVER),
    Route("POST", "/create_token", admin.create_token, Plane.ADMIN, CallerEndpoint, resend=Resend.NEVER),
    Route("POST", "/revoke_token", admin.revoke_token, Plane.ADMIN, CallerEndpoint, resend=Resend.NEVER),
    Route("GET", "/tokens", admin.tokens, Plane.ADMIN),
    Route("GET", "/capacities", admin.capacities, Plane.ADMIN),
    Route("GET", "/model_routes", admin.model_routes, Plane.ADMIN),
    Route("GET", "/workers", admin.workers, Plane.ADMIN),
    Route("GET", "/engines", admin.engines, Plane.ADMIN, resend=Resend.SLOW),
    Route("GET", "/replicas", admin.replicas, Plane.ADMIN),
    Route("GET", "/explain", admin.explain, Plane.ADMIN, QueryEndpoint),
    Route("GET", "/overview", page.overview, Plane.ADMIN, QueryEndpoint, resend=Resend.NEVER),
    Route("GET", "/events", events.events, Plane.ADMIN, QueryEndpoint, resend=Resend.NEVER),
    Route("GET", "/diagnosis", admin.diagnosis, Plane.ADMIN),
    Route("GET", "/metrics", admin.metrics, Plane.ADMIN),
    *(
        Route("GET", path, page.page, Plane.PUBLIC, FileEndpoint, resend=Resend.NEVER)
        for path in (*page.PAGES, "/page/{file:path}")
    ),
    Route("GET", "/test_connection", public.test_connection, Plane.PUBLIC),
    Route("GET", "/healthz", public.healthz, Plane.PUBLIC),
    Route("GET", "/readyz", public.readyz, Plane.PUBLIC),
    Route("GET", "/openapi.json", public.openapi, Plane.PUBLIC),
    Route("GET", "/docs", public.docs, Plane.PUBLIC),
)

# POST to any path that is not in the table. It is forwarded if --forward-paths has the path. Otherwise the client gets
# a 404.
FALLBACK: Final = Route("POST", "*", gateway.forward, Plane.CLIENT, GatewayEndpoint, resend=Resend.NEVER)
