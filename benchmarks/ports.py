"""Ports for the processes that benchmarks and tests start."""

import contextlib
import random
import socket

# Below the ports that the kernel gives to outgoing connections and to listeners on port 0. No other program takes such
# a port by chance before the process for which it is meant listens on it.
_PORTS = range(22_000, 32_768)
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
