"""`--host` in separate network namespaces: with IPv6 and without, with one replica and with two."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import Serve

pytestmark = pytest.mark.system

HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
WITHOUT_IPV6 = "sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1"
PROBE = """
import socket, sys
for host in sys.argv[2:]:
    try:
        with socket.create_connection((host, int(sys.argv[1])), timeout=60) as connection:
            connection.sendall(b"GET /readyz HTTP/1.0\\r\\n\\r\\n")
            print(host, b" 200 " in connection.recv(100))
    except OSError:
        print(host, False)
"""


@pytest.fixture
def network(work_dir: Path) -> tuple[str, ...]:
    """Return the start of a command line that runs a program in a network namespace with its own hosts file.

    Append a shell command that prepares the namespace, and then the program with its arguments.
    """
    hosts = work_dir / "hosts"
    hosts.write_text(HOSTS)
    script = f'ip link set lo up && mount --bind {hosts} /etc/hosts && eval "$0" && exec "$@"'
    wrap = ("unshare", "--net", "--mount", "sh", "-c", script)
    for setup in ("true", WITHOUT_IPV6):
        try:
            subprocess.run([*wrap, setup, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot create a network namespace: {error}")
    return wrap


def answering(pid: int, port: int) -> dict[str, bool]:
    """Return by address, 127.0.0.1 and ::1, whether the controller answers. Runs in its network namespace."""
    inside = ("nsenter", "--net", "--target", str(pid), sys.executable, "-c", PROBE, str(port), "127.0.0.1", "::1")
    output = subprocess.run(inside, capture_output=True, text=True, check=True).stdout
    return {host: answer == "True" for host, answer in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("number", [1, 2], ids=["1 replica", "2 replicas"])
@pytest.mark.parametrize(
    ("host", "with_ipv6", "expected"),
    [
        ("localhost", True, {"127.0.0.1": True, "::1": True}),
        ("localhost", False, {"127.0.0.1": True, "::1": False}),
        ("::", True, {"127.0.0.1": True, "::1": True}),
        ("::", False, {"127.0.0.1": True, "::1": False}),
        ("::1", True, {"127.0.0.1": False, "::1": True}),
        ("0.0.0.0", True, {"127.0.0.1": True, "::1": False}),
    ],
)
def test_the_controller_listens_on_each_address_of_the_host(
    serve: Serve, network: tuple[str, ...], number: int, host: str, with_ipv6: bool, expected: dict[str, bool]
) -> None:
    wrap = (*network, "true" if with_ipv6 else WITHOUT_IPV6)
    controller = serve("--host", host, "--insecure", "--replicas", str(number), wrap=wrap, ready=False)
    controller.wait_for(
        lambda: "Listening on" in controller.log and any(answering(controller.popen.pid, controller.port).values()),
        "the controller answers",
    )
    assert answering(controller.popen.pid, controller.port) == expected
    assert ("Not listening on ::1 of --host localhost" in controller.log) == (host == "localhost" and not with_ipv6)
    shown = f"[{host}]" if ":" in host else host
    assert f"Listening on http://{shown}:{controller.port} (Press CTRL+C to quit)" in controller.log


def test_a_host_without_a_local_address_is_rejected(serve: Serve, network: tuple[str, ...]) -> None:
    controller = serve("--host", "::1", wrap=(*network, WITHOUT_IPV6), ready=False)
    assert controller.popen.wait(120) == 1
    [line] = controller.log.splitlines()
    assert "--host ::1 cannot be opened: Cannot assign requested address. Name an address of this machine" in line


@pytest.mark.parametrize("number", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_port_0_picks_a_free_port(serve: Serve, number: str) -> None:
    controller = serve("--port", "0", "--replicas", number, ready=False)
    controller.wait_for(lambda: controller.log.count("startup complete") == int(number), "the replicas serve")
    port = controller.log.partition("Listening on http://127.0.0.1:")[2].split()[0]
    assert port not in ("0", str(controller.port))
    assert controller.stop() == 0
