"""Test how the embedded store recovers when its files are deleted, replaced or damaged."""

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from controller.domain.errors import EmbeddedStoreError
from controller.store.connection import connect
from controller.store.embedded import server_process
from controller.store.embedded import store as embedded
from controller.store.embedded.store import EmbeddedStore
from tests.store.test_embedded import has_exited, register, worker_names
from tests.support.deletion import delete_tree
from tests.support.samples import A
from tests.support.waiting import wait_until

Deletion = Callable[[Path], None]
MANIFEST = "appendonlydir/appendonly.aof.manifest"


@pytest.fixture
def data(short_dir: Path) -> Iterator[Path]:
    """Return a path for a data directory. Its parent directory is deleted after the test."""
    parent = short_dir / "files"
    yield parent / "data"
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def store(data: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(data) as opened:
        yield opened


def is_intact(store: EmbeddedStore) -> bool:
    """Return True if the store finds no fault with its server and files."""
    return store._server is not None and store._find_fault(store._server) is None


async def wait_until_recovered(store: EmbeddedStore, caplog: pytest.LogCaptureFixture, message: str) -> None:
    await wait_until(lambda: message in caplog.text, f"the log contains {message!r}")
    await wait_until(lambda: is_intact(store), "the store finds no fault")


def delete_all_files(data: Path) -> None:
    delete_tree(data / "appendonlydir")
    for file in data.iterdir():
        file.unlink()


def replace_directory(data: Path) -> None:
    data.rename(data.with_name("old"))
    data.mkdir()


WITHOUT_DATA: dict[str, tuple[Deletion, str]] = {
    "directory": (delete_tree, "data was deleted: restarting the store without data."),
    "parent": (lambda data: delete_tree(data.parent), "data was deleted: restarting the store without data."),
    "replaced": (replace_directory, "data was replaced: restarting the store without data."),
    "all files": (delete_all_files, "store.sock was deleted: restarting the store without data."),
}


@pytest.mark.parametrize("case", WITHOUT_DATA)
async def test_deleted_directory_is_created_again(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    first = store.pid
    delete, logged = WITHOUT_DATA[case]
    delete(data)
    await wait_until_recovered(store, caplog, "The embedded store runs again, as process")
    assert logged in caplog.text
    assert has_exited(first)
    if case != "replaced":
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
    with pytest.raises(EmbeddedStoreError, match=rf"in use by another controller \(process {os.getpid()}\)"):
        EmbeddedStore(data).__enter__()
    await register(store.url)
    os.kill(store.pid, signal.SIGKILL)
    await wait_until_recovered(store, caplog, "restarting the store on the same data.")
    assert await worker_names(store.url) == [A]


@pytest.mark.parametrize("replaced", [False, True])
async def test_deleted_socket_loses_no_data(
    store: EmbeddedStore, caplog: pytest.LogCaptureFixture, replaced: bool
) -> None:
    await register(store.url)
    first = store.pid
    store.socket_path.unlink()
    if replaced:
        store.socket_path.touch()
    await wait_until_recovered(store, caplog, "The embedded store runs again, as process")
    assert "store.sock was deleted: restarting the store on the same data." in caplog.text
    assert has_exited(first)
    assert await worker_names(store.url) == [A]


@pytest.mark.parametrize("what", ["appendonlydir", MANIFEST, "appendonlydir/appendonly.aof.1.incr.aof"])
async def test_deleted_data_is_written_again(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    await register(store.url)
    first = store.pid
    if what == "appendonlydir":
        shutil.rmtree(data / what)
    else:
        (data / what).unlink()
    await wait_until_recovered(store, caplog, "The embedded store's data is on the disk again")
    assert store.pid == first, "the server was not restarted"
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: store.pid != first, "another server runs")
    assert await worker_names(store.url) == [A]


async def test_rewrite_of_deleted_data_is_retried_after_a_failure(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_REWRITE_TIMEOUT", 0.3)
    await register(store.url)
    first = store.pid
    delete_tree(data / "appendonlydir")
    (data / "appendonlydir").touch()  # a file prevents the new directory
    await wait_until(lambda: "cannot write its data, retrying: See" in caplog.text, "the failure is logged")
    (data / "appendonlydir").unlink()
    await wait_until_recovered(store, caplog, "The embedded store's data is on the disk again")
    assert store.pid == first
    assert await worker_names(store.url) == [A]


async def test_deleted_lock_is_acquired_again(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.pid
    (data / "lock").unlink()
    await wait_until_recovered(store, caplog, "lock was deleted: it was created again and is locked.")
    assert store.pid == first, "the server was not restarted"
    with pytest.raises(EmbeddedStoreError, match=rf"in use by another controller \(process {os.getpid()}\)"):
        EmbeddedStore(data).__enter__()


async def test_deleted_log_is_created_again(store: EmbeddedStore, data: Path) -> None:
    (data / "store.log").unlink()
    client = connect(store.url, timeout=60.0)
    await client.config_set("loglevel", "verbose")
    await client.aclose()
    await wait_until((data / "store.log").exists, "the server has written a line")


@pytest.mark.parametrize("what", ["directory", "lock"])
async def test_server_stops_while_another_controller_owns_the_directory(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Our controller stops its server, logs the reason, and retries until the other controller has exited."""
    first = store.pid
    others = data.with_name("others")
    others.mkdir()
    with (others / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        if what == "directory":
            data.rename(data.with_name("old"))
            others.rename(data)
        else:
            (others / "lock").rename(data / "lock")
        refused = "cannot be started again, retrying every 1 s: The data directory"
        await wait_until(lambda: refused in caplog.text, "the refusal is logged")
        assert "is in use by another controller (process 4711)." in caplog.text
        assert has_exited(first)
        assert not store.socket_path.exists(), "our server has exited"
    await wait_until_recovered(store, caplog, "The embedded store runs again, as process")
    assert caplog.text.count(refused) == 1


async def test_server_restarts_after_it_is_killed_and_its_directory_deleted(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.pid
    delete_tree(data)
    os.kill(first, signal.SIGKILL)
    await wait_until_recovered(store, caplog, "The embedded store runs again, as process")
    assert await worker_names(store.url) == []


def garbage(files: Path) -> None:
    (files / "appendonly.aof.1.incr.aof").write_bytes(b"garbage\n" * 512)


def empty_manifest(files: Path) -> None:
    (files / "appendonly.aof.manifest").write_bytes(b"")


def garbage_manifest(files: Path) -> None:
    with (files / "appendonly.aof.manifest").open("ab") as manifest:
        manifest.write(b"garbage\n")


DAMAGES: dict[str, tuple[Deletion, str]] = {
    "garbage": (garbage, "on the same data."),
    "empty manifest": (empty_manifest, "on incomplete data."),
    "garbage in the manifest": (garbage_manifest, "on incomplete data."),
    "no base": (lambda files: (files / "appendonly.aof.1.base.rdb").unlink(), "on incomplete data."),
}


def kill_with(store: EmbeddedStore, data: Path, damage: Deletion) -> None:
    """Suspend the server so that it cannot rewrite its files, damage the files, then kill the server."""
    first = store.pid
    os.kill(first, signal.SIGSTOP)
    damage(data / "appendonlydir")
    os.kill(first, signal.SIGKILL)


def write_manifest(text: str, files: Path) -> None:
    (files / "appendonly.aof.manifest").write_text(text)


def is_replaced(store: EmbeddedStore, pid: int) -> bool:
    return store.pid != pid and is_intact(store)


@pytest.mark.parametrize("case", DAMAGES)
async def test_restart_moves_damaged_files_aside(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    await register(store.url)
    damage, logged = DAMAGES[case]
    kill_with(store, data, damage)
    await wait_until_recovered(store, caplog, "The embedded store runs again, as process")
    [aside] = data.glob("appendonlydir.damaged-*")
    assert (aside / "appendonly.aof.manifest").exists()
    assert f"restarting the store {logged}" in caplog.text
    assert caplog.text.count(f"The data was moved to {aside}, and the store started without data.") == 1
    assert "cannot be started again" not in caplog.text
    assert await worker_names(store.url) == []
    await register(store.url)
    first = store.pid
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: store.pid != first, "another server runs")
    assert await worker_names(store.url) == [A]


@pytest.mark.parametrize("damage", [empty_manifest, garbage_manifest])
async def test_damaged_manifest_is_rewritten_while_the_server_runs(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, damage: Deletion
) -> None:
    await register(store.url)
    first = store.pid
    damage(data / "appendonlydir")
    await wait_until_recovered(store, caplog, "The embedded store's data is on the disk again")
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: store.pid != first, "another server runs")
    assert await worker_names(store.url) == [A]


async def test_three_damaged_copies_and_other_files_are_kept(
    store: EmbeddedStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "appendonlydir.damaged-20260102-030405")
    mine = data / "appendonlydir.damaged-mine"
    mine.mkdir()
    for number in range(1, 6):
        first = store.pid
        kill_with(store, data, partial(write_manifest, f"copy {number}"))
        await wait_until(partial(is_replaced, store, first), "another server runs")
    copies = sorted(data.glob("appendonlydir.damaged-2*"))
    kept = {(copy / "appendonly.aof.manifest").read_text() for copy in copies}
    assert len(copies) == 3
    assert "copy 5" in kept
    assert mine.exists()


async def test_failing_server_program_loses_no_data(
    data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def log_another_line() -> Path:
        attempts.append(f"attempt {len(attempts)}\n")
        (data / "store.log").write_text(attempts[-1])
        return Path("/bin/false")

    with EmbeddedStore(data) as store:
        await register(store.url)
        monkeypatch.setattr(server_process, "find_server", log_another_line)
        os.kill(store.pid, signal.SIGKILL)
        await wait_until(lambda: len(attempts) > 5, "the start was attempted more than twice with and without the data")
    monkeypatch.undo()
    assert caplog.text.count("cannot be started again, retrying every 1 s") == 1
    assert not list(data.glob("appendonlydir.damaged-*"))
    with EmbeddedStore(data) as again:
        assert await worker_names(again.url) == [A]


@contextlib.contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    """Mount a file system. The last argument is the mount point."""
    if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
        pytest.skip("this system does not allow mounts")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", arguments[-1]], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")
async def test_read_only_file_is_not_treated_as_damaged(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await register(store.url)
    file = data / "appendonlydir/appendonly.aof.1.incr.aof"
    first = store.pid
    os.kill(first, signal.SIGSTOP)
    with mounted("--bind", file, file):
        subprocess.run(["mount", "-o", "remount,bind,ro", file], check=True)
        os.kill(first, signal.SIGKILL)
        refused = f"cannot write into {data}: {file}: Read-only file system."
        await wait_until(lambda: refused in caplog.text, "the reason is logged")
        assert not list(data.glob("appendonlydir.damaged-*"))
    await wait_until_recovered(store, caplog, "The embedded store runs again, as process")
    assert await worker_names(store.url) == [A]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")
async def test_full_disk_is_not_treated_as_damage(short_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = short_dir / "full-disk"
    disk.mkdir()
    data = disk / "data"
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", disk), EmbeddedStore(data) as store:
        os.kill(store.pid, signal.SIGSTOP)
        garbage(data / "appendonlydir")
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        os.kill(store.pid, signal.SIGKILL)
        await wait_until(lambda: "No space left on device. Free space" in caplog.text, "the reason is logged")
        assert not list(data.glob("appendonlydir.damaged-*"))
        (disk / "filler").unlink()
        await wait_until_recovered(store, caplog, "The embedded store runs again, as process")
        assert len(list(data.glob("appendonlydir.damaged-*"))) == 1


def test_first_start_does_not_move_damaged_files(data: Path) -> None:
    with EmbeddedStore(data):
        pass
    empty_manifest(data / "appendonlydir")
    with pytest.raises(EmbeddedStoreError, match="does not start on"):
        EmbeddedStore(data).__enter__()
    assert not list(data.glob("appendonlydir.damaged-*"))
