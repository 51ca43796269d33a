"""The data directory of a running controller is deleted or damaged. The store restarts with all workers."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.deletion import delete_tree
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, serves
from tests.system.test_serve import A, B, check_consistency, replicas, stores

pytestmark = pytest.mark.system


async def wait_for_snapshots(controller: ControllerProcess, names: list[str]) -> None:
    """Wait until the snapshot of every replica contains the workers.

    A replica lists workers from its snapshot while the store hangs, so each check stops the store for a moment.
    """

    def listed_without_the_store() -> bool:
        [store] = stores(controller)
        os.kill(store, signal.SIGSTOP)
        try:
            return all(controller.names() == names for _ in range(20))  # 20 calls, so that both replicas respond
        except OSError:  # 503: a replica has no snapshot yet
            return False
        finally:
            os.kill(store, signal.SIGCONT)

    await wait_until(listed_without_the_store, "all snapshots contain the workers")
    await wait_until(lambda: all_serve(controller), "all replicas use the store again")


def all_serve(controller: ControllerProcess) -> bool:
    """Return True if 20 calls in a row, which reach all replicas, find them ready."""
    return all(serves(controller.url) for _ in range(20))


async def start_with_worker(serve: Serve, *flags: str) -> tuple[ControllerProcess, int]:
    """Start a controller and register a worker. Return the controller and the process id of its store."""
    controller = serve("--poll-interval", "0", *flags)
    controller.register(A, check=False)
    await wait_for_snapshots(controller, [A])
    [store] = stores(controller)
    return controller, store


async def check_recovery(controller: ControllerProcess, store: int) -> None:
    await wait_until(lambda: [pid for pid in stores(controller) if pid != store], "the store has been restarted")
    await wait_until(lambda: all_serve(controller) and controller.names() == [A], "the worker is listed again")
    assert [controller.dispatch() for _ in range(20)] == [A] * 20
    controller.register(B, check=False)
    assert set(controller.names()) == {A, B}
    assert "The embedded store runs again" in controller.log
    assert "Traceback" not in controller.log
    await check_consistency(controller)


@pytest.mark.parametrize("flags", [(), pytest.param(("--replicas", "2"), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kill", [False, True])
async def test_a_deleted_directory_is_recreated_with_all_workers(
    serve: Serve, flags: tuple[str, ...], kill: bool
) -> None:
    controller, store = await start_with_worker(serve, *flags)
    delete_tree(controller.data_dir)
    if kill:
        os.kill(store, signal.SIGKILL)
    await check_recovery(controller, store)
    assert "registering 1 workers again" in controller.log
    assert (controller.data_dir / "lock").read_text() == f"{controller.popen.pid}\n"


DELETIONS: dict[str, Callable[[Path], None]] = {
    "socket": lambda data: (data / "store.sock").unlink(),
    "directory": delete_tree,
}


@pytest.mark.slow
@pytest.mark.parametrize("deleted", DELETIONS)
async def test_a_replacement_replica_finds_the_store_after_a_deletion(serve: Serve, deleted: str) -> None:
    controller, store = await start_with_worker(serve, "--replicas", "2")
    before = set(replicas(controller))
    DELETIONS[deleted](controller.data_dir)
    os.kill(min(before), signal.SIGKILL)
    await wait_until(lambda: len(set(replicas(controller)) - before) == 1, "the killed replica has been replaced")
    await check_recovery(controller, store)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda files: [file.write_bytes(b"garbage\n" * 512) for file in files.glob("*.incr.aof")],
    "empty manifest": lambda files: (files / "appendonly.aof.manifest").write_bytes(b""),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_files_are_moved_aside_and_the_registry_is_restored(serve: Serve, damage: str) -> None:
    controller, store = await start_with_worker(serve, "--replicas", "2")
    lines = len(controller.log.splitlines())
    os.kill(store, signal.SIGSTOP)  # a running store could rewrite the damaged files
    DAMAGES[damage](controller.data_dir / "appendonlydir")
    os.kill(store, signal.SIGKILL)
    await check_recovery(controller, store)
    [aside] = controller.data_dir.glob("appendonlydir.damaged-*")
    assert f"The data was moved to {aside}, and the store started without data." in controller.log
    assert "registering 1 workers again" in controller.log
    about_the_store = [line for line in controller.log.splitlines()[lines:] if " controller.store: " in line]
    assert len(about_the_store) <= 4, about_the_store
