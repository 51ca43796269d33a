"""A rolling upgrade: the version before and this one, side by side on the same keys."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
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
BEFORE = "7f6a9b4"  # the last commit before there was a snapshot, a schema version and a settlement
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


async def test_two_versions_share_the_keys(serve: Serve, work_dir: Path, before: Path, old: list[Old]) -> None:
    async with single(work_dir) as store:
        old.append(Old(before, store.url))
        for name in NAMES:
            status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
            body = {"worker_name": name, "check_heart_beat": name < "http://w2", "worker_status": status}
            assert call(f"{old[0].url}/register_worker", body) is None
        new = serve("--redis-url", store.url)
        assert set(new.names()) == NAMES
        async with load([old[0].url, new.url]) as seen:
            await wait_until(lambda: seen.total > 500, "both dispatch")
        assert seen.failed == []
        assert set(seen.addresses) == NAMES
        assert max(seen.addresses.values()) - min(seen.addresses.values()) <= 2
        assert sum(worker["queue_length"] for worker in new.workers()) == seen.total
        for url in (old[0].url, new.url):
            for name in NAMES:
                heartbeat = {"worker_name": name, "queue_length": 1}
                assert call(f"{url}/receive_heart_beat", heartbeat) == {"exist": True}
        assert call(f"{new.url}/remove_worker", {"worker_name": "http://w0:1"}) == {"exist": True}
        assert call(f"{old[0].url}/list_models") == {"models": ["m"]}
        old[0].process.stop()
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{new.url}/get_worker_address", json={"model": "m"})
        assert answer.json()["address"] in NAMES
        client = connect(store.url, timeout=5.0)
        await check_invariants(client, "controller")
        assert await client.get(keys.schema("controller")) == "1"
        await client.aclose()
