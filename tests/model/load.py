"""Reference model of the load of a worker: bookings, leases and reports, as functions of what happened when.

The scripts in `lua/` do the same, and tests/store/test_oracle.py compares them. Times are in milliseconds of Redis's
clock, readings are those of a DecayClock. docs/concepts/dispatch.md explains the rules.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from controller.domain.checkpoints import CHECKPOINT_MS, MAX_CHECKPOINTS, RECENT_CHECKPOINTS
from controller.domain.cost import FAILING, MAX_SERVING, cost
from tests.model.decay import CLOCK_PERIOD

LATE_RELEASE_MS: Final = 1_000
RECENT_MS: Final = RECENT_CHECKPOINTS * CHECKPOINT_MS
OLDEST_MS: Final = 32_000


@dataclass(slots=True)
class Load:
    """The estimated load of one worker.

    The estimate has two parts. *Leased* requests are known exactly: they start with a lease and end with its release.
    *Untracked* requests have no end event, so each counts for exp(-age / time constant), the chance that it still runs.

    capacity: how many requests it runs at once. None if that is unknown.
    leased: active leases.
    finished: those of them whose requests had finished by the last report.
    untracked: decayed number of requests without a lease, as of reading `decayed_at`. The workers of a pool are ordered
    by it.
    untracked_own_rate: the same at the worker's own decay rate, which is the better estimate.
    dispatched, dispatched_by_lottery: requests without a lease since the last report.
    leased_since_report: active leases that no report has acknowledged.
    released_since_report: leases that have ended since the last report and that no report has acknowledged.
    least, peak, least_before, peak_before, peak_since: the fewest and the most active leases at any moment since
    `peak_since`, and before it. Those of a worker that is not an engine begin with each report.
    own: how many of the reported requests this cluster may have dispatched.
    work: request-milliseconds that the worker has worked on such requests since some of them finished.
    checkpoints: time, dispatched and leased_since_report before it, the oldest first. All requests with a lease that no
    report has acknowledged were dispatched after the first one.
    """

    speed: float
    capacity: int | None = None
    leased: int = 0
    finished: int = 0
    untracked: float = 0.0
    untracked_own_rate: float = 0.0
    decayed_at: float = 0.0
    failing: bool = False
    reported: int = 0
    reported_at: float = 0.0
    own: int = 0
    work: float = 0.0
    dispatched: int = 0
    dispatched_by_lottery: int = 0
    leased_since_report: int = 0
    released_since_report: int = 0
    least: int = 0
    peak: int = 0
    least_before: int = 0
    peak_before: int = 0
    peak_since: float = 0.0
    checkpoint_at: float = 0.0
    checkpoints: list[tuple[float, int, int]] = field(default_factory=list)

    def untracked_at(self, reading: float) -> float:
        """Return the untracked load at a reading of the decay clock."""
        return self.untracked * math.exp(min(0.0, self.decayed_at - reading))

    def own_rate_at(self, reading: float, rate: float) -> float:
        """Return the untracked load at the worker's own decay rate, if it has a capacity that this is needed for."""
        if self.capacity is None:
            return self.untracked_at(reading)
        return self.untracked_own_rate * math.exp(min(0.0, self.decayed_at - reading) * rate)

    def decay(self, reading: float, rate: float) -> None:
        """Decay the untracked load to the present.

        There is no decay while the clock of Redis is behind an earlier time, and none in the moment in which the decay
        clock starts again.
        """
        self.untracked_own_rate, self.untracked = self.own_rate_at(reading, rate), self.untracked_at(reading)
        has_started_again = self.decayed_at - reading > CLOCK_PERIOD / 2
        self.decayed_at = reading if has_started_again else max(self.decayed_at, reading)

    def queue(self, reading: float, rate: float) -> float:
        """Return the best estimate of how many requests the worker is running or has waiting."""
        return self.leased - self.finished + self.own_rate_at(reading, rate)

    def cost(self, reading: float, rate: float) -> float:
        """Return the cost, by which shortest_queue compares workers."""
        requests = self.leased - self.finished + self.untracked_at(reading)
        return cost(requests, self.speed, self.queue(reading, rate), self.capacity, failing=self.failing)

    def index_cost(self, reading: float, rate: float, decays: bool) -> float:
        """Return the score in the cost index: the part of the cost that does not change while time passes.

        If bookings do not decay, or for a worker with a capacity, it is the whole cost as of now.
        """
        if self.capacity is not None or not decays:
            return self.cost(reading, rate)
        cost = min((self.leased - self.finished) / self.speed, MAX_SERVING)
        return cost + FAILING if self.failing else cost

    def decay_key(self) -> float:
        """Return the key of the decay index: the logarithm of the untracked load plus the reading of that moment.

        The order by it does not change while time passes. Workers without untracked load come first.
        """
        return math.log(self.untracked / self.speed) + self.decayed_at if self.untracked else -math.inf

    def reconcile(self, change: int, reading: float, rate: float) -> bool:
        """Change the number of requests that were dispatched without a lease: see lua/dispatch/reconcile.lua.

        Return False if there was nothing to change.
        """
        change = max(change, -self.dispatched)
        if change == 0:
            return False
        self.decay(reading, rate)
        self.untracked = max(0.0, self.untracked + change)
        self.untracked_own_rate = max(0.0, self.untracked_own_rate + change)
        self.dispatched += change
        self.checkpoints = [(at, min(count, self.dispatched), leased) for at, count, leased in self.checkpoints]
        return True

    def book(self, now: float, reading: float, rate: float, leased: bool) -> None:
        """Book a request."""
        since_checkpoint = now - self.checkpoint_at
        if since_checkpoint >= CHECKPOINT_MS or since_checkpoint < 0:  # the clock of Redis was set back
            self._add_checkpoint(now, since_checkpoint)
        if self.capacity is not None or not leased:
            self.decay(reading, rate)
        if leased:
            self.leased += 1
            self.leased_since_report += 1
            self.peak = max(self.peak, self.leased)
        else:
            self.untracked += 1
            self.untracked_own_rate += 1
            self.dispatched += 1

    def _add_checkpoint(self, now: float, since_last: float) -> None:
        if since_last < 0 or (since_last >= RECENT_MS and not self.leased_since_report):
            self.checkpoints.clear()
        self.checkpoints.append((now, self.dispatched, self.leased_since_report))
        self.checkpoint_at = now
        if len(self.checkpoints) < MAX_CHECKPOINTS:
            return
        if not self.leased_since_report:
            del self.checkpoints[:-RECENT_CHECKPOINTS]
            return
        first, *others = self.checkpoints
        ages = [now - at for at, _, _ in self.checkpoints]
        kept = others[-1:]  # the youngest first
        for checkpoint, age, age_of_older in reversed([*zip(others, ages[1:], ages, strict=False)][:-1]):
            younger = now - kept[-1][0]
            if age <= RECENT_MS or (age_of_older > 2 * younger and age <= OLDEST_MS):
                kept.append(checkpoint)
        self.checkpoints = [first, *reversed(kept)]

    def release(self, leased_at: float, now: float, *, expired: bool) -> None:
        """End an active lease: it was released, has expired, or was taken back because its request never ran.

        The last report may have shown that its request had finished. That is likely if the release came shortly after
        the report, or if the lease was never released.
        """
        if self.finished and leased_at < self.reported_at and (expired or now < self.reported_at + LATE_RELEASE_MS):
            self.finished -= 1
        # A later report must not count this request as in flight. If the clock of Redis was set back in between, an
        # earlier report may have acknowledged it already, and no count may drop below 0.
        in_flight_from = min([self.reported_at, *(at for at, _, _ in self.checkpoints[:1])])
        if leased_at >= in_flight_from and self.leased_since_report:
            self.leased_since_report -= 1
            self.released_since_report += 1
            self.checkpoints = [
                (at, dispatched, min(max(0, leased - (at > leased_at)), self.leased_since_report))
                for at, dispatched, leased in self.checkpoints
            ]
        self.leased -= 1
        self.finished, self.least = min(self.finished, self.leased), min(self.least, self.leased)

    def report(
        self,
        queue_length: int,
        written_at: float,
        now: float,
        reading: float,
        in_flight_window: float,
        *,
        is_engine: bool = False,
    ) -> tuple[float, int] | None:
        """Apply the worker's report that it had `queue_length` requests at `written_at`.

        Requests that were dispatched less than `in_flight_window` before are in flight, and are added. The load of an
        engine may be of any moment since then. The number of requests of other clients changes only if no number of
        leases since then explains the report.

        Returns for DecayClock.learn() the request-milliseconds that the worker has worked since one of our requests
        finished, and how many have finished now. Requests that other clients may have sent count as neither. Returns
        None if a later report was applied before: then nothing changes. A report from the future is from before the
        clock of Redis was set back, and counts as older.
        """
        if written_at < self.reported_at <= now:
            return None
        in_flight_from = written_at - in_flight_window
        earlier = [each for each in self.checkpoints if each[0] <= in_flight_from]
        in_flight = [each for each in self.checkpoints if in_flight_from < each[0] <= now]
        all_received = 0, self.dispatched, self.leased_since_report
        _, acknowledged, acknowledged_leases = in_flight[0] if in_flight else all_received
        if is_engine and (in_flight or (earlier and earlier[-1][0] + CHECKPOINT_MS > in_flight_from)):
            acknowledged_leases = earlier[-1][2] if earlier else 0
            if acknowledged_leases < self.leased_since_report:
                in_flight = [*(each for each in earlier[-1:] if each[0] <= now), *in_flight]
        sent = self.own + acknowledged + acknowledged_leases + self.released_since_report + self.dispatched_by_lottery
        own = min(queue_length, sent)
        work = self.work + (self.own + own) / 2 * max(0.0, written_at - self.reported_at)
        finished = sent - own
        self.own, self.work = own, 0.0 if finished else work
        self.checkpoints = [
            (at, max(0, dispatched - acknowledged), max(0, leased - acknowledged_leases))
            for at, dispatched, leased in in_flight
        ]
        self.dispatched, self.dispatched_by_lottery = self.dispatched - acknowledged, 0
        self.leased_since_report, self.released_since_report = self.leased_since_report - acknowledged_leases, 0
        received_leases = self.leased - self.leased_since_report
        self.finished = max(0, received_leases - queue_length)
        if is_engine:
            least, most = self._range_of_leases(in_flight_from, now)
            at_most = min(self.untracked_at(reading), queue_length - least + self.dispatched)
            self.untracked = max(0, queue_length - most, at_most)
        else:
            self.least = self.peak = self.leased
            self.untracked = max(0, queue_length - received_leases) + self.dispatched
        self.untracked_own_rate = self.untracked
        self.decayed_at = reading
        self.reported, self.reported_at = queue_length, written_at
        return work, finished

    def _range_of_leases(self, in_flight_from: float, now: float) -> tuple[int, int]:
        """Return the fewest and the most leases at any moment of the in-flight window."""
        if self.peak_since <= now and in_flight_from < self.peak_since:
            return min(self.least_before, self.least), max(self.peak_before, self.peak)
        self.least_before, self.peak_before = self.least, self.peak
        self.least, self.peak, self.peak_since = self.leased, self.leased, now
        return self.least_before, self.peak_before
