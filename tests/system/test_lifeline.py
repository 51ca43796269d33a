"""A test run that is ended by a signal leaves no processes."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.lifeline import alive
from tests.support.waiting import wait_until
from tests.system.processes import Process

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
ENDLESS_TEST = """
import json
import os
import subprocess
import time
from pathlib import Path

import psutil
from tests.system.processes import stock_worker
from tests.system.servers import single


async def test_endless(serve, work_dir, embedded_url):
    controller = serve("--replicas", "2")
    async with single(work_dir):
        with stock_worker(work_dir, controller.url), subprocess.Popen(["sleep", "600"], start_new_session=True):
            started = [process.pid for process in psutil.Process().children(recursive=True)]
            report = Path(os.environ["REPORT"])
            report.with_suffix(".new").write_text(json.dumps({"runner": os.getpid(), "started": started}))
            report.with_suffix(".new").rename(report)
            time.sleep(600)
"""


class Run:
    """A run of pytest during a test that has started processes of all kinds."""

    def __init__(self, work_dir: Path, *flags: str) -> None:
        test, report = work_dir / "test_endless.py", work_dir / "report.json"
        test.write_text(ENDLESS_TEST)
        plugins = ["-p", "tests.conftest", "-p", "tests.system.conftest", "-p", "no:cacheprovider", "--no-cov"]
        command = ["-m", "pytest", "-c", str(ROOT / "pyproject.toml"), *plugins, *flags, str(test)]
        self.pytest = Process(work_dir / "pytest.log", *command, REPORT=str(report), PYTHONPATH=str(ROOT))
        self._report = report

    def wait(self) -> None:
        """Wait until the test has started all processes."""
        self.pytest.wait_for(self._report.exists, "the test runs", timeout=300.0)
        content = json.loads(self._report.read_text())
        self.runner = psutil.Process(content["runner"])  # pytest, or its worker
        self.started = [psutil.Process(pid) for pid in content["started"]]


@pytest.fixture
def run(work_dir: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*flags: str) -> Run:
        runs.append(Run(work_dir, *flags))
        runs[-1].wait()
        return runs[-1]

    yield start
    for each in runs:
        each.pytest.kill()


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
async def test_all_processes_end_with_the_runner(run: Callable[..., Run], ended_by: signal.Signals) -> None:
    running = run()
    assert len(running.started) >= 9, "two stores and a watch process, a controller, two replicas, a worker, ..."
    running.pytest.popen.send_signal(ended_by)
    await wait_until(lambda: not list(filter(alive, running.started)), "all started processes have ended")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["pytest", "its worker"])
async def test_all_processes_end_with_a_worker_of_xdist(run: Callable[..., Run], which: str) -> None:
    running = run("-n", "1", "--max-worker-restart", "0")
    assert running.runner.pid != running.pytest.popen.pid
    (running.runner if which == "its worker" else running.pytest.popen).kill()
    await wait_until(lambda: not list(filter(alive, running.started)), "all started processes have ended")
    await wait_until(lambda: not alive(running.runner), "the worker has ended")
