"""Compares random histories of calls, faults and data losses on three replicas with a model of one controller.

The summary of the run shows the seed of each history. The seeds are the same in each run, so a failure after a change
is due to the change. HISTORY_SEED=<seed> runs one history. HISTORY_SEED=random runs histories with new seeds.
"""

import os
import random

import pytest

from tests.conftest import REDIS_SERVER, Figure
from tests.model.cluster import Cluster
from tests.model.history import History

SEED = os.environ.get("HISTORY_SEED")
QUICK_HISTORIES = 3
HISTORIES = 1 if SEED and SEED != "random" else 12
STEPS = 400


@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.slow] if n >= QUICK_HISTORIES else []) for n in range(HISTORIES)]
)
async def test_history_agrees_with_the_model(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, figure: Figure, number: int
) -> None:
    """History.run() fails at the first step after which the store and the model disagree."""
    seed = random.SystemRandom().randrange(10**9) if SEED == "random" else int(SEED or 1_000 + number)
    figure(f"history {number}", f"HISTORY_SEED={seed}")
    random.seed(seed)  # the replicas draw from the global generator
    rng = random.Random(seed)
    decays = rng.random() < 0.5
    delay = rng.choice([0.0, 0.2])
    server = "redis_server" if REDIS_SERVER and rng.random() < 0.25 else "embedded"
    url = request.getfixturevalue(f"{server}_url")
    cluster = Cluster(url, "history", decays, delay, monkeypatch)
    history = History(cluster, seed, delay)
    try:
        await history.run(STEPS)
    except BaseException as error:
        error.add_note("\n".join([f"HISTORY_SEED={seed}, {server}, {decays=}, {delay=}", *history.steps]))
        raise
    finally:
        random.seed()
        await cluster.close()
