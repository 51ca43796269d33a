"""A server on a real socket that returns to the commands what a test chooses."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from controller.cli.main import main


class FakeController:
    """Returns chosen responses. Real controllers serve in tests/system.

    responses: by path, without the query: a value for JSON, text for the body as it is, a pair of a status and such a
        value, or a function that returns one of these.
    requests: method, path and body of each request.
    is_degraded: the responses say that they come from a snapshot.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.responses: dict[str, Any] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.is_degraded = False

    def run(self, *arguments: str, **env: str) -> Result:
        """Run a command for this controller."""
        return CliRunner().invoke(main, arguments, env={"CONTROLLER_ADDRESS": self.url, **env})

    def sent(self, path: str) -> list[Any]:
        """Return the bodies of the requests to a path."""
        return [body for _, sent_to, body in self.requests if sent_to == path]


@pytest.fixture
def fake() -> Iterator[FakeController]:
    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            controller.requests.append((self.command, self.path, json.loads(body) if body else None))
            answer = controller.responses.get(path, (404, {}))
            if callable(answer):
                answer = answer()
            status, value = answer if isinstance(answer, tuple) else (200, answer)
            content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if controller.is_degraded:
                self.send_header("X-Controller-Degraded", "1.2")
            self.end_headers()
            self.wfile.write(content)

        do_GET: Callable[..., None] = respond  # noqa: N815 - the library chooses the name
        do_POST: Callable[..., None] = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Print nothing if a client disconnects early."""

    server = Server(("127.0.0.1", 0), Handler)
    controller = FakeController(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield controller
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
