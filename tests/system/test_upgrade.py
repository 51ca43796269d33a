"""An upgrade: a version whose keys are laid out otherwise, and this one, on the same keys."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.store import keys
from controller.store.connection import connect
from tests.invariants import check_invariants
from tests.system.conftest import Serve
from tests.system.load import load
from tests.system.processes import Process, answers, call, free_port
from tests.system.servers import single
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
BEFORE = "16496be"  # the last commit whose keys are laid out in version 1
NAMES = {f"http://w{i}:1" for i in range(4)}


@pytest.fixture
def before(work_dir: Path) -> Path:
    """The version before, unpacked."""
    archive = subprocess.run(["git", "archive", BEFORE, "controller", "lua"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"NOT TESTED, an upgrade from {BEFORE}: git has no such commit here")
    folder = work_dir / "before"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


class Old:
    """A replica of the version before."""

    def __init__(self, folder: Path, store_url: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = ["-m", "controller", "serve", "--host", "127.0.0.1", "--port", str(port), "--redis-url", store_url]
        self.process = Process(folder / "log", "-P", *command, PYTHONPATH=str(folder))
        self.process.wait_for(lambda: answers(f"{self.url}/readyz"), "the old replica is ready")


@pytest.fixture
def old(before: Path) -> Iterator[list[Old]]:
    started: list[Old] = []
    yield started
    for replica in started:
        replica.process.kill()


async def test_another_layout_is_not_touched(serve: Serve, work_dir: Path, before: Path, old: list[Old]) -> None:
    async with single(work_dir) as store:
        old.append(Old(before, store.url))
        for name in NAMES:
            status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
            body = {"worker_name": name, "check_heart_beat": False, "worker_status": status}
            assert call(f"{old[0].url}/register_worker", body) is None
        client = connect(store.url, timeout=5.0)
        assert await client.get(keys.schema("controller")) == "1"
        new = serve("--redis-url", store.url, ready=False)
        new.wait_for(lambda: "is laid out in version 1, this program works with version 2" in new.log, "it says so")
        async with load([old[0].url]) as seen:
            await wait_until(lambda: seen.total > 200, "the other goes on")
        assert seen.failed == []
        assert set(seen.addresses) == NAMES
        new.stop()

        # As the message says: once no replica of the other is left, the keys can go, and this one begins anew.
        old[0].process.stop()
        await client.delete(*await client.keys("{controller}*"))
        again = serve("--redis-url", store.url)
        again.register("http://w0:1")
        assert again.dispatch() == "http://w0:1"
        await check_invariants(client, "controller")
        await client.aclose()
