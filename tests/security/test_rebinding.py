"""DNS rebinding with real look-ups: a real controller, a real name server, and a service at the metadata address.

All of it is in a network namespace without any other network. tests/security/test_worker_connections.py has the same
attack for each use of a connection, with look-ups that the test answers.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve

pytestmark = pytest.mark.system

LAB = Path(__file__).with_name("rebinding_lab.py")
SET_UP = "set-up"  # a file that says that the namespace is complete
SETUP = "ip link set lo up && ip address add 169.254.169.254/32 dev lo"


@pytest.fixture
def network(work_dir: Path) -> tuple[str, ...]:
    """Return the start of a command line that runs a program in a namespace with a name server of its own."""
    files = {
        "resolv.conf": "nameserver 127.0.0.1\n",
        "hosts": "127.0.0.1 localhost\n",
        "nsswitch.conf": "hosts: files dns\n",
    }
    binds = []
    for name, text in files.items():
        (work_dir / name).write_text(text)
        binds.append(f"mount --bind {work_dir / name} /etc/{name}")
    wrap = (
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        f'{SETUP} && {" && ".join(binds)} && touch {work_dir / SET_UP} && exec "$0" "$@"',
    )
    try:
        subprocess.run([*wrap, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot create a network namespace: {error}")
    (work_dir / SET_UP).unlink()
    return wrap


@pytest.mark.parametrize("allow", [(), ("--worker-allow", "*")], ids=["default", "all allowed"])
async def test_rebound_name_never_reaches_the_metadata_service(
    serve: Serve, network: tuple[str, ...], allow: tuple[str, ...], work_dir: Path
) -> None:
    controller = serve("--poll-interval", "0.2", *allow, wrap=network, ready=False)
    await wait_until((work_dir / SET_UP).exists, "the namespace is complete")
    inside = ("nsenter", "--net", "--mount", "--target", str(controller.popen.pid), sys.executable, str(LAB))
    lab = await asyncio.to_thread(
        subprocess.run, [*inside, str(controller.port)], capture_output=True, text=True, timeout=240
    )
    assert lab.returncode == 0, lab.stderr + lab.stdout + controller.log
    assert json.loads(lab.stdout) == {
        "reachable": ["/status"],
        "http://169.254.169.254:8000": 400,
        "http://metadata.attack:8000": 400,
        "registered": 200,
        "forwarded": {},
        "answers": ["rebind.attack", "169.254.169.254"],
        "forwarded later": 50006,
        "refreshed": 200,
        "metadata": [],
    }
    assert controller.log.count("Refused to connect to a worker: rebind.attack has the address 169.254.169.254") == 1
