"""Generates controller.json, the dashboard for Grafana: python -m deploy.monitoring.grafana.dashboard.

controller_cluster_* is the same on every replica, so the queries take the max. The others are counted by each `serve`.
"""

from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

from deploy.monitoring.grafana.panels import SOURCE, by_model, graph, listing, number, quantile, quantiles, rate

FILE = Path(__file__).with_name("controller.json")


def overview() -> list[Any]:
    """Return the panels that show whether the cluster serves."""
    failed = rate("controller_dispatches_total", outcome="no_worker|store_unavailable|refused", model="$model")
    dispatches = rate("controller_dispatches_total", model="$model")
    return [
        number("Live workers", "sum(max by (state) (controller_cluster_workers))", "All live workers, in every state."),
        number(
            "Models without a worker",
            "count(max by (model) (controller_cluster_model_serving_workers) == 0) or vector(0)",
            "Requests for these models fail. Runbook: ControllerModelWithoutWorker.",
            red_from=1,
        ),
        number("Replicas", "max(controller_cluster_replicas)", "Live replicas. Runbook: ControllerReplicaMissing."),
        number(
            "Degraded replicas",
            "count(controller_replica_store_available == 0) or vector(0)",
            "Replicas that dispatch from a snapshot, without Redis. Runbook: ControllerDegraded.",
            red_from=1,
        ),
        number(
            "Replicas that do not dispatch",
            "count(controller_replica_can_dispatch == 0) or vector(0)",
            "Replicas without Redis and without a fresh snapshot. Runbook: ControllerCannotDispatch.",
            red_from=1,
        ),
        number("Dispatches", dispatches, "Dispatch requests per second.", unit="reqps"),
        number(
            "Failed dispatches",
            f"({failed} or vector(0)) / clamp_min({dispatches}, 0.001)",
            "Share of the requests that got no worker. Runbook: ControllerDispatchesFail.",
            unit="percentunit",
            red_from=0.01,
        ),
        graph(
            "Dispatches by outcome",
            "degraded: chosen from a snapshot. no_worker: the model has none.",
            (rate("controller_dispatches_total", "outcome", model="$model"), "{{outcome}}"),
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Workers by state",
            "failing: requests or polls failed. drained: draining, without requests.",
            ("max by (state) (controller_cluster_workers)", "{{state}}"),
            stacked=True,
        ),
        listing(
            "Alerts",
            "Pending and firing alerts. docs/guides/runbook.md has a section for each. "
            "If all panels are empty, see Runbook: ControllerDown.",
            'ALERTS{alertname=~"Controller.+"}',
            *("Time", "Value", "__name__", "instance", "job"),
        ),
    ]


def latency() -> list[Any]:
    """Return the panels about waiting."""
    first_byte = "controller_forward_first_byte_seconds"
    return [
        graph(
            "Time of a dispatch",
            "From a request for a worker until one is chosen. Runbook: ControllerDispatchesSlow.",
            *quantiles("controller_dispatch_seconds"),
            unit="s",
        ),
        graph(
            "Time until the first byte",
            "Forwarded requests: time in the worker's queue and until the first byte of the response.",
            *quantiles(first_byte),
            unit="s",
        ),
        graph(
            "Time of the calls to Redis, p99",
            "By script. A hung Redis shows in the highest bucket.",
            (quantile(0.99, "controller_store_call_seconds", "script"), "{{script}}"),
            unit="s",
        ),
    ]


def models() -> list[Any]:
    """Return the panels about models and their workers."""
    return [
        graph(
            "Saturation",
            "Running and waiting requests per slot. Above 1, requests wait. Runbook: ControllerModelSaturated.",
            (by_model("controller_cluster_model_saturation"), "{{model}}"),
            unit="percentunit",
        ),
        graph(
            "Requests and slots",
            "Running and waiting requests, and the known slots of the workers.",
            (by_model("controller_cluster_model_queue_length"), "{{model}}: requests"),
            (by_model("controller_cluster_model_capacity"), "{{model}}: slots"),
        ),
        graph(
            "Leases",
            "Active leases. They end when the client releases them, or expire.",
            (by_model("controller_cluster_model_leases"), "{{model}}"),
        ),
        graph(
            "Workers and desired workers",
            "Desired: workers at which the saturation would be --target-utilization.",
            (by_model("controller_cluster_model_serving_workers"), "{{model}}: serving"),
            (by_model("controller_desired_workers"), "{{model}}: desired"),
        ),
        graph(
            "Workers that left",
            "Removals per minute. Runbook: ControllerWorkersExpireTogether.",
            (f"60 * {rate('controller_removals_total', 'reason')}", "{{reason}}"),
        ),
        graph(
            "Registrations and failed polls",
            "Per minute. Runbook: ControllerWorkersFlap.",
            (f"60 * {rate('controller_registrations_total', 'outcome')}", "registration: {{outcome}}"),
            (f"60 * {rate('controller_polls_total', outcome='failed')}", "failed polls"),
        ),
    ]


def forwarding() -> list[Any]:
    """Return the panels about requests that pass through the replicas."""
    return [
        graph(
            "Forwarded requests by outcome",
            "Streams and other requests per second.",
            (rate("controller_streams_total", "outcome"), "stream: {{outcome}}"),
            (rate("controller_calls_total", "outcome"), "call: {{outcome}}"),
            (rate("controller_forward_retries_total"), "retries"),
            unit="reqps",
        ),
        graph(
            "Forwarded bytes",
            "From workers to clients, per second.",
            (rate("controller_forwarded_bytes_total"), "bytes"),
            unit="Bps",
        ),
        graph(
            "Running and refused requests",
            "Refused: requests per second that a limit turned away. Runbook: ControllerRequestsRefused.",
            ("sum(controller_replica_forwards)", "running"),
            (rate("controller_refusals_total", "limit"), "refused: {{limit}}"),
        ),
    ]


def replicas() -> list[Any]:
    """Return the panels about the replicas and Redis."""
    return [
        listing(
            "Versions",
            "Runbook: ControllerVersionsDiffer.",
            "count by (version, python) (controller_build_info)",
            "Time",
        ),
        graph(
            "Processor time of the replicas",
            "A replica uses one core at most.",
            ("rate(controller_replica_cpu_seconds_total[$__rate_interval])", "{{instance}} {{replica}}"),
            unit="percentunit",
        ),
        graph(
            "Memory of the replicas",
            "Resident memory.",
            ("controller_replica_resident_memory_bytes", "{{instance}} {{replica}}"),
            unit="bytes",
        ),
        graph(
            "Memory of Redis",
            "A full Redis rejects writes. Runbook: ControllerRedisMemory.",
            ("max(controller_cluster_redis_memory_bytes)", "used"),
            ("max(controller_cluster_redis_max_memory_bytes)", "limit"),
            unit="bytes",
        ),
        graph(
            "Outages of Redis",
            "Average number of replicas in degraded mode, and failed calls to Redis per second.",
            (rate("controller_degraded_seconds_total"), "degraded"),
            (rate("controller_store_failures_total"), "failed calls"),
        ),
        graph(
            "Files and snapshots of the replicas",
            "Open files and connections, and the age of the snapshot in seconds.",
            ("sum by (instance) (controller_replica_open_fds)", "{{instance}}: files"),
            ("max by (instance) (controller_replica_snapshot_age_seconds)", "{{instance}}: snapshot age"),
        ),
    ]


def load_balancer() -> list[Any]:
    """Return the panels about the load balancer of deploy/docker-compose.yml."""
    backends = "controllers|without-checks"
    return [
        graph(
            "Responses of HAProxy",
            "By status, per second.",
            (rate("haproxy_backend_http_responses_total", "code", proxy=backends), "{{code}}"),
            unit="reqps",
        ),
        graph(
            "Connections of HAProxy",
            "At the limit, new connections wait.",
            ("max by (instance) (haproxy_process_current_connections)", "connections"),
            ("max by (instance) (haproxy_process_max_connections)", "limit"),
        ),
        graph(
            "Replicas that HAProxy uses",
            "Replicas that pass the check on /readyz.",
            ('max by (instance) (haproxy_backend_active_servers{proxy="controllers"})', "ready"),
        ),
    ]


def build() -> builders.Dashboard:
    """Return the dashboard."""
    everything = dashboard.VariableOption(text="All", value="$__all")
    models_seen = "label_values(controller_cluster_model_workers, model)"
    board = (
        builders.Dashboard("Controller cluster")
        .uid("controller-cluster")
        .tags(["controller-cluster"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone(common.TimeZoneBrowser)
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            builders.QueryVariable("model")
            .label("Model")
            .datasource(SOURCE)
            .query(models_seen)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(everything)
        )
    )
    rows = {
        "Overview": overview,
        "Latency": latency,
        "Models and workers": models,
        "Forwarded requests": forwarding,
        "Replicas and Redis": replicas,
        "Load balancer of Docker Compose": load_balancer,
    }
    ids = count(1)
    for title, panels in rows.items():
        board.with_row(builders.Row(title).id(next(ids)))
        for panel in panels():
            board.with_panel(panel.id(next(ids)))
    return board


def text() -> str:
    """Return the dashboard as JSON."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
