"""A discrete-event simulation: a fleet of workers, arriving requests, and policies that choose a worker for each.

benchmarks/dispatch_quality.py uses it. A worker runs `slots` requests at a time, in order of arrival. A request arrives
at its worker `delay` seconds after the choice.

Our replicas choose in Redis when their call arrives there. They share one state, so their number changes nothing in the
simulation. In practice it changes how many dispatches share a call. With `--by-way`, the request itself comes to a
replica after its delay. The replica chooses a worker, holds a lease, and forwards the request.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from policies import ChosenAt, Notice, Policy
from simulated_fleet import Fleet, Request

HEARTBEAT_EXPIRATION = 90.0  # the default of FastChat and of ours
FAILED_POLLS = 2  # failed polls in a row that deprioritise a worker
TRIES = 2  # attempts of a client that is refused


class Worker:
    """A server with slots and a queue in front of them."""

    def __init__(self, slots: int, speed: float) -> None:
        self.slots = slots
        self.speed = speed
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.crashed = False
        self.last_heartbeat = 0.0
        self.failed_polls = 0

    @property
    def queue_length(self) -> int:
        """Return the number of running and waiting requests, as the worker reports it."""
        return len(self.running) + len(self.waiting)


@dataclass
class Result:
    """The result of a run. `waits` has the times from arrival to a slot, in seconds, in the order of their ends."""

    waits: list[float] = field(default_factory=list)
    refused: int = 0  # attempts that reached a crashed worker
    lost_refused: int = 0  # requests that were refused at each attempt
    lost_inside: int = 0  # requests that ran or waited at a worker when it crashed

    def measured(self) -> list[float]:
        """Return the sorted waits without the first tenth."""
        return sorted(self.waits[len(self.waits) // 10 :])


class Simulation:
    """One run of a fleet under a policy.

    first_heartbeats: time of each worker's first heartbeat. Random times by default.
    """

    def __init__(self, fleet: Fleet, policy: Policy, first_heartbeats: Sequence[float] = ()) -> None:
        self.fleet = fleet
        self.policy = policy
        self.first_heartbeats = first_heartbeats
        self.store_delays = fleet.stream("ways to the store")
        self.forward_delays = fleet.stream("forwarding")
        self.reports = fleet.stream("reports")
        self.crashes = fleet.stream("deaths")
        self.workers = [Worker(fleet.slots, speed) for speed in fleet.speeds()]
        self.events: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self.order = itertools.count()
        self.held: deque[Request] = deque()
        self.result = Result()
        self.left = fleet.requests

    def at(self, time: float, call: Callable[..., object], *arguments: object) -> None:
        heapq.heappush(self.events, (time, next(self.order), call, arguments))

    def run(self) -> Result:
        requests = deque(self.fleet.all_requests())
        self.schedule(requests[-1].arrived)
        while self.left:
            if requests and (not self.events or requests[0].arrived <= self.events[0][0]):
                request = requests.popleft()
                self.arrive(request.arrived, request)
            else:
                now, _, call, arguments = heapq.heappop(self.events)
                call(now, *arguments)
        return self.result

    def schedule(self, duration: float) -> None:
        """Schedule heartbeats, polls and crashes."""
        fleet, phases = self.fleet, self.fleet.stream("phases")
        for i in range(fleet.workers):
            drawn = phases.uniform(0, fleet.heartbeat_interval)
            self.at(self.first_heartbeats[i] if self.first_heartbeats else drawn, self.send_heartbeat, i)
            if fleet.poll_interval:
                self.at(phases.uniform(0, fleet.poll_interval), self.poll, i)
        for i, worker in enumerate(self.crashes.sample(range(fleet.workers), fleet.deaths)):
            self.at(duration * (0.25 + 0.5 * (i + self.crashes.random()) / fleet.deaths), self.crash, worker)

    # Requests

    def arrive(self, now: float, request: Request) -> None:
        if self.policy.chosen_at is ChosenAt.CENTRAL_QUEUE:
            self.at(now + request.delay, self.queue, request)
        elif self.policy.chosen_at is ChosenAt.STORE:
            self.choose_in_store(now, request, request.delay)
        elif self.policy.chosen_at is ChosenAt.ON_THE_WAY:
            self.at(now + request.delay, self.forward, request)
        else:
            self.send(now, request, request.delay)

    def choose_in_store(self, now: float, request: Request, delay: float) -> None:
        call_delay, reply_delay = (self.store_delays.uniform(*self.fleet.store_latency) for _ in range(2))
        self.at(now + call_delay, self.send, request, reply_delay + delay)

    def forward(self, now: float, request: Request) -> None:
        self.choose_in_store(now, request, self.forward_delays.uniform(*self.fleet.forward_delay))

    def queue(self, now: float, request: Request) -> None:
        if not self.send(now, request, 0.0):
            self.held.append(request)

    def send(self, now: float, request: Request, delay: float) -> bool:
        request.worker = self.policy.choose(now, request)
        if request.worker < 0:
            return False
        self.at(now + delay, self.enter, request)
        return True

    def enter(self, now: float, request: Request) -> None:
        worker = self.workers[request.worker]
        if worker.crashed:
            self.refuse(now, request)
        elif len(worker.running) < worker.slots:
            self.start(now, worker, request)
        else:
            worker.waiting.append(request)

    def start(self, now: float, worker: Worker, request: Request) -> None:
        worker.running.append(request)
        self.result.waits.append(now - request.arrived)
        self.at(now + request.service / worker.speed, self.end, request)

    def end(self, now: float, request: Request) -> None:
        worker = self.workers[request.worker]
        if worker.crashed:
            return  # the request was lost with its worker
        worker.running.remove(request)
        self.left -= 1
        if worker.waiting:
            self.start(now, worker, worker.waiting.popleft())
        self.report_end(now, request)

    def report_end(self, now: float, request: Request, refused: bool = False) -> None:
        if self.policy.sees_ends:
            self.handle_end(now, request, refused)
        elif request.leased:
            self.at(now + self.reports.uniform(*self.fleet.report_delay), self.handle_end, request, refused)

    def handle_end(self, now: float, request: Request, refused: bool) -> None:
        self.policy.ended(now, request)
        if refused and request.leased:
            self.notice(now, request.worker, Notice.REFUSAL)
        while self.held and self.send(now, self.held[0], 0.0):
            self.held.popleft()

    # Heartbeats and polls

    def send_heartbeat(self, now: float, i: int) -> None:
        worker = self.workers[i]
        if worker.crashed:
            return
        worker.last_heartbeat = now
        self.at(now + self.reports.uniform(*self.fleet.report_delay), self.report, i, worker.queue_length, None)
        self.at(now + self.fleet.heartbeat_interval, self.send_heartbeat, i)

    def poll(self, now: float, i: int) -> None:
        self.at(now + self.reports.uniform(*self.fleet.report_delay), self.respond, i, now)
        self.at(now + self.fleet.poll_interval, self.poll, i)

    def respond(self, now: float, i: int, polled_at: float) -> None:
        worker = self.workers[i]
        received_at = now + self.reports.uniform(*self.fleet.report_delay)
        if not worker.crashed:
            self.at(received_at, self.report, i, worker.queue_length, polled_at)
            return
        worker.failed_polls += 1
        if worker.failed_polls == FAILED_POLLS:
            self.at(received_at, self.notice, i, Notice.POLLS)

    def report(self, now: float, i: int, queue_length: int, polled_at: float | None) -> None:
        self.policy.reported(now, i, queue_length, polled_at)

    # Crashes

    def crash(self, now: float, i: int) -> None:
        worker = self.workers[i]
        worker.crashed = True
        self.notice(now, i, Notice.CRASH)
        self.at(max(now, worker.last_heartbeat + HEARTBEAT_EXPIRATION), self.notice, i, Notice.EXPIRY)
        for router in range(self.fleet.routers):
            self.at(now + self.crashes.uniform(0, self.fleet.health_interval), self.notice, i, Notice.CHECK, router)
        for request in (*worker.running, *worker.waiting):
            self.left -= 1
            self.result.lost_inside += 1
            self.report_end(now, request)

    def notice(self, now: float, i: int, notice: Notice, router: int = 0) -> None:
        self.policy.noticed(now, i, notice, router)

    def refuse(self, now: float, request: Request) -> None:
        self.result.refused += 1
        forwarded = self.policy.chosen_at is ChosenAt.ON_THE_WAY
        if forwarded:
            self.handle_end(now, request, refused=True)  # the replica reports it before it chooses again
        else:
            self.report_end(now, request, refused=True)
        if request.tries < TRIES:
            # A new object, because handle_end() of the first attempt may still be scheduled.
            again = replace(request, tries=request.tries + 1)
            if forwarded:
                self.forward(now, again)
            else:
                self.at(now + self.fleet.retry_delay, self.arrive, again)
        else:
            self.left -= 1
            self.result.lost_refused += 1
