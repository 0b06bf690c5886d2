"""What do the limits cost, and what are they worth? `python -m bench.abuse`, on Linux

On SQLite and on a PostgreSQL of its own, with passwords hashed at full cost:
- logging in with the limits, against without them: it must come to 0.98 of that;
- logging in while 32 clients guess without a pause, at one account or at another each time: it may take three times as
  long as when nobody else asks, at most.

What is compared takes turns, so that what else the machine does hits both; still, let it do little else.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, repeat
from math import inf
from multiprocessing import get_context
from statistics import median
from uuid import uuid4

import uvloop

from bench.databases import DATABASES, CreateDatabase
from bench.floors import CORES, SETTINGS, log_in, print_row
from bench.limits import Limit, report
from bench.load import Client, alternate, keep_asking, median_ratio, request
from bench.service import PASSWORD, Account, Service, create_account, running_service

THROUGHPUT_LEAST = 0.98
SLOWER_MOST = 3.0
COST_ROUNDS = 9
GUESSERS = 32
STRANGER = "127.0.0.2"
ROUNDS = 3
LOG_INS = 10  # a round
SETTLE_SECONDS = 2.0


def compare_costs(database: str, create: CreateDatabase) -> Limit:
    """Two processes that share a database, so that only the setting differs."""
    url = create("costs")
    with (
        running_service(url, SETTINGS) as limited,
        running_service(url, SETTINGS | {"RATE_LIMIT_ENABLED": "0"}) as free,
    ):
        accounts = [create_account(limited) for _ in range(2 * CORES)]
        rounds = alternate(lambda: log_in(limited, accounts), lambda: log_in(free, accounts), COST_ROUNDS)
    with_limits, without = ([each.rate for each in own] for own in rounds)
    print_row("POST /auth/login, without limits", with_limits, without)
    return Limit(
        f"log-ins ÷ without limits on {database}", median_ratio(with_limits, without), at_least=THROUGHPUT_LEAST
    )


def guess(emails: Iterator[str]) -> Client:
    for email in emails:
        yield request("POST", "/auth/login", {"email": email, "password": "a-wrong-passphrase"})


def guess_without_pause(port: int, email: str | None) -> None:
    """Until killed, from an address that nobody else has."""
    emails = repeat(email) if email else (f"{uuid4()}@example.com" for _ in count())

    async def all_of_them() -> None:
        clients = [guess(emails) for _ in range(GUESSERS)]
        await asyncio.gather(*(keep_asking(port, client, None, inf, source=STRANGER) for client in clients))

    uvloop.run(all_of_them())


@contextmanager
def under_attack(service: Service, email: str | None) -> Iterator[None]:
    """A process of its own, which is not to share an interpreter with whoever measures."""
    attack = get_context("spawn").Process(target=guess_without_pause, args=(service.port, email))
    attack.start()
    try:
        time.sleep(SETTLE_SECONDS)
        yield
        assert attack.is_alive()
    finally:
        attack.kill()
        attack.join()


def compare_waits(database: str, create: CreateDatabase) -> list[Limit]:
    with running_service(create("waits"), SETTINGS) as service:
        owner, victim = create_account(service), create_account(service)
        limits = []
        for name, email in (("one account", victim.email), ("another account each time", None)):

            def attacked(email: str | None = email) -> list[float]:
                with under_attack(service, email):
                    return log_in_times(service, owner)

            idle, busy = alternate(lambda: log_in_times(service, owner), attacked, ROUNDS)
            slower = median_ratio([median(times) for times in busy], [median(times) for times in idle])
            limits.append(
                Limit(f"a log-in while {GUESSERS} clients guess at {name}, on {database}", slower, at_most=SLOWER_MOST)
            )
    return limits


def log_in_times(service: Service, account: Account) -> list[float]:
    """In seconds."""
    times = []
    for _ in range(LOG_INS):
        start = time.perf_counter()
        service.ask("POST", "/auth/login", {"email": account.email, "password": PASSWORD})
        times.append(time.perf_counter() - start)
    return times


def measure_on(database: str) -> list[Limit]:
    print(f"\n{database:54}{'limits':>12}{'none':>12}{'ratio':>9}")
    with DATABASES[database]() as create:
        return [compare_costs(database, create), *compare_waits(database, create)]


def main() -> int:
    """The exit status: 1 when a limit is missed."""
    limits = [limit for database in DATABASES for limit in measure_on(database)]
    print()
    return report(limits)


if __name__ == "__main__":
    sys.exit(main())
