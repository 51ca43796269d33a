"""The replicas share the workers by rendezvous hashing."""

import random
import statistics
from collections import Counter

import pytest

from controller.fleet.rendezvous import Share

NAMES = [f"http://127.0.0.{number}:8000" for number in range(1, 241)]
IDS = ["8d0c3f0a", "17aa4e5b", "c2b95d77", "5e61f0d4", "b07d2c19", "f4483a6e", "6b9e1f83", "29c7d850"]


def owners(replicas: list[str]) -> dict[str, str]:
    """Return the owner of each name. Each has one."""
    shares = {replica: Share(replica, replicas) for replica in replicas}
    found = {name: [replica for replica, share in shares.items() if share.has(name)] for name in NAMES}
    return {name: owner for name, [owner] in found.items()}


@pytest.mark.parametrize(("count", "limit"), [(3, 1.2), (4, 1.2), (8, 1.35)])
def test_shares_are_about_equal(count: int, limit: float) -> None:
    rng = random.Random(1)
    clusters = [[f"{rng.getrandbits(64):016x}" for _ in range(count)] for _ in range(20)]
    largest = [max(Counter(owners(replicas).values()).values()) for replicas in clusters]
    assert statistics.mean(largest) < limit * len(NAMES) / count


def test_a_replica_that_leaves_moves_only_its_own_share() -> None:
    before, after = owners(IDS), owners(IDS[1:])
    assert {name for name in NAMES if before[name] != after[name]} == {n for n in NAMES if before[n] == IDS[0]}


def test_replica_without_a_list_of_replicas_owns_nothing() -> None:
    assert not Share(IDS[0], []).has(NAMES[0])
