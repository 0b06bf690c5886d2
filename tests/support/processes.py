"""The service, its worker and its commands as people run them: real processes, real sockets."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from src.cli import app
from src.core.settings import get_settings

ROOT = Path(__file__).parents[2]


def run(*arguments: str, stdin: str | bytes | None = None, **environment: str) -> Result:
    """`python -m src` with these arguments, in this process."""
    get_settings.cache_clear()
    try:
        return CliRunner().invoke(app, arguments, input=stdin, env=environment)
    finally:
        get_settings.cache_clear()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "src", *arguments]


def run_command(*arguments: str, stdin: str = "", **environment: str) -> str:
    """`python -m src` with these arguments as a process of its own, which must succeed; what it printed."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=os.environ | environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def find_program(*names: str, package: str = "") -> str:
    """The path of the first that is installed. Where none is, the test is skipped; in CI it fails."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    reason = f"{names[0]} is not installed (Debian: apt install {package or names[0]})"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Running:
    """A process that has been started: where it answers, if it does, and what it has logged."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health/ready").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"not ready:\n{self.log}")

    def send(self, signal: int, *, seconds: float = 10) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(signal)
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(5)


@contextmanager
def start(arguments: list[str], log: Path, environment: dict[str, str], *, port: int = 0) -> Iterator[Running]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Running(process, port, log)
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def run_app(app: str, port: int, log: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    """Any application under uvicorn."""
    arguments_ = [sys.executable, "-m", "uvicorn", app, "--port", str(port), *arguments]
    with start(arguments_, log, environment, port=port) as running:
        yield running


@contextmanager
def run_service(folder: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    port = free_port()
    environment = {"SERVER_PUBLIC_URL": f"http://127.0.0.1:{port}"} | environment
    with run_app("src.api.app:app", port, folder / "service.log", *arguments, **environment) as running:
        yield running


@contextmanager
def run_worker(folder: Path, **environment: str) -> Iterator[Running]:
    with start([sys.executable, "-m", "src.worker"], folder / "worker.log", environment) as running:
        yield running
