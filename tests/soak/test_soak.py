"""A short soak. docs/contributing/histories.md says how to run a long one."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Figure
from tests.soak.soak import ReplicaUsage, Summary, Usage, problems, run_soak

SEED = os.environ.get("SOAK_SEED")


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_is_left_over(work_dir: Path, figure: Figure) -> None:
    seed = int(SEED) if SEED else random.SystemRandom().randrange(10**9)
    figure("soak", f"SOAK_SEED={seed}")
    summary = await run_soak(work_dir, seed, warm_up=8.0, seconds=16.0, fault_every=3.0)
    figure("soak", str(summary).replace("\n", "\n    "))
    assert summary.faults.total() > 0
    assert problems(summary) == []


KEYS = {"{controller}:sequence", "{controller}:epoch", "{controller}:decay:a"}
FLAT = Usage(KEYS, 3 * 2**20, [ReplicaUsage(60 * 2**20, 15, 8)] * 2)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (FLAT, ""),
        (replace(FLAT, keys=KEYS | {"{controller}:draining:http://127.0.0.1:1/w7"}), ""),
        (replace(FLAT, keys=KEYS | {"{controller}:checkpoints:http://127.0.0.1:1/w7"}), "1 keys are left"),
        (replace(FLAT, keys=KEYS | {"{controller}:decay:b"}), "1 more time constants"),
        (replace(FLAT, redis_memory=7 * 2**20), "memory of Redis"),
        (replace(FLAT, replicas=[FLAT.replicas[0], ReplicaUsage(100 * 2**20, 15, 8)]), "memory of replica 1"),
        (replace(FLAT, replicas=[FLAT.replicas[0], ReplicaUsage(60 * 2**20, 25, 8)]), "more open files"),
        (replace(FLAT, replicas=[FLAT.replicas[0], ReplicaUsage(60 * 2**20, 15, 60)]), "60 connections"),
    ],
)
def test_what_counts_as_left_over(after: Usage, expected: str) -> None:
    found = problems(Summary(1, before=FLAT, after=after))
    assert bool(found) is bool(expected)
    assert expected in "".join(found)
