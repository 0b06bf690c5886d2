"""The service that is measured: a process of its own, as it is run, on a database of the benchmark's."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

TIMEOUT_SECONDS = 30


@contextmanager
def running_service(database_url: str, **settings: str) -> Iterator[int]:
    """The port of a service with these settings, which is stopped in the end."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    with TemporaryDirectory() as keys:
        environment = {"APP_ENV": "test", "WEB_CONCURRENCY": "1", "DATABASE_URL": database_url, "JWT_KEYS_DIR": keys}
        options = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
        command = [sys.executable, "-m", "uvicorn", "src.api.app:app", *options]
        root = Path(__file__).parents[1]
        service = subprocess.Popen(command, cwd=root, env=os.environ | environment | settings)
        try:
            _wait_until_listening(service, port)
            yield port
        finally:
            service.kill()  # nothing of it is kept
            service.wait()


def connect(port: int) -> HTTPConnection:
    """Not httpx: it would take as long as the service does, and so hide half of what is measured."""
    return HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)


def _wait_until_listening(service: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while service.poll() is None and time.monotonic() < deadline:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise SystemExit("The service did not start.")
