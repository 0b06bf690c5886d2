"""Load over HTTP/1.1, as cheap as Python allows: it shares the machine with what it measures.

A client is a generator that yields its next request and is sent the body of the answer; each has a connection of its
own that is kept alive, and always one request on its way.
"""

import asyncio
import json
import re
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import uvloop

from bench.service import Service

# Many short rounds rather than a few long ones: the shorter, the likelier that a disturbance hits both who take turns.
ROUNDS = 9
ROUND_SECONDS = 1.0
WARM_UP_SECONDS = 0.3
GRACE_SECONDS = 30  # a service that does not answer must not stop the benchmark for ever

First = TypeVar("First")
Second = TypeVar("Second")

Client = Generator[bytes, bytes, None]

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def request(method: str, path: str, body: Mapping[str, object] | None = None, *, token: str | None = None) -> bytes:
    """A request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
    head += [] if body is None else ["Content-Type: application/json"]
    head += [] if token is None else [f"Authorization: Bearer {token}"]
    return "\r\n".join([*head, "", ""]).encode() + content


def repeat(message: bytes) -> Client:
    """A client that always asks the same."""
    while True:
        yield message


@dataclass(frozen=True, slots=True)
class Round:
    """What was measured in one go."""

    rate: float  # answers per second
    latencies: Sequence[float]  # in seconds, the shortest first
    cpu_seconds: float  # of the service, per answer: it changes less than the rate with what else the machine does

    def milliseconds(self, percent: int) -> float:
        """The latency that so many percent of the requests stayed within."""
        return self.latencies[len(self.latencies) * percent // 100] * 1000


def measure(
    service: Service,
    clients: Sequence[Client],
    *,
    status: int,
    seconds: float = ROUND_SECONDS,
    warm_up: float = WARM_UP_SECONDS,
) -> Round:
    """Let the clients ask for so many seconds after a warm-up. Raises `AssertionError` at the first answer with
    another status."""
    return uvloop.run(_measure(service, clients, status, seconds, warm_up))


def alternate(
    first: Callable[[], First], second: Callable[[], Second], rounds: int = ROUNDS
) -> tuple[list[First], list[Second]]:
    """Measure both in each round, so that what else the machine does hits both; who begins changes each time."""
    firsts, seconds = list[First](), list[Second]()
    for number in range(rounds):
        if number % 2:
            seconds.append(second())
            firsts.append(first())
        else:
            firsts.append(first())
            seconds.append(second())
    return firsts, seconds


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the rounds' ratios: the two figures of one round were measured under the same disturbance."""
    return statistics.median(top / bottom for top, bottom in zip(numerators, denominators, strict=True))


async def _measure(service: Service, clients: Sequence[Client], status: int, seconds: float, warm_up: float) -> Round:
    cpu_before, start = service.cpu_seconds, time.perf_counter() + warm_up
    end = start + seconds
    async with asyncio.timeout(warm_up + seconds + GRACE_SECONDS):
        answered = await asyncio.gather(*(keep_asking(service.port, client, status, end) for client in clients))
    latencies = sorted(latency for own in answered for at, latency in own if start < at <= end)
    cpu_seconds = (service.cpu_seconds - cpu_before) / sum(len(own) for own in answered)
    # Little's law: each client always has one request on its way. Unlike a count of answers it is exact even where few
    # fit into a round, as with passwords that are hashed at full cost.
    return Round(len(clients) / statistics.fmean(latencies), latencies, cpu_seconds)


async def keep_asking(
    port: int, client: Client, status: int | None, end: float, *, source: str = "127.0.0.1"
) -> list[tuple[float, float]]:
    """When each answer came, and how long after the one before; until `end`. Without a `status`, any will do."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(_Connection, "127.0.0.1", port, local_addr=(source, 0))
    expected = b"HTTP/1.1 " + (b"" if status is None else b"%d " % status)
    answered, message, sent_at = list[tuple[float, float]](), next(client), time.perf_counter()
    while sent_at <= end:
        head, body = await connection.ask(message)
        assert head.startswith(expected), (expected, head, body)
        received_at = time.perf_counter()
        answered.append((received_at, received_at - sent_at))
        message, sent_at = client.send(body), received_at
    connection.close()
    return answered


class _Connection(asyncio.Protocol):
    """One request at a time, with fewer steps than asyncio's streams take."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._received = b""

    def ask(self, message: bytes) -> asyncio.Future[tuple[bytes, bytes]]:
        """The head and the body of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return self._answer

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end_of_head, body = self._received.partition(b"\r\n\r\n")
        length = _CONTENT_LENGTH.search(head) if end_of_head else None
        if length and len(body) >= int(length[1]):  # our service always sends a length
            self._received = b""
            self._answer.set_result((head, body))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionError("The service closed the connection."))
