"""A certificate is renewed while `serve --ssl` runs."""

import re
import ssl
from pathlib import Path

import pytest
import trustme

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess

pytestmark = pytest.mark.system


def issue(directory: Path) -> str:
    """Write a certificate and its key. Return the certificate."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    (directory / "key.pem").write_bytes(issued.private_key_pem.bytes())
    (directory / "certificate.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return issued.cert_chain_pems[0].bytes().decode()


def served(controller: ControllerProcess) -> str:
    """Return the certificate that the controller presents, or "" if no connection succeeds."""
    try:
        return ssl.get_server_certificate(("127.0.0.1", controller.port)).strip() + "\n"
    except OSError:
        return ""


def reloaded(controller: ControllerProcess) -> set[str]:
    """Return the ids of the processes that have logged a reload."""
    return set(re.findall(r'Certificate reloaded, valid until \w+ .*"process": (\d+)', controller.log))


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["1 replica", "2 replicas"])
async def test_each_replica_serves_a_renewed_certificate(serve: Serve, work_dir: Path, number: int) -> None:
    old = issue(work_dir)
    files = {"SSL_KEYFILE": str(work_dir / "key.pem"), "SSL_CERTFILE": str(work_dir / "certificate.pem")}
    controller = serve("--ssl", "--replicas", str(number), ready=False, scheme="https", **files)
    await wait_until(lambda: served(controller) == old, "the controller serves the first certificate")
    await wait_until(lambda: controller.log.count("Application startup complete") == number, "all replicas serve")
    assert f"Listening on https://127.0.0.1:{controller.port}" in controller.log
    new = issue(work_dir)
    await wait_until(lambda: len(reloaded(controller)) == number, "all replicas have read the new certificate")
    assert {served(controller) for _ in range(8)} == {new}
    assert controller.stop() == 0
    assert "Traceback" not in controller.log
