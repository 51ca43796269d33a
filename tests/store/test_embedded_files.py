"""The embedded store recovers, with its data if possible, when its files are deleted, replaced or damaged."""

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
from tests.store.test_embedded import gone, known, register
from tests.support.samples import A
from tests.support.waiting import wait_until

Deletion = Callable[[Path], None]
MANIFEST = "appendonlydir/appendonly.aof.manifest"


@pytest.fixture
def data(short_dir: Path) -> Iterator[Path]:
    """A path for a data directory, in a directory of its own."""
    parent = short_dir / "files"
    yield parent / "data"
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def store(data: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(data) as opened:
        yield opened


def whole(store: EmbeddedStore) -> bool:
    """Return whether nothing is at fault, as the store itself sees it."""
    return store._server is not None and store._find_fault(store._server) is None


async def mended(store: EmbeddedStore, caplog: pytest.LogCaptureFixture, last: str) -> None:
    await wait_until(lambda: last in caplog.text, f"the log says {last!r}")
    await wait_until(lambda: whole(store), "nothing is at fault")


def empty(data: Path) -> None:
    shutil.rmtree(data / "appendonlydir")
    for file in data.iterdir():
        file.unlink()


def replace_directory(data: Path) -> None:
    data.rename(data.with_name("old"))
    data.mkdir()


WITHOUT_DATA: dict[str, tuple[Deletion, str]] = {
    "directory": (shutil.rmtree, "data was deleted: restarting the store without data."),
    "parent": (lambda data: shutil.rmtree(data.parent), "data was deleted: restarting the store without data."),
    "replaced": (replace_directory, "data was replaced: restarting the store without data."),
    "all files": (empty, "store.sock was deleted: restarting the store without data."),
}


@pytest.mark.parametrize("case", WITHOUT_DATA)
async def test_a_directory_that_is_gone_is_made_again(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    first = store.pid
    delete, said = WITHOUT_DATA[case]
    delete(data)
    await mended(store, caplog, "The embedded store runs again, as process")
    assert said in caplog.text
    assert gone(first)
    if case != "replaced":
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
    with pytest.raises(EmbeddedStoreError, match=rf"in use by another controller \(process {os.getpid()}\)"):
        EmbeddedStore(data).__enter__()
    await register(store.url)
    os.kill(store.pid, signal.SIGKILL)
    await mended(store, caplog, "restarting the store on the same data.")
    assert await known(store.url) == [A]


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_socket_that_is_gone_costs_no_data(
    store: EmbeddedStore, caplog: pytest.LogCaptureFixture, replaced: bool
) -> None:
    await register(store.url)
    first = store.pid
    store.socket_path.unlink()
    if replaced:
        store.socket_path.touch()
    await mended(store, caplog, "The embedded store runs again, as process")
    assert "store.sock was deleted: restarting the store on the same data." in caplog.text
    assert gone(first)
    assert await known(store.url) == [A]


@pytest.mark.parametrize("what", ["appendonlydir", MANIFEST, "appendonlydir/appendonly.aof.1.incr.aof"])
async def test_data_that_are_gone_are_written_again(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    await register(store.url)
    first = store.pid
    if what == "appendonlydir":
        shutil.rmtree(data / what)
    else:
        (data / what).unlink()
    await mended(store, caplog, "The embedded store's data is on the disk again")
    assert store.pid == first, "the server need not be restarted"
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: store.pid != first, "another server is there")
    assert await known(store.url) == [A]


async def test_data_that_cannot_be_written_again_are_tried_again(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_REWRITE_TIMEOUT", 0.3)
    await register(store.url)
    first = store.pid
    shutil.rmtree(data / "appendonlydir")
    (data / "appendonlydir").touch()  # in the way
    await wait_until(lambda: "cannot write its data, retrying: See" in caplog.text, "it is logged")
    (data / "appendonlydir").unlink()
    await mended(store, caplog, "The embedded store's data is on the disk again")
    assert store.pid == first
    assert await known(store.url) == [A]


async def test_a_lock_that_is_gone_is_taken_again(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.pid
    (data / "lock").unlink()
    await mended(store, caplog, "lock was deleted: it was created again and is locked.")
    assert store.pid == first, "the server need not be restarted"
    with pytest.raises(EmbeddedStoreError, match=rf"in use by another controller \(process {os.getpid()}\)"):
        EmbeddedStore(data).__enter__()


async def test_a_log_that_is_gone_comes_back(store: EmbeddedStore, data: Path) -> None:
    (data / "store.log").unlink()
    client = connect(store.url, timeout=60.0)
    await client.config_set("loglevel", "verbose")
    await client.aclose()
    await wait_until((data / "store.log").exists, "the server has written a line")


@pytest.mark.parametrize("what", ["directory", "lock"])
async def test_another_controller_that_has_the_directory_is_not_disturbed(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Ours ends its server, says so, and tries until the other one has gone."""
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
        assert gone(first)
        assert not store.socket_path.exists(), "no server of ours is left"
    await mended(store, caplog, "The embedded store runs again, as process")
    assert caplog.text.count(refused) == 1


async def test_a_server_that_dies_with_its_directory_comes_back(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.pid
    shutil.rmtree(data)
    os.kill(first, signal.SIGKILL)
    await mended(store, caplog, "The embedded store runs again, as process")
    assert await known(store.url) == []


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
    """Damage the files and kill the server, which is stopped so that it cannot write its data again meanwhile."""
    first = store.pid
    os.kill(first, signal.SIGSTOP)
    damage(data / "appendonlydir")
    os.kill(first, signal.SIGKILL)


def write_manifest(text: str, files: Path) -> None:
    (files / "appendonly.aof.manifest").write_text(text)


def is_replaced(store: EmbeddedStore, pid: int) -> bool:
    return store.pid != pid and whole(store)


@pytest.mark.parametrize("case", DAMAGES)
async def test_damaged_files_are_moved_aside_when_the_server_is_started_again(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    await register(store.url)
    damage, said = DAMAGES[case]
    kill_with(store, data, damage)
    await mended(store, caplog, "The embedded store runs again, as process")
    [aside] = data.glob("appendonlydir.damaged-*")
    assert (aside / "appendonly.aof.manifest").exists()
    assert f"restarting the store {said}" in caplog.text
    assert caplog.text.count(f"The data was moved to {aside}, and the store started without data.") == 1
    assert "cannot be started again" not in caplog.text
    assert await known(store.url) == []
    await register(store.url)
    first = store.pid
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: store.pid != first, "another server is there")
    assert await known(store.url) == [A]


@pytest.mark.parametrize("damage", [empty_manifest, garbage_manifest])
async def test_a_damaged_manifest_is_written_again_while_the_server_runs(
    store: EmbeddedStore, data: Path, caplog: pytest.LogCaptureFixture, damage: Deletion
) -> None:
    await register(store.url)
    first = store.pid
    damage(data / "appendonlydir")
    await mended(store, caplog, "The embedded store's data is on the disk again")
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: store.pid != first, "another server is there")
    assert await known(store.url) == [A]


async def test_damaged_files_are_never_overwritten_and_a_few_are_kept(
    store: EmbeddedStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "appendonlydir.damaged-20260102-030405")
    mine = data / "appendonlydir.damaged-mine"
    mine.mkdir()
    for number in range(1, 6):
        first = store.pid
        kill_with(store, data, partial(write_manifest, f"copy {number}"))
        await wait_until(partial(is_replaced, store, first), "another server is there")
    copies = sorted(data.glob("appendonlydir.damaged-2*"))
    kept = {(copy / "appendonly.aof.manifest").read_text() for copy in copies}
    assert len(copies) == 3
    assert "copy 5" in kept
    assert mine.exists()


async def test_a_program_that_fails_costs_no_data(
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
        await wait_until(lambda: len(attempts) > 5, "it was tried more than twice, with and without the data")
    monkeypatch.undo()
    assert caplog.text.count("cannot be started again, retrying every 1 s") == 1
    assert not list(data.glob("appendonlydir.damaged-*"))
    with EmbeddedStore(data) as again:
        assert await known(again.url) == [A]


@contextlib.contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    """A mount, at the last of the arguments."""
    if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", arguments[-1]], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")
async def test_a_file_without_write_access_is_not_damaged(
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
    await mended(store, caplog, "The embedded store runs again, as process")
    assert await known(store.url) == [A]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")
async def test_a_full_disk_is_not_damage(short_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
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
        await mended(store, caplog, "The embedded store runs again, as process")
        assert len(list(data.glob("appendonlydir.damaged-*"))) == 1


def test_damaged_files_stay_where_they_are_at_the_first_start(data: Path) -> None:
    with EmbeddedStore(data):
        pass
    empty_manifest(data / "appendonlydir")
    with pytest.raises(EmbeddedStoreError, match="does not start on"):
        EmbeddedStore(data).__enter__()
    assert not list(data.glob("appendonlydir.damaged-*"))
