"""The simulation of benchmarks/dispatch_quality.py: properties that do not depend on the exact figures."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from best_guess import BestGuess
from dispatch_quality import CASES, QUESTIONS, main, simulate
from policies import Ideal, Notice, Ours, OursByWay, Policy, Stock, TwoChoices
from simulated_fleet import SERVICES, Fleet, Request
from simulation import Simulation

from tests.conftest import Figure

FLEET = Fleet(workers=8, slots=4, requests=600, load=0.8, heartbeat_interval=5.0, routers=2)


def mean_ideal_wait(fleet: Fleet) -> float:
    return fmean(Simulation(fleet, Ideal(fleet)).run().waits)


@pytest.mark.parametrize("case", CASES)
def test_all_requests_are_served_and_wait_at_least_as_long_as_in_one_queue(case: str) -> None:
    adapt, policy = CASES[case]
    fleet = adapt(FLEET)
    result = Simulation(fleet, policy(fleet)).run()
    assert len(result.waits) == FLEET.requests
    assert (result.refused, result.lost_refused, result.lost_inside) == (0, 0, 0)
    assert min(result.waits) >= FLEET.delay[0]
    assert fmean(result.waits) >= mean_ideal_wait(FLEET)


@pytest.mark.parametrize("case", CASES)
def test_all_requests_are_served_or_lost_when_workers_die(case: str) -> None:
    adapt, policy = CASES[case]
    fleet = adapt(replace(FLEET, deaths=2))
    result = Simulation(fleet, policy(fleet)).run()
    # Requests that were lost while they ran have waited too, so both counts contain them.
    assert len(result.waits) <= FLEET.requests <= len(result.waits) + result.lost_refused + result.lost_inside
    assert result.lost_refused <= result.refused / 2


class DeadWorkerCheck:
    """Wraps a policy and asserts that it chooses no worker which it knows to be dead.

    by: the notices from which the policy learns of a death.
    known_dead: pairs of a worker and a router that knows of its death.
    """

    def __init__(self, policy: Policy, by: set[Notice]) -> None:
        self.policy = policy
        self.by = by
        self.known_dead: set[tuple[int, int]] = set()
        self.sees_ends, self.chosen_at = policy.sees_ends, policy.chosen_at
        self.ended, self.reported = policy.ended, policy.reported

    def choose(self, now: float, request: Request) -> int:
        worker = self.policy.choose(now, request)
        assert (worker, request.router) not in self.known_dead
        return worker

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        self.policy.noticed(now, worker, notice, router)
        if notice in self.by:
            routers = [router] if notice is Notice.CHECK else range(FLEET.routers)
            self.known_dead.update((worker, router) for router in routers)


@pytest.mark.parametrize(
    ("policy", "by"),
    [
        (Stock, {Notice.EXPIRY}),
        (TwoChoices, {Notice.CHECK}),
        (Ours, {Notice.EXPIRY, Notice.POLLS, Notice.REFUSAL}),
        (OursByWay, {Notice.EXPIRY, Notice.POLLS, Notice.REFUSAL}),
        (Ideal, {Notice.CRASH}),
    ],
)
def test_dead_workers_get_no_requests_after_they_are_detected(
    policy: Callable[[Fleet], Policy], by: set[Notice]
) -> None:
    fleet = replace(FLEET, deaths=2, requests=1000)
    check = DeadWorkerCheck(policy(fleet), by)
    Simulation(fleet, check).run()
    assert len(check.known_dead) == 2 * FLEET.routers


def test_runs_with_one_seed_agree_and_with_another_differ() -> None:
    first, again = (simulate("ours, half lease", replace(FLEET, seed=3)) for _ in range(2))
    assert first == again
    assert simulate("ours, half lease", replace(FLEET, seed=4)) != first


def test_number_of_routers_does_not_change_our_policy() -> None:
    one, many = (simulate("ours, half lease", replace(FLEET, routers=routers)) for routers in (1, 32))
    assert one == many


def test_requests_by_way_are_chosen_after_their_delay_and_retried_at_once() -> None:
    fleet = replace(FLEET, deaths=2, lease_share=1.0, delay=(0.3, 0.3), retry_delay=100.0, load=0.3)
    result = Simulation(fleet, OursByWay(fleet)).run()
    assert 0 < result.refused <= 4  # the first refusal deprioritises the worker
    assert result.lost_refused == 0
    assert 0.3 < min(result.waits) < max(result.waits) < 100


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_service_times_have_the_specified_mean(service: str, drift: float) -> None:
    fleet = Fleet(service=service, drift=drift, pareto_shape=3.0)
    assert fmean(request.service for request in fleet.all_requests()) == pytest.approx(8.0, rel=0.05)


def rate(fleet: Fleet) -> float:
    times = [request.arrived for request in fleet.all_requests()]
    assert times == sorted(times)
    return len(times) / times[-1]


@pytest.mark.parametrize("bursts", [False, True])
def test_arrivals_have_the_specified_rate(bursts: bool) -> None:
    fleet = Fleet(bursts=bursts, requests=50_000)
    assert rate(fleet) == pytest.approx(fleet.rate(), rel=0.1)


def test_replay_repeats_the_gaps_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "arrivals"
    file.write_text("10\n11\n14\n")
    fleet = Fleet(arrivals=file, requests=9)
    assert rate(fleet) == pytest.approx(fleet.rate(), rel=0.2)
    times = [0.0, *(request.arrived for request in fleet.all_requests())]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert [gap / gaps[0] for gap in gaps] == pytest.approx([1, 3] * 4 + [1])


@pytest.mark.parametrize("question", QUESTIONS)
def test_command_answers_each_question(question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures"
    few = "--workers 6 --requests 100 --seeds 2 --loads 0.7 --heartbeat-intervals 5 --replica-counts 2"
    options = "--delay 0.01 0.02 --store-latency 0 0.1 --retry-delay 0 --lease-share 0.3 --bursts --service constant"
    monkeypatch.setattr("sys.argv", ["", "--question", question, "--json", str(file), *few.split(), *options.split()])
    main()
    written = json.loads(file.read_text())
    assert (written["fleet"]["workers"], written["fleet"]["delay"]) == (6, [0.01, 0.02])
    for by_value in written["answers"][question].values():
        assert [len(runs) for runs in by_value.values()] == [2]


@pytest.mark.parametrize("service", SERVICES)
def test_best_guess_agrees_with_the_reported_queue_length(service: str) -> None:
    fleet = replace(FLEET, service=service, poll_interval=0.0)
    policy = BestGuess(fleet)
    request = Request(0.0, 1.0, 0.1, 0, False)
    for i in range(40):
        policy.choose(i / 4, request)
    for reported in (0, 3, 9):
        policy.reported(10.5, 0, reported, None)
        now = 10.5 - sum(fleet.report_delay) / 2
        inside = ((policy.ends[0] > now) & (policy.comes[0] <= now)).sum(1)
        assert set(inside) == {reported}
        assert ((policy.free[0] > now).sum(1) == min(reported, fleet.slots)).all()


MEANS = """
import json, sys
from dispatch_quality import simulate
from simulated_fleet import Fleet
load, cases = json.loads(sys.argv[1])
print(json.dumps({case: simulate(case, Fleet(load=load, seed=0)).mean for case in cases}))
"""


def means(load: float, *cases: str) -> dict[str, float]:
    """Return the mean waits. They come from a process without coverage, because coverage takes four times as long."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    command = [sys.executable, "-c", MEANS, json.dumps([load, cases])]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(command, env=env | path, stdout=subprocess.PIPE, check=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.7, 0.95])
def test_our_policies_wait_at_most_as_long_as_the_docs_claim(load: float, figure: Figure) -> None:
    """This runs the default fleet once for each case. The documented figures are from five runs."""
    references = ("one ideal queue", "two choices", "FastChat shortest_queue")
    ours = (
        "ours, no polls",
        "ours, defaults",
        "ours, half lease",
        "ours, leases, capacity reported",
        "ours, by way, capacity reported",
    )
    found = means(load, *references, *ours)
    ideal, two_choices, stock = (found[case] for case in references)
    no_polls, defaults, half, leases, by_way = (found[case] for case in ours)
    figure(f"waits at load {load} relative to the ideal queue", f"{leases / ideal:.2f} with leases and capacity")
    figure(
        f"waits at load {load} relative to two choices",
        f"{no_polls / two_choices:.2f} without polls, {defaults / two_choices:.2f} with the defaults",
    )
    assert max(leases, by_way) <= (1.5 if load > 0.9 else 1.1) * ideal
    assert defaults <= 0.6 * two_choices
    assert half <= 1.02 * defaults
    if load < 0.9:
        assert no_polls <= (0.8 if load < 0.8 else 1.05) * two_choices
        assert no_polls <= 0.15 * stock
