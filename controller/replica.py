"""The composition root: builds all objects of one replica from the settings."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from controller.availability.batches import Batches
from controller.availability.degraded import DegradedMode
from controller.availability.known_models import KnownModels
from controller.availability.readiness import Readiness
from controller.availability.reconciler import Reconciler
from controller.availability.snapshots import SnapshotManager
from controller.dispatch.affinity_rules import AffinityRules
from controller.dispatch.dispatcher import Dispatcher
from controller.dispatch.explanation import Explainer
from controller.domain.worker import worker_name
from controller.fleet.capacities import Capacities
from controller.fleet.diagnosis import Diagnostician
from controller.fleet.discovery import Discovery
from controller.fleet.engine_poller import EnginePoller
from controller.fleet.engine_sources import sources_of
from controller.fleet.engines import Engines
from controller.fleet.events import EventFeed
from controller.fleet.membership import Membership
from controller.fleet.model_routes import ModelRoutes
from controller.fleet.overview import Overview
from controller.fleet.parents import Parents
from controller.fleet.poller import Poller
from controller.fleet.refresh import Refresher
from controller.fleet.replicas import Replicas
from controller.fleet.sweeper import Sweeper
from controller.fleet.telemetry import Telemetry
from controller.fleet.tokens import Tokens
from controller.metrics import Metrics
from controller.proxy.bookings import Bookings
from controller.proxy.engine_models import EngineModels
from controller.proxy.fastchat_models import FastChatModels
from controller.proxy.forwarder import Forwarder
from controller.proxy.gateway import Gateway
from controller.proxy.retry_budget import RetryBudget
from controller.proxy.running import MIB, RunningForwards
from controller.proxy.trials import Trials
from controller.security.access import Access
from controller.security.audit import Audit
from controller.security.forward_paths import ForwardPaths
from controller.security.upstream_tokens import UpstreamTokens
from controller.security.worker_addresses import WorkerAddresses
from controller.settings import Settings
from controller.store import scripts
from controller.store.connection import connect
from controller.store.registry import Registry
from controller.store_url import StoreUrl
from controller.upstream.client import WorkerClient
from controller.web.app import build_app
from controller.web.asgi.access_log import AccessLog
from controller.web.asgi.limits import RequestLimits
from controller.web.openapi.document import build as build_document
from controller.web.openapi.pages import ApiPages
from controller.web.services import Services

if TYPE_CHECKING:
    from controller.tracing import Tracing


class Replica:
    """All objects of one replica. Replicas share their state in Redis, so any replica can serve any request.

    Create and close it in the running event loop.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        workers: WorkerClient,
        metrics: Metrics,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._settings = settings
        self._tracing = tracing
        self.registry = registry
        self.workers = workers
        self.metrics = metrics
        self.audit = Audit()
        self.access = Access(settings.access_rules, self.audit)
        self.reconciler = Reconciler(registry)
        replica_id = secrets.token_hex(8)
        self.snapshots = SnapshotManager(settings, registry, self.reconciler, metrics, replica_id)
        self.breaker = self.snapshots.breaker
        self.degraded = DegradedMode(settings, self.snapshots, self.reconciler)
        self.events = EventFeed(self.breaker, registry)
        self.audit.add_sink(self.events.record_audit)
        self.batches = Batches(self.breaker, registry, metrics, self.reconciler)
        self.readiness = Readiness(self.batches, self.snapshots)
        make_dispatcher = tracing.dispatcher if tracing else Dispatcher
        self.dispatcher = make_dispatcher(settings, registry, self.batches, self.snapshots, self.degraded, metrics)
        self.membership = Membership(settings, self.batches, self.snapshots, workers, metrics, self.audit)
        self.capacities = Capacities(self.breaker, registry, self.snapshots, self.audit)
        self.model_routes = ModelRoutes(self.breaker, registry, self.audit)
        self.tokens = Tokens(self.breaker, registry, self.access, self.audit, settings.tokens_file)
        self.sweeper = Sweeper(self.breaker, registry, metrics, settings.sweep_interval)
        self.replicas = Replicas(settings, self.breaker, registry, replica_id)
        self.diagnostician = Diagnostician(settings, registry, self.snapshots, self.replicas)
        self.poller = Poller(
            self.batches,
            workers,
            metrics,
            self.replicas,
            settings.poll_interval,
            self.snapshots.workers,
        )
        self.engine_poller = EnginePoller(
            registry,
            self.snapshots,
            self.batches,
            workers,
            metrics,
            self.replicas,
            settings.engine_poll_interval,
            settings.engine_expiration,
            self.events.record,
        )
        self.snapshots.recovery.update_engines = self.engine_poller.entries.update
        self.snapshots.recovery.engine_time_left = self.engine_poller.time_left
        self.engines = Engines(
            settings,
            self.breaker,
            registry,
            self.batches,
            self.snapshots,
            workers,
            self.engine_poller,
            metrics,
            self.audit,
        )
        self.discovery = Discovery(
            self.breaker,
            registry,
            self.batches,
            self.engines,
            self.engine_poller,
            self.replicas.id,
            sources_of(settings),
        )
        self.refresher = Refresher(
            self.breaker,
            registry,
            workers,
            metrics,
            settings.probe_timeout,
            self.access,
            self.engine_poller.refresh,
        )
        self.breaker.on_close = self._record_outage
        workers.cluster_id = self._cluster_id
        self.parents = Parents(
            registry,
            self.snapshots,
            settings.parent_addresses,
            settings.advertise or "",
            settings.parent_interval,
            self.events.record,
            metrics,
        )
        self.known_models = KnownModels(
            self.snapshots, registry, lambda: {*self.model_routes.names(), *self.engine_poller.named_models()}
        )
        self.overview = Overview(
            settings.dispatch_method,
            metrics,
            self.snapshots,
            self.replicas,
            self.parents,
            lambda: self.engine_poller.entries.entries,
            self.known_models,
        )
        self.bookings = Bookings(self.dispatcher, settings.lease_time)
        self.running = RunningForwards(metrics, settings.max_forwards, (settings.max_body_memory or 512) * MIB // 2)
        self.forwarder = Forwarder(
            workers, self.bookings, self.running, metrics, self._cluster_id, settings.forward_tries
        )
        self.trials = Trials(registry, self.snapshots, self.replicas.id)
        self.gateway = Gateway(
            self.dispatcher,
            self.snapshots,
            self.known_models,
            EngineModels(
                self.dispatcher,
                workers,
                self.snapshots,
                self.bookings,
                self.running,
                RetryBudget(settings.retry_budget, lambda: len(self.replicas.ids)),
                self.trials,
                AffinityRules.of(settings),
                metrics,
                settings.worker_timeout,
            ),
            FastChatModels(self.forwarder, settings.worker_timeout),
            self._cluster_id,
            settings.forward_tries,
            self.model_routes.candidates,
            self.model_routes.names,
        )
        self.telemetry = Telemetry(
            settings,
            metrics,
            self.snapshots,
            self.known_models,
            self.replicas,
            self.events,
            registry,
            lambda: self.running.count,
        )
        metrics.add(self.telemetry)
        metrics.measure_scripts(scripts.names())
        registry.on_run = metrics.observe_script
        self.limits = RequestLimits.of(settings, metrics)
        self.services = Services(
            dispatcher=self.dispatcher,
            explainer=Explainer(settings, registry, self.batches, self.snapshots),
            forwarder=self.forwarder,
            gateway=self.gateway,
            membership=self.membership,
            engines=self.engines,
            capacities=self.capacities,
            model_routes=self.model_routes,
            known_models=self.known_models,
            metrics=metrics,
            readiness=self.readiness,
            refresher=self.refresher,
            replicas=self.replicas,
            access=self.access,
            tokens=self.tokens,
            events=self.events,
            overview=self.overview,
            diagnostician=self.diagnostician,
            forward_paths=ForwardPaths(settings.forward_paths),
            limits=self.limits,
            api=ApiPages(build_document),
            by_way=worker_name(settings.advertise) if settings.by_way and settings.advertise else "",
        )

    def app(self, *background: Callable[[], Awaitable[None]]) -> ASGIApp:
        """Return the ASGI application. It runs the background tasks of the replica and those in `background`."""
        app = build_app(self.services, [*self.background(), *background], self.close)
        if self._tracing:
            app = self._tracing.app(app, self.access, self.services.forward_paths)
        return AccessLog(app, self.access) if self._settings.access_log else app

    def background(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """Return the background tasks: functions that run until they return, or are cancelled."""
        return (
            self.sweeper.run,
            self.snapshots.run,
            self.replicas.run,
            self.telemetry.run,
            self.poller.run,
            self.engine_poller.run,
            self.discovery.run,
            self.parents.run,
            self.capacities.run,
            self.model_routes.run,
            self.tokens.run,
            self.events.run_recording,
            self.events.run_reading,
            self.overview.run,
            self.known_models.run,
        )

    def _cluster_id(self) -> str:
        return self.snapshots.cluster_id

    def _record_outage(self, seconds: float, reason: str) -> None:
        self.events.record("store_recovered", replica=self.replicas.name, seconds=f"{seconds:.1f}", reason=reason)

    def begin_shutdown(self) -> None:
        """Become unready. The replica keeps serving."""
        self.readiness.begin_shutdown()

    def stop_waiting(self) -> None:
        """Fail the registrations that wait for Redis, do not delay others, and end the streams of events and pages."""
        self.limits.registrations.stop()
        self.membership.stop_waiting()
        self.events.stop()
        self.overview.stop()

    def end_streams(self) -> None:
        """End all forwarded streams. Each client gets a final error frame."""
        self.workers.end_streams()

    async def close(self) -> None:
        """Finish the background work and close all connections."""
        await self.running.close(self._settings.shutdown_timeout)
        await self.bookings.close(self._settings.redis_timeout)
        await self.trials.close()
        await self.refresher.close()
        await self.poller.close()
        await self.discovery.close()
        await self.replicas.close()
        await self.parents.close()
        await self.events.close()
        await self.snapshots.close()
        await self.workers.close()
        await self.registry.close()
        if self._tracing:
            await self._tracing.close()


def create_registry(settings: Settings, store: StoreUrl) -> Registry:
    """Return the registry in the Redis that `store` names."""
    decays = settings.booking_decay == "on"
    return Registry(
        connect(store, settings.redis_timeout),
        settings.namespace,
        settings.heartbeat_expiration,
        settings.redis_timeout,
        engine_expiration=settings.engine_expiration,
        booking_decay=decays,
        # Without decay, a report replaces all bookings, as FastChat does.
        booking_delay=settings.booking_delay if decays else 0.0,
        default_capacities=settings.default_capacities,
        max_workers=settings.max_workers,
        max_leases=settings.max_leases,
        max_workers_per_token=settings.max_workers_per_token,
        max_leases_per_token=settings.max_leases_per_token,
        affinity_ttl=settings.affinity_ttl,
        max_affinity_keys=settings.max_affinity_keys,
    )


def create_worker_client(settings: Settings, tracing: "Tracing | None" = None) -> WorkerClient:
    """Return the client for workers. Call this in the running event loop."""
    make_client = tracing.worker_client if tracing else WorkerClient
    return make_client(
        settings.probe_timeout,
        settings.worker_timeout,
        WorkerAddresses(settings.worker_allow),
        UpstreamTokens(settings.upstream_tokens_file),
        settings.connect_timeout,
        settings.first_byte_timeout,
    )


def create_replica(settings: Settings, store: StoreUrl, metrics: Metrics) -> Replica:
    """Return a replica on the Redis that `store` names. Call this in the running event loop."""
    tracing = None
    if settings.tracing:
        from controller.tracing import Tracing  # imported only here, because it needs packages that are optional

        tracing = Tracing()
    workers = create_worker_client(settings, tracing)
    return Replica(settings, create_registry(settings, store), workers, metrics, tracing)
