"""The data directory of a running controller is deleted or damaged: the store comes back with all workers."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, serves
from tests.system.test_serve import A, B, consistent, replicas, stores


async def snapshots_know(controller: ControllerProcess, names: list[str]) -> None:
    """Wait until every replica has the workers in its snapshot: until they are listed while the store hangs."""

    def without_the_store() -> bool:
        [store] = stores(controller)
        os.kill(store, signal.SIGSTOP)
        try:
            return all(controller.names() == names for _ in range(20))  # by whichever replica
        except OSError:  # 503: it has no snapshot yet
            return False
        finally:
            os.kill(store, signal.SIGCONT)

    await wait_until(without_the_store, "the snapshots are taken")
    await wait_until(lambda: all_serve(controller), "the store serves again")


def all_serve(controller: ControllerProcess) -> bool:
    """Whichever replica is asked."""
    return all(serves(controller.url) for _ in range(20))


async def registered(serve: Serve, *flags: str) -> tuple[ControllerProcess, int]:
    """A controller with a worker, and its store's process."""
    controller = serve("--poll-interval", "0", *flags)
    controller.register(A, check=False)
    await snapshots_know(controller, [A])
    [store] = stores(controller)
    return controller, store


async def comes_back(controller: ControllerProcess, store: int) -> None:
    await wait_until(lambda: [pid for pid in stores(controller) if pid != store], "another store is there")
    await wait_until(lambda: all_serve(controller) and controller.names() == [A], "the registry is restored")
    assert [controller.dispatch() for _ in range(20)] == [A] * 20
    controller.register(B, check=False)
    assert set(controller.names()) == {A, B}
    assert "The embedded store runs again" in controller.log
    assert "Traceback" not in controller.log
    await consistent(controller)


@pytest.mark.parametrize("flags", [(), ("--replicas", "2")])
@pytest.mark.parametrize("kill", [False, True])
async def test_a_deleted_directory_is_made_again_with_all_that_was_registered(
    serve: Serve, flags: tuple[str, ...], kill: bool
) -> None:
    controller, store = await registered(serve, *flags)
    shutil.rmtree(controller.data_dir)
    if kill:
        os.kill(store, signal.SIGKILL)
    await comes_back(controller, store)
    assert "registering 1 workers again" in controller.log
    assert (controller.data_dir / "lock").read_text() == f"{controller.popen.pid}\n"


DELETIONS: dict[str, Callable[[Path], None]] = {
    "socket": lambda data: (data / "store.sock").unlink(),
    "directory": shutil.rmtree,
}


@pytest.mark.parametrize("what", DELETIONS)
async def test_a_replica_that_is_replaced_meanwhile_finds_the_store(serve: Serve, what: str) -> None:
    controller, store = await registered(serve, "--replicas", "2")
    before = set(replicas(controller))
    DELETIONS[what](controller.data_dir)
    os.kill(min(before), signal.SIGKILL)
    await wait_until(lambda: len(set(replicas(controller)) - before) == 1, "another replica is there")
    await comes_back(controller, store)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "garbage": lambda files: [file.write_bytes(b"garbage\n" * 512) for file in files.glob("*.incr.aof")],
    "empty manifest": lambda files: (files / "appendonly.aof.manifest").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_files_are_moved_aside_and_the_registry_is_restored(serve: Serve, damage: str) -> None:
    controller, store = await registered(serve, "--replicas", "2")
    lines = len(controller.log.splitlines())
    os.kill(store, signal.SIGSTOP)  # so that it cannot write its data again before it is killed
    DAMAGES[damage](controller.data_dir / "appendonlydir")
    os.kill(store, signal.SIGKILL)
    await comes_back(controller, store)
    [aside] = controller.data_dir.glob("appendonlydir.damaged-*")
    assert f"they were moved to {aside}, and the store starts without data." in controller.log
    assert "registering 1 workers again" in controller.log
    about_the_store = [line for line in controller.log.splitlines()[lines:] if " controller.store: " in line]
    assert len(about_the_store) <= 4, about_the_store
