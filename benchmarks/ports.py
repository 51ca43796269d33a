"""Ports for the processes that benchmarks and tests start."""

import contextlib
import os
import random
import socket

# Below the ports that the kernel gives to outgoing connections and to listeners on port 0. No other program takes such
# a port by chance before the process for which it is meant listens on it.
# The processes of pytest-xdist ("gw0", ...) take different ones, as two could choose the same before either listens.
_SHARES = 16
_SHARE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
_PORTS = range(22_000 + _SHARE, 32_768, _SHARES)
_random = random.SystemRandom()  # two test runs at the same time, both with a seeded `random`, must not meet
_given: set[int] = set()


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no process listens. This process gets each port once."""
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
