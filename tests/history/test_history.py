"""Records a history on real processes with faults, and checks it. docs/contributing/histories.md explains how.

HISTORY_SEED repeats the calls and faults of a run, and HISTORY_SECONDS sets its duration.
"""

import os
import random
from pathlib import Path

import pytest

from tests.conftest import Figure
from tests.history.run import run_history

pytestmark = [pytest.mark.system, pytest.mark.slow]

SEED = os.environ.get("HISTORY_SEED", "random")
SECONDS = float(os.environ.get("HISTORY_SECONDS", "30"))


@pytest.mark.timeout(SECONDS + 300)
async def test_the_history_is_linearizable(work_dir: Path, figure: Figure) -> None:
    seed = random.SystemRandom().randrange(10**9) if SEED == "random" else int(SEED)
    figure("history on real processes", f"HISTORY_SEED={seed}")
    summary = await run_history(work_dir, SECONDS, seed)
    figure("history", str(summary).replace("\n", "\n    "))
    assert summary.exact > 0
    assert summary.given_up < summary.exact
