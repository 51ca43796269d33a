"""The objects that route handlers use."""

from dataclasses import dataclass

from controller.availability.known_models import KnownModels
from controller.availability.readiness import Readiness
from controller.dispatch.dispatcher import Dispatcher
from controller.dispatch.explanation import Explainer
from controller.fleet.capacities import Capacities
from controller.fleet.diagnosis import Diagnostician
from controller.fleet.engines import Engines
from controller.fleet.events import EventFeed
from controller.fleet.membership import Membership
from controller.fleet.model_routes import ModelRoutes
from controller.fleet.overview import Overview
from controller.fleet.refresh import Refresher
from controller.fleet.replicas import Replicas
from controller.fleet.tokens import Tokens
from controller.metrics import Metrics
from controller.proxy.forwarder import Forwarder
from controller.proxy.gateway import Gateway
from controller.security.access import Access
from controller.security.forward_paths import ForwardPaths
from controller.web.asgi.limits import RequestLimits
from controller.web.openapi.pages import ApiPages


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of one replica that HTTP requests reach. controller/replica.py builds them.

    by_way: the address of this cluster, which clients get instead of a worker's. "" if they get a worker's.
    """

    dispatcher: Dispatcher
    explainer: Explainer
    forwarder: Forwarder
    gateway: Gateway
    membership: Membership
    engines: Engines
    capacities: Capacities
    model_routes: ModelRoutes
    known_models: KnownModels
    metrics: Metrics
    readiness: Readiness
    refresher: Refresher
    replicas: Replicas
    access: Access
    tokens: Tokens
    events: EventFeed
    overview: Overview
    diagnostician: Diagnostician
    forward_paths: ForwardPaths
    limits: RequestLimits
    api: ApiPages
    by_way: str = ""
