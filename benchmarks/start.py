"""Measure the time from the start of `controller serve`, with its embedded store, until GET /readyz returns 200.

python benchmarks/start.py [--times 10] [--replicas 1]
"""

import argparse
import http.client
import statistics
import subprocess
import sys
import tempfile
import time

from ports import free_port


def once(replicas: int) -> float:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="cb-") as directory:
        address = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", f"{directory}/data"]
        command = [sys.executable, "-m", "controller", "serve", *address, "--replicas", str(replicas)]
        started = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not ready(port):
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--replicas", type=int, default=1)
    arguments = parser.parse_args()
    times = [once(arguments.replicas) for _ in range(arguments.times)]
    print(f"start to ready: median {statistics.median(times):.2f} s, {min(times):.2f} to {max(times):.2f} s")


if __name__ == "__main__":
    main()
