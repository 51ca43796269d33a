"""HAProxy starts with the files of deploy/ wherever it runs, even where the system allows few open files."""

import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from ports import free_port

from tests.deploy.compose import ROOT
from tests.support.waiting import wait_until
from tests.system.processes import listens

pytestmark = pytest.mark.deploy

FILES = ["haproxy.cfg", "fixed-addresses.cfg"]
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
LEAST_FILES = 8000 * 2  # 8,000 connections, each with one to a replica: docs/guides/load-balancers.md


@pytest.mark.skipif(HAPROXY is None, reason="NOT TESTED, open files of HAProxy: haproxy is not installed")
@pytest.mark.parametrize("allowed", [512, 1024, 20_000])
@pytest.mark.parametrize("name", FILES)
async def test_haproxy_starts_with_few_open_files(tmp_path: Path, name: str, allowed: int) -> None:
    """With `maxconn` instead of `fd-hard-limit`, HAProxy exits: "Cannot raise FD limit to 16020"."""
    port = free_port()
    text = (ROOT / "deploy/haproxy" / name).read_text().replace("bind :21001", f"bind 127.0.0.1:{port}")
    text = text.replace("/tmp/admin.sock", str(tmp_path / "socket"))  # noqa: S108 - the path in the container
    text = re.sub(r"\b840[45]\b", lambda _: str(free_port()), text)
    (tmp_path / name).write_text(text)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(HAPROXY), "-db", "-f", tmp_path / name],
            stdout=output,
            stderr=output,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed)),
        )
    try:
        await wait_until(lambda: listens(port) or process.poll() is not None, "HAProxy listens or has ended")
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", FILES)
def test_haproxy_may_open_the_files_of_8000_connections(name: str) -> None:
    text = (ROOT / "deploy/haproxy" / name).read_text()
    [limit] = re.findall(r"(?m)^  fd-hard-limit (\d+)$", text)
    assert int(limit) > LEAST_FILES
    assert "maxconn" not in re.sub("#.*", "", text)


def test_the_page_and_the_metrics_are_not_on_the_port_of_the_clients() -> None:
    text = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    assert re.findall(r"(?m)^  bind (.*)$", text) == [
        ":21001",
        "127.0.0.1:8404",
        '"${HAPROXY_METRICS_HOST-127.0.0.1}:8405"',
    ]
