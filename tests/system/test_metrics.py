"""GET /metrics sums over replicas, even after temporary files are deleted and replicas are killed."""

import os
import signal
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.metrics import value
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, serves
from tests.system.test_serve import replicas

pytestmark = pytest.mark.system

A = "http://127.0.0.1:9"


def dispatches(controller: ControllerProcess) -> float:
    answer = httpx.get(f"{controller.url}/metrics")
    assert answer.status_code == 200
    return value(answer.text, "controller_dispatches_total", outcome="chosen")


def both_replaced(controller: ControllerProcess, killed: set[int]) -> bool:
    return len(set(replicas(controller)) - killed) == 2


@pytest.mark.slow
async def test_counters_keep_their_values_when_replicas_are_killed(serve: Serve, work_dir: Path) -> None:
    temporary = work_dir / "temporary"
    temporary.mkdir()
    controller = serve("--replicas", "2", TMPDIR=str(temporary))
    assert list(temporary.iterdir()) == [], "the controller needs no temporary files"
    temporary.rmdir()
    controller.register(A)
    files = set(controller.data_dir.iterdir())
    for number in range(1, 4):
        assert controller.dispatch() == A
        assert dispatches(controller) == number
        before = set(replicas(controller))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await wait_until(partial(both_replaced, controller, before), "both replicas are replaced")
        await wait_until(lambda: serves(controller.url), "the replicas serve")
    assert dispatches(controller) == 3
    assert set(controller.data_dir.iterdir()) == files
    assert controller.stop() == 0
    assert "Traceback" not in controller.log
