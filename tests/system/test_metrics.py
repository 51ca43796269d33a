"""GET /metrics sums over replicas, also after temporary files are deleted and replicas are killed."""

import os
import re
import signal
from pathlib import Path

import httpx
import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, serves
from tests.system.test_serve import replicas

pytestmark = pytest.mark.system

A = "http://127.0.0.1:9"


def dispatches(controller: ControllerProcess) -> float:
    answer = httpx.get(f"{controller.url}/metrics")
    assert answer.status_code == 200
    [chosen] = re.findall(r'^controller_dispatches_total\{outcome="chosen"\} (\S+)$', answer.text, re.MULTILINE)
    return float(chosen)


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
        await wait_until(
            lambda killed=before: len(set(replicas(controller)) - killed) == 2, "both replicas are replaced"
        )
        await wait_until(lambda: serves(controller.url), "the replicas serve")
    assert dispatches(controller) == 3
    assert set(controller.data_dir.iterdir()) == files
    assert controller.stop() == 0
    assert "Traceback" not in controller.log
