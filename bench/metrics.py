"""What does it cost to be watched? `python -m bench.metrics`, on Linux

Reading a user on SQLite, in processor time:
- with METRICS_TOKEN, against without: 1.03 of that at most. Two applications of one process take turns of a few
  requests, since two processes of the same code differ by more. Without a server the read is cheaper than it ever is;
- with traces and metrics by OTLP, against without, between two processes: a ratio to know, no limit.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from fastapi import FastAPI

from bench.databases import sqlite
from bench.limits import Limit, report
from bench.load import Round, alternate, measure, median_ratio, repeat, request
from bench.service import Account, Service, create_account, running_service

COST_MOST = 1.03
TURNS = 600
READS = 20  # a turn
READERS = 8


async def read_user(app: FastAPI, path: str) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200, message

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "client": ("::1", 1)}
    await app(scope, receive, send)


async def take_turn(app: FastAPI, path: str) -> float:
    """Seconds of the processor."""
    start = time.process_time()
    for _ in range(READS):
        await read_user(app, path)
    return time.process_time() - start


async def take_turns(watched: FastAPI, alone: FastAPI, path: str) -> tuple[list[float], list[float]]:
    pairs = list[tuple[float, float]]()
    for _ in range(TURNS // 2):  # who begins changes, as in `alternate`
        pairs.append((await take_turn(watched, path), await take_turn(alone, path)))
        floor_first, ours_second = await take_turn(alone, path), await take_turn(watched, path)
        pairs.append((ours_second, floor_first))
    ours, floor = zip(*pairs[TURNS // 10 :], strict=True)  # the first warm up
    return list(ours), list(floor)


def compare_metrics(url: str, account: Account) -> float:
    with TemporaryDirectory() as folder:
        os.environ |= {"DATABASE_URL": url, "APP_ENV": "test", "RATE_LIMIT_REQUESTS_PER_ORIGIN": "999999/1s"}
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # as several workers count, which is dearer than one
        from src.api.app import create_app  # takes its database from the environment
        from src.core.settings import Settings

        apps = create_app(Settings(metrics_token="a-token-for-prometheus")), create_app(Settings())
        ours, floor = uvloop.run(take_turns(*apps, f"/api/users/{account.user_id}"))
    return print_row("with metrics, in one process", ours, floor, READS)


class Sink(BaseHTTPRequestHandler):
    """A collector that forgets."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the standard library
        pass


def run_sink(ready: Connection) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        ready.send(server.server_address[1])
        server.serve_forever()


@contextmanager
def running_sink() -> Iterator[str]:
    """The URL of a collector, in a process of its own: it must not slow down the readers."""
    context = get_context("spawn")
    ready, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_sink, args=(sender,))
    process.start()
    yield f"http://127.0.0.1:{ready.recv()}"
    process.kill()
    process.join()


def reading(service: Service, account: Account) -> Callable[[], Round]:
    message = request("GET", f"/api/users/{account.user_id}")
    return lambda: measure(service, [repeat(message) for _ in range(READERS)], status=200)


def compare_traces(url: str, account: Account, alone: Service) -> None:
    with running_sink() as collector, running_service(url, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector}) as watched:
        rounds = alternate(reading(watched, account), reading(alone, account))
    ours, floor = ([each.cpu_seconds for each in own] for own in rounds)
    print_row("with traces by OTLP", ours, floor)


def print_row(name: str, watched: list[float], alone: list[float], reads: int = 1) -> float:
    ratio = median_ratio(watched, alone)
    figures = "".join(f"{statistics.median(own) / reads * 1e6:>9,.0f} µs" for own in (watched, alone))
    print(f"{'GET /api/users/{id}, ' + name:54}{figures}{ratio:>9.3f}")
    return ratio


def main() -> int:
    """The exit status: 1 when the limit is missed."""
    print(f"\n{'':54}{'watched':>12}{'alone':>12}{'ratio':>9}")
    with sqlite() as create:
        url = create("users")
        with running_service(url) as service:
            account = create_account(service)
            compare_traces(url, account, service)
        cost = compare_metrics(url, account)
    print()
    return report([Limit("a read with metrics ÷ without", cost, at_most=COST_MOST)])


if __name__ == "__main__":
    sys.exit(main())
