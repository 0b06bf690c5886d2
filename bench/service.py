"""The service that is measured: a process of its own, as it is run, on a database of the benchmark's.

What is asked of it here prepares a measurement; `bench.load` is what asks for many answers at once.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).parents[1]
SERVICE = "src.api.app:app"
TIMEOUT_SECONDS = 30
POLL_SECONDS = 0.005
LOG_SHOWN = 4_000  # characters at its end
PASSWORD = "a-passphrase-of-some-length"


@dataclass(frozen=True, slots=True)
class Service:
    """A running process that answers. What it takes of the machine is known on Linux alone."""

    port: int
    pid: int
    start_seconds: float  # from the start of the process until it was live
    log: Path

    def connect(self) -> HTTPConnection:
        """Not httpx: it would take as long as the service does, and so hide half of what is measured."""
        return HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """The JSON of an answer that must be a success."""
        with closing(self.connect()) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        assert 200 <= answer.status < 300, (method, path, answer.status, text)
        return json.loads(text)

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far, of all its threads; PostgreSQL's is not in it."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_mb(self) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


@dataclass(frozen=True, slots=True)
class Account:
    user_id: str
    email: str


def create_account(service: Service) -> Account:
    """Sign up, and follow the link, which is in the answer where SMTP is not configured."""
    email = f"{uuid4()}@example.com"
    sign_up = service.ask("POST", "/auth/signup", {"email": email, "password": PASSWORD, "name": "Somebody"})
    service.ask("POST", "/auth/activate", {"token": sign_up["activation_url"].partition("token=")[2]})
    return Account(sign_up["user_id"], email)


@contextmanager
def running_service(
    database_url: str,
    settings: Mapping[str, str] = MappingProxyType({}),
    *,
    root: Path = ROOT,
    app: str = SERVICE,
    wrapper: Sequence[str] = (),
) -> Iterator[Service]:
    """One worker of the sources in `root`, killed in the end. Its log is shown when something goes wrong meanwhile.
    `wrapper` is a command that runs the one behind it."""
    with TemporaryDirectory() as folder, closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
        probe.close()
        environment = {
            "APP_ENV": "test",
            "WEB_CONCURRENCY": "1",
            "RATE_LIMIT_REQUESTS_PER_ORIGIN": "999999/1s",  # all that is asked here comes from one
            "DATABASE_URL": database_url,
            "DATABASE_AUTO_MIGRATE": "true",
            "JWT_KEYS_DIR": f"{folder}/keys",
        }
        options = ["--app-dir", str(root), "--port", str(port), "--no-access-log", "--log-level", "warning"]
        log = Path(folder, "log")
        started_at = time.perf_counter()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "uvicorn", app, *options],
                cwd=folder,  # not `root`, where somebody's .env may change what is measured
                env={**os.environ, **environment, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_until_live(process, port)
            yield Service(port, process.pid, time.perf_counter() - started_at, log)
        except Exception:
            print(log.read_text()[-LOG_SHOWN:], file=sys.stderr)
            raise
        finally:
            process.kill()
            process.wait()


def _wait_until_live(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionError), closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) as probe:
            probe.request("GET", "/health/live")
            if probe.getresponse().status == 200:
                return
        time.sleep(POLL_SECONDS)
    raise RuntimeError("The service did not start.")
