"""Upgrades: an earlier version and this one use the same keys, at the same time if the key layouts match."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ports import free_port

from controller.store import keys
from controller.store.connection import connect
from controller.store.registry import SCHEMA
from tests.support.clients import Client
from tests.support.invariants import check_invariants
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.load import load
from tests.system.processes import Process, answers, call
from tests.system.servers import single

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
OTHER_LAYOUT = "db9b310"  # the last commit with key layout 3
# The keys, the fields and checkpoints of a worker, and the replies that are kept.
LAYOUT_FILES = [
    "lua/include/key.lua",
    "lua/include/load/read_load.lua",
    "lua/include/load/add_checkpoint.lua",
    "lua/include/dispatch/run_batch.lua",
]
NAMES = {f"http://127.0.0.1:1/w{i}" for i in range(4)}


def first_commit_of_this_layout() -> str:
    """Return the commit that changed the layout of the keys last."""
    command = ["git", "log", "-1", "--format=%h", "--", *LAYOUT_FILES]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return found or pytest.skip("NOT TESTED, an upgrade: this is not a git checkout")


def unpack(commit: str, work_dir: Path) -> Path:
    """Unpack the controller of a commit. Return its directory."""
    archive = subprocess.run(["git", "archive", commit, "controller", "lua"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"NOT TESTED, an upgrade from {commit}: git has no such commit here")
    folder = work_dir / commit
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


class OldReplica:
    """A replica of an earlier version."""

    def __init__(self, folder: Path, store_url: str, *flags: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            "-m",
            "controller",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--redis-url",
            store_url,
            *flags,
        ]
        self.process = Process(folder / "log", "-P", *command, PYTHONPATH=str(folder))
        self.process.wait_for(lambda: answers(f"{self.url}/readyz"), "the old replica is ready")


@pytest.fixture
def old() -> Iterator[list[OldReplica]]:
    started: list[OldReplica] = []
    yield started
    for replica in started:
        replica.process.kill()


async def test_keys_of_another_layout_are_not_changed(serve: Serve, work_dir: Path, old: list[OldReplica]) -> None:
    async with single(work_dir) as store:
        old.append(OldReplica(unpack(OTHER_LAYOUT, work_dir), store.url))
        for name in NAMES:
            status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
            body = {"worker_name": name, "check_heart_beat": False, "worker_status": status}
            assert call(f"{old[0].url}/register_worker", body) is None
        client: Client = connect(store.url, timeout=60.0)
        assert await client.get(keys.schema("controller")) == "3"
        new = serve("--redis-url", store.url, ready=False)
        new.wait_for(
            lambda: f"has key layout version 3. This program needs version {SCHEMA}" in new.log,
            "the new replica reports the other layout",
        )
        async with load([old[0].url]) as results:
            await wait_until(lambda: results.total > 200, "the old replica keeps dispatching")
        assert results.failed == []
        assert set(results.addresses) == NAMES
        new.stop()

        # The message says how to continue: stop the old replicas, delete the keys, and start the new version.
        old[0].process.stop()
        await client.delete(*await client.keys("{controller}*"))
        again = serve("--redis-url", store.url)
        again.register("http://127.0.0.1:1/w0")
        assert again.dispatch() == "http://127.0.0.1:1/w0"
        await check_invariants(client, "controller")
        await client.aclose()


async def test_two_versions_share_the_keys(serve: Serve, work_dir: Path, old: list[OldReplica]) -> None:
    async with single(work_dir) as store:
        flags = ("--booking-decay", "off", "--booking-delay", "0", "--poll-interval", "0")
        old.append(OldReplica(unpack(first_commit_of_this_layout(), work_dir), store.url, *flags))
        for name in NAMES:
            status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
            body = {"worker_name": name, "check_heart_beat": name < "http://127.0.0.1:1/w2", "worker_status": status}
            assert call(f"{old[0].url}/register_worker", body) is None
        new = serve("--redis-url", store.url)
        assert set(new.names()) == NAMES
        async with load([old[0].url, new.url]) as results:
            await wait_until(lambda: results.total > 500, "both replicas dispatch")
        assert results.failed == []
        assert set(results.addresses) == NAMES
        assert max(results.addresses.values()) - min(results.addresses.values()) <= 2
        assert sum(worker["queue_length"] for worker in new.workers()) == results.total
        for url in (old[0].url, new.url):
            for name in NAMES:
                heartbeat = {"worker_name": name, "queue_length": 1}
                assert call(f"{url}/receive_heart_beat", heartbeat) == {"exist": True}
        assert call(f"{new.url}/remove_worker", {"worker_name": "http://127.0.0.1:1/w0"}) == {"exist": True}
        assert call(f"{old[0].url}/list_models") == {"models": ["m"]}
        old[0].process.stop()
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{new.url}/get_worker_address", json={"model": "m"})
        assert answer.json()["address"] in NAMES
        client: Client = connect(store.url, timeout=60.0)
        await check_invariants(client, "controller")
        assert await client.get(keys.schema("controller")) == SCHEMA
        await client.aclose()
