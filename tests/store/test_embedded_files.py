"""The embedded store's files are deleted or replaced while it runs: it comes back, with its data where they can be."""

import fcntl
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.domain.errors import EmbeddedStoreError
from controller.store import embedded
from controller.store.connection import connect
from controller.store.embedded import EmbeddedStore
from tests.samples import A
from tests.store.test_embedded import gone, known, register
from tests.waiting import wait_until

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
