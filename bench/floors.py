"""How far is the service from what it cannot go below? `python -m bench.floors`, on Linux

On SQLite and on a PostgreSQL of its own:
- reading a user, against FastAPI with the same query on the bare driver (`bench.floor_app`): a ratio to know, no limit;
- logging in at full cost, against bcrypt alone on every core: it must come to 0.95 of that;
- a start, from the process to its first answer, and the memory that it then holds: 1.0 s and 95 MB at most.

What is compared takes turns, so that what else the machine does hits both; still, let it do little else.
"""

import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import bcrypt

from bench.databases import DATABASES
from bench.limits import Limit, report
from bench.load import Round, alternate, measure, median_ratio, repeat, request
from bench.service import PASSWORD, Account, Service, create_account, running_service
from src.core.hash_pool import NICENESS
from src.core.settings import usable_cores

LOG_IN_LEAST = 0.95  # of raw bcrypt's hashes per second
START_SECONDS_MOST = 1.0
RESIDENT_MB_MOST = 95.0

CORES = usable_cores()
READERS = 16
COST = 12
HASH_ROUNDS = 5
HASH_SECONDS = 4.0
HASH_WARM_UP_SECONDS = 1.0  # until each client waits behind another
STARTS = 5
SETTINGS = {"AUTH_BCRYPT_ROUNDS": str(COST), "AUTH_HASH_THREADS": str(CORES)}


def read_users(service: Service, accounts: Sequence[Account]) -> Round:
    paths = [f"/api/users/{accounts[number % len(accounts)].user_id}" for number in range(READERS)]
    return measure(service, [repeat(request("GET", path)) for path in paths], status=200)


def log_in(service: Service, accounts: Sequence[Account]) -> Round:
    """One client for each account."""
    bodies = [{"email": account.email, "password": PASSWORD} for account in accounts]
    clients = [repeat(request("POST", "/auth/login", body)) for body in bodies]
    return measure(service, clients, status=200, seconds=HASH_SECONDS, warm_up=HASH_WARM_UP_SECONDS)


def be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def raw_bcrypt_rate() -> float:
    """Hashes per second on all cores, counted as `bench.load` counts answers.

    The threads are as nice as the service's, so that what else the machine does takes as much from both.
    """
    end = time.perf_counter() + HASH_SECONDS

    def keep_hashing() -> list[float]:
        salt, times = bcrypt.gensalt(COST), [time.perf_counter()]
        while times[-1] <= end:
            bcrypt.hashpw(PASSWORD.encode(), salt)
            times.append(time.perf_counter())
        return [after - before for before, after in pairwise(times) if after <= end]

    with ThreadPoolExecutor(CORES, initializer=be_nice) as threads:
        hashing = [threads.submit(keep_hashing) for _ in range(CORES)]
        seconds = [each for thread in hashing for each in thread.result()]
    return CORES / statistics.fmean(seconds)


def compare_reads(url: str, service: Service, accounts: Sequence[Account]) -> None:
    path = f"/api/users/{accounts[0].user_id}"
    with running_service(url, app="bench.floor_app:app") as floor:
        assert floor.ask("GET", path) == service.ask("GET", path)
        rounds = alternate(lambda: read_users(service, accounts), lambda: read_users(floor, accounts))
    ours, bare = ([each.rate for each in own] for own in rounds)
    print_row("GET /api/users/{id}, FastAPI on the driver alone", ours, bare)


def compare_log_ins(database: str, service: Service, accounts: Sequence[Account]) -> Limit:
    rounds, raw = alternate(lambda: log_in(service, accounts), raw_bcrypt_rate, HASH_ROUNDS)
    rates = [each.rate for each in rounds]
    print_row(f"POST /auth/login, bcrypt alone on {CORES} cores", rates, raw)
    return Limit(f"log-ins ÷ raw bcrypt on {database}", median_ratio(rates, raw), at_least=LOG_IN_LEAST)


def measure_starts(database: str, url: str, account: Account) -> list[Limit]:
    """On a database that has been migrated, as after a new version's first start."""
    seconds, resident = list[float](), list[float]()
    for _ in range(STARTS):
        with running_service(url) as service:
            service.ask("GET", f"/api/users/{account.user_id}")
            seconds.append(service.start_seconds)
            resident.append(service.resident_mb)
    return [
        Limit(f"seconds to start on {database}", statistics.median(seconds), at_most=START_SECONDS_MOST),
        Limit(f"MB resident after one request on {database}", statistics.median(resident), at_most=RESIDENT_MB_MOST),
    ]


def measure_on(database: str) -> list[Limit]:
    print(f"\n{database:54}{'service':>12}{'floor':>12}{'ratio':>9}")
    with DATABASES[database]() as create:
        url = create("users")
        with running_service(url, SETTINGS) as service:
            accounts = [create_account(service) for _ in range(2 * CORES)]
            compare_reads(url, service, accounts)
            log_ins = compare_log_ins(database, service, accounts)
        return [log_ins, *measure_starts(database, url, accounts[0])]


def print_row(name: str, service: Sequence[float], floor: Sequence[float]) -> None:
    figures = "".join(f"{statistics.median(rates):>10,.1f}/s" for rates in (service, floor))
    print(f"{name:54}{figures}{median_ratio(service, floor):>9.2f}")


def main() -> int:
    """The exit status: 1 when a limit is missed."""
    limits = [limit for database in DATABASES for limit in measure_on(database)]
    print()
    return report(limits)


if __name__ == "__main__":
    sys.exit(main())
