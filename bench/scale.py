"""What does a request cost with a thousand users, a hundred thousand, a million? `python -m bench.scale`

On SQLite and on a PostgreSQL of its own, services on databases of each size are asked in turns, so that what else the
machine does hits all of them. What reads an index must cost with a million users at most 1.2 of what it costs with a
thousand; what reads every row is told apart, with how long it keeps others waiting when twenty ask at once.
"""

import argparse
import asyncio
import json
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from threading import Thread
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import asyncpg

from bench.databases import DATABASES
from bench.limits import Limit, report
from bench.service import PASSWORD, Service, running_service
from src.core.passwords import UNUSABLE_PASSWORD, hash_password
from src.db import AsyncDatabaseManager
from src.db.base import smallest_id
from src.db.connections import normalize_url
from src.db.migrations import migrate
from src.db.sqlite import sqlite_path

SIZES = (1_000, 100_000, 1_000_000)
MOST = 1.2  # of an indexed request, the largest ÷ the smallest
ROUNDS = 200
WARM_UP = 20
LONG_ROUNDS = 3
SEARCHES_AT_ONCE = 20
WAIT_MOST = 0.5  # seconds, of a read while they run
RARE = (
    100  # one user of so many is disabled, and one is pending; one event of so many is a failure, and one a service's
)
SPAN = timedelta(days=300)
ADMIN = "admin@example.com"
KINDS = ("log_in", "log_out", "password_change", "sign_up")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seed:
    """As many users, sessions and events, spread over most of a year."""

    size: int
    client_id: UUID = field(default_factory=uuid4)
    ends_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def moment(self, number: int) -> datetime:
        return self.ends_at - SPAN + SPAN * (number / self.size)

    def id_of(self, number: int) -> UUID:
        return UUID(int=smallest_id(self.moment(number)).int | 7 << 76 | 1 << 63 | number)

    def users(self) -> Iterator[Row]:
        for number in range(self.size):
            at, is_first = self.moment(number), number == 0
            is_pending = number % RARE == 1
            yield {
                "id": self.id_of(number),
                "email": ADMIN if is_first else f"user{number}@example.com",
                "hashed_password": hash_password(PASSWORD, 4) if is_first else UNUSABLE_PASSWORD,
                "name": f"Somebody {number}",
                "is_active": number % RARE != 2 and not is_pending,
                "is_admin": is_first,
                "activated_at": None if is_pending else at,
                "created_at": at,
                "updated_at": at,
            }

    def sessions(self) -> Iterator[Row]:
        for number in range(self.size):
            at = self.moment(number)
            later = datetime.now(UTC) + timedelta(days=30)
            times = {"created_at": at, "updated_at": at, "last_used_at": at, "authenticated_at": at}
            yield {
                "id": self.id_of(number),
                "user_id": self.id_of(number),
                "generation": 1,
                "idle_expires_at": later,
                "expires_at": later,
                **times,
            }

    def events(self) -> Iterator[Row]:
        for number in range(self.size):
            at = self.moment(number)
            yield {
                "id": self.id_of(number),
                "kind": KINDS[number % len(KINDS)],
                "outcome": "failure" if number % RARE == 3 else "success",
                "user_id": self.id_of(number),
                "actor_id": self.id_of(number),
                "client_id": self.client_id if number % RARE == 4 else None,
                "origin": "192.0.2.1",
                "created_at": at,
                "updated_at": at,
            }

    def clients(self) -> Iterator[Row]:
        at = datetime.now(UTC)
        shared = {"name": "reports", "scopes": "[]", "secret_hash": "-", "created_at": at, "updated_at": at}
        yield {"id": self.client_id} | shared

    def tables(self) -> Mapping[str, Iterator[Row]]:
        return {
            "users": self.users(),
            "sessions": self.sessions(),
            "service_clients": self.clients(),
            "audit_events": self.events(),
        }


async def fill(url: str, seed: Seed) -> None:
    """By the bare drivers: a million rows would take the ORM minutes."""
    database = AsyncDatabaseManager(url)
    await migrate(database)
    await database.disconnect()
    if database.is_sqlite:
        fill_sqlite(str(sqlite_path(database.url.database or "")), seed)
        return
    plain_url = normalize_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain_url)
    for table, rows in seed.tables().items():
        first = next(rows)
        records = [tuple(first.values()), *(tuple(row.values()) for row in rows)]
        await connection.copy_records_to_table(table, records=records, columns=list(first))
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


def fill_sqlite(path: str, seed: Seed) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN")
        for table, rows in seed.tables().items():
            first = next(rows)
            columns, marks = ", ".join(first), ", ".join("?" * len(first))
            statement = f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - all of it is ours
            connection.execute(statement, as_sqlite(first))
            connection.executemany(statement, map(as_sqlite, rows))
        connection.execute("COMMIT")
        connection.execute("ANALYZE")


def as_sqlite(row: Row) -> list[Any]:
    """As SQLAlchemy's types store them."""
    return [
        value.hex
        if isinstance(value, UUID)
        else value.replace(tzinfo=None).isoformat(" ", "microseconds")
        if isinstance(value, datetime)
        else value
        for value in row.values()
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """A service on a database of one size, and somebody who is logged in."""

    service: Service
    seed: Seed
    connection: HTTPConnection
    headers: Mapping[str, str]

    @classmethod
    def on(cls, service: Service, seed: Seed) -> "Asked":
        tokens = service.ask("POST", "/auth/login", {"email": ADMIN, "password": PASSWORD})
        return cls(service, seed, service.connect(), {"Authorization": f"Bearer {tokens['access_token']}"})

    def time(self, path: str) -> float:
        start = time.perf_counter()
        self.connection.request("GET", path, headers=self.headers)
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status == 200, (path, answer.status, content)
        return time.perf_counter() - start


def indexed(seed: Seed) -> Mapping[str, str]:
    middle = seed.moment(seed.size // 2)
    dates = {
        "since": (middle - SPAN / seed.size * 25).isoformat(),
        "until": (middle + SPAN / seed.size * 25).isoformat(),
    }
    somebody = seed.id_of(seed.size // 2 // RARE * RARE)
    users, events = "/api/users?limit=20&", "/api/audit-events?limit=20&"
    return {
        "me": "/auth/me",
        "a user": f"/api/users/{somebody}",
        "users": users,
        "users by address": f"{users}email=user{seed.size - 1}@example.com",
        "users, disabled": f"{users}is_active=false&order=newest",
        "users, pending": f"{users}pending=true&order=newest",
        "users, admins": f"{users}is_admin=true",
        "events": events,
        "events of a kind": f"{events}kind=log_in",
        "events, failures": f"{events}outcome=failure",
        "events on a user": f"{events}user_id={somebody}",
        "events by a user": f"{events}actor_id={somebody}",
        "events of a service": f"{events}client_id={seed.client_id}",
        "events of a time": f"{events}{urlencode(dates)}",
        "one's own events": "/auth/events?limit=20",
    }


LONG = {"a name that nobody has": "/api/users?name=nowhere", "the count of users": "/api/users?count=true&limit=1"}


def measure(asked: Sequence[Asked]) -> tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[float]]]:
    """The median of each request at each size, in seconds: of those that read an index, and of the others."""
    short: dict[str, list[float]] = {}
    for name in indexed(asked[0].seed):
        times: list[list[float]] = [[] for _ in asked]
        paths = [indexed(each.seed)[name] for each in asked]
        for number in range(WARM_UP + ROUNDS):
            for each, path, taken in zip(asked, paths, times, strict=True):
                seconds = each.time(path)
                if number >= WARM_UP:
                    taken.append(seconds)
        short[name] = [statistics.median(taken) for taken in times]
    long = {
        name: [statistics.median(each.time(path) for _ in range(LONG_ROUNDS)) for each in asked]
        for name, path in LONG.items()
    }
    return short, long


def slowest_read_while_searching(asked: Asked) -> float:
    """The 95th percentile of `GET /auth/me`, in seconds, while twenty search a part of a name at once."""

    def search() -> None:
        with closing(asked.service.connect()) as connection:
            connection.request("GET", LONG["a name that nobody has"], headers=asked.headers)
            connection.getresponse().read()

    searching = [Thread(target=search) for _ in range(SEARCHES_AT_ONCE)]
    for thread in searching:
        thread.start()
    times = []
    while any(thread.is_alive() for thread in searching):
        times.append(asked.time("/auth/me"))
        time.sleep(0.01)
    return sorted(times)[len(times) * 95 // 100]


def measure_on(database: str, sizes: Sequence[int]) -> list[Limit]:
    with DATABASES[database]() as create, ExitStack() as stack:
        asked = []
        for size in sizes:
            seed, url = Seed(size), create(f"users{size}")
            began_at = time.perf_counter()
            asyncio.run(fill(url, seed))
            print(f"{database}: {size:,} users, sessions and events in {time.perf_counter() - began_at:.0f} s")
            asked.append(Asked.on(stack.enter_context(running_service(url, {"AUTH_BCRYPT_ROUNDS": "4"})), seed))
        short, long = measure(asked)
        waited = slowest_read_while_searching(asked[-1])
    print(f"\n{database:26}" + "".join(f"{size:>14,}" for size in sizes) + f"{'ratio':>9}")
    for name, medians in {**short, **long}.items():
        cells = "".join(f"{seconds * 1000:>11.2f} ms" for seconds in medians)
        print(f"{name:26}{cells}{medians[-1] / medians[0]:>9.2f}")
    limits = [
        Limit(f"{database}: {name}, the largest ÷ the smallest", medians[-1] / medians[0], at_most=MOST)
        for name, medians in short.items()
    ]
    waiting = f"{database}: p95 of /auth/me while {SEARCHES_AT_ONCE} search, in s"
    return [*limits, Limit(waiting, waited, at_most=WAIT_MOST)]


def main(sizes: Sequence[int]) -> int:
    """The exit status: 1 when an indexed request costs too much more in the largest database."""
    limits = [limit for database in DATABASES for limit in measure_on(database, sizes)]
    print()
    return report(limits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=json.dumps(SIZES), help="as JSON, the smallest first")
    sys.exit(main(json.loads(parser.parse_args().sizes)))
