"""benchmarks/affinity_simulation.py: properties that do not depend on the exact figures."""

from dataclasses import replace
from statistics import fmean

import pytest
from affinity_simulation import POLICIES, Cache, Result, Simulation
from affinity_workloads import WORKLOADS, Parameters

ENGINES = Parameters(workers=4, slots=16, requests=1_500)


def run(policy: str, workload: str, parameters: Parameters = ENGINES) -> Result:
    return Simulation(replace(parameters, workload=workload), POLICIES[policy]).run()


def processed(result: Result) -> float:
    return result.processed / result.tokens


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("policy", POLICIES)
def test_no_more_tokens_are_processed_than_there_are(policy: str, workload: str) -> None:
    result = run(policy, workload, replace(ENGINES, requests=300))
    assert len(result.waits) == 300
    assert min(result.waits) > 0
    assert 0 < result.processed <= result.tokens


def test_requests_that_share_nothing_wait_as_long_as_without_affinity() -> None:
    with_affinity, without = (fmean(run(policy, "nothing shared").waits) for policy in ("ours", "least requests"))
    assert with_affinity == pytest.approx(without, rel=0.02)


@pytest.mark.parametrize("workload", ["conversations", "documents"])
def test_shared_beginnings_are_processed_rarely(workload: str) -> None:
    ours, least = run("ours", workload), run("least requests", workload)
    assert processed(ours) < processed(least) / 1.5
    assert fmean(ours.waits) < fmean(least.waits) / 1.5


@pytest.mark.parametrize("workload", ["documents", "one system prompt"])
def test_the_limit_keeps_requests_from_one_worker(workload: str) -> None:
    assert fmean(run("ours", workload).waits) < fmean(run("unbounded", workload).waits) / 10


def test_a_beginning_that_all_share_costs_little() -> None:
    ours, least = (fmean(run(policy, "one system prompt").waits) for policy in ("ours", "least requests"))
    assert ours < 1.5 * least


def test_the_cache_drops_what_was_used_least_recently_from_the_end_on() -> None:
    cache = Cache(64 * 4)
    assert cache.take([("a", 64 * 2)]) == 0
    assert cache.take([("a", 64 * 2), ("b", 64)]) == 64 * 2
    assert cache.take([("c", 64 * 2)]) == 0
    assert cache.take([("a", 64 * 2), ("b", 64)]) == 64 * 2
