"""What a worker is believed to have to do: bookings, leases and reports, as pure functions of what happened when.

They say what the scripts in `lua/` mean; the tests hold the two equal. Times are in milliseconds of the store's clock,
phases are those of controller/domain/fade.py. docs/dispatch.md tells the reasons.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Final

from controller.domain.fade import PHASE_PERIOD

# Added to the cost of a worker without a free slot, and to that of a failing one. Without its addition no cost reaches
# the next band, however slow its worker is.
FULL: Final = 1e9
FAILING: Final = 1e12
MOST_SERVING: Final = FULL - 1
MOST_FULL: Final = FAILING - 1

MAX_LEASE_TIME: Final = 86_400.0  # in seconds
# '<when booked>-<for how long, both in milliseconds>-<number of the choice>-<life of the worker>@<its name>'
LEASE: Final = re.compile(r"\d{13}-\d{1,8}-\d{1,16}-\d{1,16}@[!-~]{8,1024}\Z", re.ASCII)
MARK_MS: Final = 50  # bookings are told apart by their time to so much
MAX_MARKS: Final = 8  # bookings older than this many marks count as seen
LATE_RELEASE_MS: Final = 1_000


@dataclass(slots=True)
class Load:
    """One worker's load.

    capacity is how many requests it runs at once, None if it does not tell. leased is the number of leases that are
    out, ended of how many of them the last report told that their requests had ended. unleased and expected are all
    others: so many at phase `faded_from`, and fewer since; unleased at the pace of the model, by which workers are kept
    in order, expected at the worker's own pace, which is the better guess of how many there are. Since the last report,
    booked were sent to it without a lease, lent with one that is out, done with one that has ended, and drawn by the
    lottery, which books nothing.

    own is how many of the reported requests we may have sent, and work for how many request-milliseconds the worker
    has worked on such requests since some of them ended.
    """

    speed: float
    capacity: int | None = None
    leased: int = 0
    ended: int = 0
    unleased: float = 0.0
    expected: float = 0.0
    faded_from: float = 0.0
    failing: bool = False
    reported: int = 0
    reported_at: float = 0.0
    own: int = 0
    work: float = 0.0
    booked: int = 0
    drawn: int = 0
    lent: int = 0
    done: int = 0
    marked_at: float = 0.0
    marks: list[tuple[float, int, int]] = field(
        default_factory=list
    )  # time, booked and lent before it; the oldest first

    def unleased_at(self, phase: float) -> float:
        """What is left of the bookings without a lease, and of the requests that only a report told of."""
        return self.unleased * math.exp(min(0.0, self.faded_from - phase))

    def expected_at(self, phase: float, pace: float) -> float:
        """The same at the worker's own pace, which is so many times the model's, if it has slots to be counted."""
        if self.capacity is None:
            return self.unleased_at(phase)
        return self.expected * math.exp(min(0.0, self.faded_from - phase) * pace)

    def fade(self, phase: float, pace: float) -> None:
        """Take off what has faded until now.

        If the clock was set back, that is nothing, until that time comes again or a report does. If the phase has
        started again, that is nothing now.
        """
        self.expected, self.unleased = self.expected_at(phase, pace), self.unleased_at(phase)
        started_again = self.faded_from - phase > PHASE_PERIOD / 2
        self.faded_from = phase if started_again else max(self.faded_from, phase)

    def queue(self, phase: float, pace: float) -> float:
        """The best guess of how many requests it has to run and to do."""
        return self.leased - self.ended + self.expected_at(phase, pace)

    def cost(self, phase: float, pace: float) -> float:
        """What shortest_queue compares: the worker with the least is chosen.

        With a free slot, or where nobody knows of slots, it is requests for each unit of speed, as in FastChat;
        without, how long the next request would wait, in units of a request's time.
        """
        cost = min((self.leased - self.ended + self.unleased_at(phase)) / self.speed, MOST_SERVING)
        if self.capacity is not None:
            missing = self.queue(phase, pace) + 1 - self.capacity
            if missing > 0:
                cost = min(FULL + missing / (self.capacity * self.speed), MOST_FULL)
        return cost + FAILING if self.failing else cost

    def index_cost(self, phase: float, pace: float, fades: bool) -> float:
        """What the first index is sorted by: the part of the cost that stays as it is while time passes.

        Where bookings do not fade, that is all of it. Where it tells a capacity, it is all of it as it is now, until
        the worker is touched again: only with what fades there is a question whether a slot is free.
        """
        if self.capacity is not None or not fades:
            return self.cost(phase, pace)
        cost = min((self.leased - self.ended) / self.speed, MOST_SERVING)
        return cost + FAILING if self.failing else cost

    def what_fades(self, phase: float | None = None) -> float:
        """What the second index of a model is sorted by: the logarithm of what fades, and at which phase it was that.

        While time passes the order stays as it is. In front are those that have nothing that fades. phase is for the
        index of another model than the first of the worker's, by which its load is kept.
        """
        if not self.unleased:
            return -math.inf
        return math.log(self.unleased / self.speed) + (self.faded_from if phase is None else phase)

    def settle(self, change: int, phase: float, pace: float) -> None:
        """So many more, or fewer, were booked than was known: see lua/settle.lua."""
        self.fade(phase, pace)
        self.unleased = max(0.0, self.unleased + change)
        self.expected = max(0.0, self.expected + change)
        self.booked = max(0, self.booked + change)
        self.marks = [(at, min(booked, self.booked), lent) for at, booked, lent in self.marks]

    def book(self, now: float, phase: float, pace: float, leased: bool) -> None:
        """One more request is on its way to it."""
        since_mark = now - self.marked_at
        if since_mark >= MARK_MS or since_mark < 0:  # the clock was set back
            if since_mark >= MAX_MARKS * MARK_MS or since_mark < 0:
                self.marks.clear()
            self.marks.append((now, self.booked, self.lent))
            self.marked_at = now
            del self.marks[:-MAX_MARKS]
        if leased:
            self.leased += 1
            self.lent += 1
        else:
            self.fade(phase, pace)
            self.unleased += 1
            self.expected += 1
            self.booked += 1

    def release(self, booked_at: float, now: float, *, expired: bool) -> None:
        """End a lease that was active: it was released, or it has expired.

        The last report may have shown that its request had ended. That is likely if the release came shortly after the
        report, or if the lease was never released.
        """
        if self.ended and booked_at < self.reported_at and (expired or now < self.reported_at + LATE_RELEASE_MS):
            self.ended -= 1
        unseen_from = min([self.reported_at, *(at for at, _, _ in self.marks[:1])])
        # Or the next report would take it for one that is under way. (The clock may have been set back in between: then
        # it was maybe counted as seen, and no number must get below 0.)
        if booked_at >= unseen_from and self.lent:
            self.lent -= 1
            self.done += 1
            self.marks = [
                (at, booked, min(max(0, lent - (at > booked_at)), self.lent)) for at, booked, lent in self.marks
            ]
        self.leased -= 1
        self.ended = min(self.ended, self.leased)

    def report(
        self, queue_length: int, written_at: float, now: float, phase: float, unseen_for: float
    ) -> tuple[float, int] | None:
        """The worker said at `written_at` how many requests it had to run and to do.

        Bookings that were made less than `unseen_for` before were still on their way then, and are added. Returns for
        how many request-milliseconds the worker has worked since any of our requests ended before, and how many have
        ended now, for Fade.learn(). Requests that other clients may have sent count as neither. Returns None if
        the report before was written later: then nothing changes. What was later than now was before the clock was
        set back, and counts as older.
        """
        if written_at < self.reported_at <= now:
            return None
        seen_booked, seen_lent = self.booked, self.lent
        unseen = [mark for mark in self.marks if written_at - unseen_for < mark[0] <= now]
        if unseen:
            _, seen_booked, seen_lent = unseen[0]
        sent = self.own + seen_booked + seen_lent + self.done + self.drawn
        own = min(queue_length, sent)
        work = self.work + (self.own + own) / 2 * max(0.0, written_at - self.reported_at)
        ended = sent - own
        self.own, self.work = own, 0.0 if ended else work
        self.marks = [(at, booked - seen_booked, max(0, lent - seen_lent)) for at, booked, lent in unseen]
        self.booked, self.lent, self.done = self.booked - seen_booked, self.lent - seen_lent, 0
        self.drawn = 0
        seen_leases = self.leased - self.lent
        self.ended = max(0, seen_leases - queue_length)
        self.unleased = self.expected = max(0, queue_length - seen_leases) + self.booked
        self.faded_from = phase
        self.reported, self.reported_at = queue_length, written_at
        return work, ended
