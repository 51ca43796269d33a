"""The wall clock of a real Redis jumps while two replicas and a stock worker use the server."""

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from ports import free_port

from tests.support.waiting import wait_for_each, wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, answers, call, stock_worker

REDIS_SERVER = shutil.which("redis-server")
COMPILER = shutil.which("cc") or shutil.which("gcc")
SOURCE = Path(__file__).with_name("settable_clock.c")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not (REDIS_SERVER and COMPILER), reason="needs redis-server and a C compiler, which builds settable_clock.c"
    ),
]

SetClock = Callable[[int], None]


@pytest.fixture
def redis_with_clock(work_dir: Path) -> Iterator[tuple[str, SetClock]]:
    """Yield the URL of a Redis and a function that sets its clock some seconds ahead of this machine's clock."""
    library, offset = work_dir / "clock.so", work_dir / "offset"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    offset.write_bytes(bytes(8))

    def set_clock(seconds: int) -> None:
        with offset.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", seconds))

    port = free_port()
    command = [str(REDIS_SERVER), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(work_dir)]
    env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as server:
        try:
            yield f"redis://127.0.0.1:{port}", set_clock
        finally:
            server.terminate()


def readiness(controller: ControllerProcess) -> dict[str, object]:
    body: dict[str, object] = call(f"{controller.url}/readyz", method="GET")
    return body


@pytest.mark.slow
async def test_live_workers_stay_available_after_each_jump(
    serve: Serve, work_dir: Path, redis_with_clock: tuple[str, SetClock]
) -> None:
    url, set_clock = redis_with_clock
    replicas = [serve("--redis-url", url, data=f"replica-{i}") for i in range(2)]
    with stock_worker(work_dir, replicas[0].url, interval=45) as worker:
        await wait_until(
            lambda: all(replica.names() == [worker.url] for replica in replicas), "both replicas list the worker"
        )
        for offset, change in (
            (120, "ahead by 120"),
            (0, "back by 120"),
            (-3600, "back by 3600"),
            (86_400, "ahead by 900"),
        ):
            set_clock(offset)
            for _ in range(20):
                assert {replica.dispatch("echo") for replica in replicas} == {worker.url}
            await wait_for_each(replicas, partial(logs, change), "both replicas log the jump")
            for replica in replicas:
                assert f"was set {change}" in str(readiness(replica)["warning"])
                await wait_until(partial(expires_in_time, replica), "the heartbeat expires in time")
        assert answers(f"{worker.url}/worker_get_status", "POST")
        worker.kill()
        assert all("Traceback" not in replica.log for replica in replicas)


def logs(text: str, controller: ControllerProcess) -> bool:
    return text in controller.log


def expires_in_time(controller: ControllerProcess) -> bool:
    [worker] = controller.workers()
    return 0 < worker["expires_in"] <= 90 and worker["heartbeat_age"] >= 0
