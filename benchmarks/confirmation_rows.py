"""The rows of benchmarks/confirmation.py: what each of them starts, and which policy the simulation has for it."""

import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from policies import Ours, OursByWay, Policy, Stock
from ports import free_port
from processes import Processes, responds
from simulated_fleet import Fleet

REPLICAS = 4
WORKER_PROCESSES = 4
BENCHMARKS = Path(__file__).parent
# Debian installs it in /usr/sbin, which is not on the PATH of all users.
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
HAPROXY_CONFIGURATION = """
global
  maxconn 4000 # with --by-way, each running request is a connection
defaults
  mode http
  timeout connect 1s
  # The longest time without data. As in deploy/: a stream of `--by-way` may be silent for up to --worker-timeout.
  timeout client 1h
  timeout server 200s
listen controller
  bind 127.0.0.1:{port}
  balance roundrobin
  option http-no-delay
  # As in deploy/: retry if a replica has just closed the idle connection.
  option redispatch 1
  retries 3
  retry-on conn-failure empty-response
  # A worker may have begun to process a forwarded request.
  http-request disable-l7-retry if {{ path_beg /worker_ }}
"""


@dataclass(frozen=True)
class Row:
    """One configuration of controller, clients and workers.

    lease_share: the share of clients that use leases.
    by_way: requests pass through a replica, which holds a lease for each. The clients use none.
    """

    name: str
    stock: bool = False
    decay: bool = True
    polls: bool = True
    lease_share: float = 0.0
    reports_capacity: bool = False
    by_way: bool = False

    def fleet(self, fleet: Fleet) -> Fleet:
        """Return the fleet with the polls and leases of this row."""
        polled = self.polls and not self.stock
        return replace(fleet, poll_interval=fleet.poll_interval if polled else 0.0, lease_share=self.lease_share)

    def policy(self, fleet: Fleet) -> Policy:
        """Return the policy of the simulation for this row."""
        if self.stock:
            return Stock(fleet)
        return (OursByWay if self.by_way else Ours)(fleet, self.reports_capacity, decay=self.decay)


STOCK = Row("FastChat", stock=True)
NO_DECAY = Row("ours, no decay, no polls", decay=False, polls=False)
NO_POLLS = Row("ours, no polls", polls=False)
DEFAULTS = Row("ours, defaults")
HALF_LEASE = Row("ours, half lease", lease_share=0.5)
LEASES = Row("ours, leases", lease_share=1.0)
LEASES_AND_CAPACITY = Row("ours, leases, capacity reported", lease_share=1.0, reports_capacity=True)
BY_WAY = Row("ours, by way", by_way=True)
BY_WAY_AND_CAPACITY = Row("ours, by way, capacity reported", by_way=True, reports_capacity=True)
ROWS = [
    STOCK,
    NO_DECAY,
    NO_POLLS,
    DEFAULTS,
    HALF_LEASE,
    LEASES,
    LEASES_AND_CAPACITY,
    BY_WAY,
    BY_WAY_AND_CAPACITY,
]


def start_stock(processes: Processes) -> str:
    """Start FastChat's controller. Return its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "fastchat.serve.controller", "--host", "127.0.0.1", "--port", str(port)]
    controller = processes.start(sys.executable, *command)
    controller.wait_until(partial(responds, f"{url}/test_connection"))
    return url


def start_replicas(processes: Processes, store: str, ports: Sequence[int], *flags: str) -> list[str]:
    """Start a process of `controller serve` for each port, all on one store. Return their URLs."""
    address = ["--host", "127.0.0.1", "--redis-url", store, "--shutdown-delay", "0", "--log-level", "warning"]
    command = [sys.executable, "-m", "controller", "serve", *address, *flags]
    replicas = [processes.start(*command, "--port", str(port)) for port in ports]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    for replica, url in zip(replicas, urls, strict=True):
        replica.wait_until(partial(responds, f"{url}/readyz"))
    return urls


def start_ours(processes: Processes, store: str, directory: Path, row: Row, fleet: Fleet) -> str:
    """Start four replicas behind HAProxy, or one controller with four replicas without HAProxy. Return the URL."""
    balanced, *ports = (free_port() for _ in range(1 + REPLICAS))
    url = f"http://127.0.0.1:{balanced}"
    flags = controller_flags(row, fleet, url)
    if HAPROXY is None:
        start_replicas(processes, store, [balanced], "--replicas", str(REPLICAS), *flags)
        return url
    start_replicas(processes, store, ports, *flags)
    servers = "".join(f"  server replica-{port} 127.0.0.1:{port}\n" for port in ports)
    configuration = directory / "haproxy.cfg"
    configuration.write_text(HAPROXY_CONFIGURATION.format(port=balanced) + servers)
    balancer = processes.start(HAPROXY, "-db", "-f", str(configuration))
    balancer.wait_until(partial(responds, f"{url}/readyz"))
    return url


def first_heartbeats(fleet: Fleet) -> list[float]:
    """Return the time of each worker's first heartbeat, in seconds from its start."""
    rng = random.Random(fleet.seed + 2)
    return [rng.uniform(0, fleet.heartbeat_interval) for _ in range(fleet.workers)]


def start_workers(processes: Processes, controller: str, row: Row, fleet: Fleet) -> None:
    """Start all workers in a few processes, and wait until they are registered."""
    speeds, first = ([str(each) for each in values] for values in (fleet.speeds(), first_heartbeats(fleet)))
    flags = ["--slots", str(fleet.slots), "--heartbeat-interval", str(fleet.heartbeat_interval)]
    flags += ["--report-capacity"] if row.reports_capacity else []
    script = [sys.executable, str(BENCHMARKS / "sleeping_workers.py"), "--controller-address", controller]
    started = []
    for i in range(WORKER_PROCESSES):
        each = ["--speeds", *speeds[i::WORKER_PROCESSES], "--first-heartbeats", *first[i::WORKER_PROCESSES]]
        started.append(processes.start(*script, *flags, *each))
    for worker in started:
        worker.wait_until(partial(worker.has_logged, "ready"))


def controller_flags(row: Row, fleet: Fleet, url: str) -> list[str]:
    return [
        *(("--by-way", "--advertise", url) if row.by_way else ()),
        *("--booking-decay", "on" if row.decay else "off"),
        *("--booking-delay", str(fleet.booking_delay)),
        *("--poll-interval", str(fleet.poll_interval)),
    ]
