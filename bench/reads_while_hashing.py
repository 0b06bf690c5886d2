"""Do reads keep answering while passwords are hashed? `python -m bench.reads_while_hashing`

Starts the service on SQLite and on a PostgreSQL of its own, and reads one profile at a steady pace: alone, and while
sign-ups are kept in flight. The two take turns, so that what else the machine does hits both; still, let it do little
else. It fails when the busy p99 is more than three times the idle one.
"""

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from uuid import uuid4

from bench.databases import DATABASES
from bench.limits import Limit, report
from bench.load import alternate
from bench.service import PASSWORD, Service, running_service

LIMIT = 3.0  # busy p99 ÷ idle p99
SIGN_UPS_IN_FLIGHT = 16
ROUNDS = 5
PHASE_SECONDS = 3.0
PACE_SECONDS = 0.01  # far below what the service can do: the question is how long one read takes, not how many fit
SETTLE_SECONDS = 0.5
SETTINGS = {"AUTH_BCRYPT_ROUNDS": "12"}


def sign_up(service: Service) -> str:
    answer = service.ask("POST", "/auth/signup", {"email": f"{uuid4()}@example.com", "password": PASSWORD})
    return str(answer["user_id"])


def read_at_a_pace(service: Service, user_id: str) -> list[float]:
    """Seconds from when each read was *due* to its answer: a slow one delays the next, and that wait counts too."""
    latencies = []
    with closing(service.connect()) as connection:
        start = time.perf_counter()
        for number in range(round(PHASE_SECONDS / PACE_SECONDS)):
            due = start + number * PACE_SECONDS
            time.sleep(max(0.0, due - time.perf_counter()))
            connection.request("GET", f"/api/users/{user_id}")
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            latencies.append(time.perf_counter() - due)
            if latencies[-1] > PHASE_SECONDS:
                break  # it has failed by far, and the reads that are due by now would take minutes
    return latencies


def read_while_hashing(service: Service, user_id: str) -> tuple[list[float], int]:
    """The latencies, and how many passwords were hashed meanwhile. No sign-up is left in flight afterwards."""
    stop, signed_up = Event(), list[str]()

    def keep_signing_up() -> None:
        while not stop.is_set():
            signed_up.append(sign_up(service))

    with ThreadPoolExecutor(SIGN_UPS_IN_FLIGHT) as people:
        outcomes = [people.submit(keep_signing_up) for _ in range(SIGN_UPS_IN_FLIGHT)]
        try:
            time.sleep(SETTLE_SECONDS)
            before = len(signed_up)
            latencies = read_at_a_pace(service, user_id)
            hashes = len(signed_up) - before
        finally:
            stop.set()
    for outcome in outcomes:
        outcome.result()  # raises what went wrong: a sign-up that was refused hashed nothing
    return latencies, hashes


def percentile(phases: list[list[float]], percent: int) -> float:
    """In milliseconds: the median of the phases' percentiles, so that one disturbed phase does not decide."""
    return statistics.median(sorted(phase)[len(phase) * percent // 100] for phase in phases) * 1000


def measure_on(database: str) -> Limit:
    with DATABASES[database]() as create, running_service(create("users"), SETTINGS) as service:
        user_id = sign_up(service)
        read_at_a_pace(service, user_id)  # not counted: the first reads fill caches
        idle, while_hashing = alternate(
            lambda: read_at_a_pace(service, user_id), lambda: read_while_hashing(service, user_id), ROUNDS
        )
    busy = [latencies for latencies, _ in while_hashing]
    rate = sum(hashes for _, hashes in while_hashing) / (ROUNDS * PHASE_SECONDS)
    print(f"\n{database:26}{'p50':>9}{'p99':>12}{'hashes/s':>12}")
    for name, phases, done in (("idle", idle, 0.0), (f"{SIGN_UPS_IN_FLIGHT} sign-ups in flight", busy, rate)):
        print(f"{name:26}{percentile(phases, 50):>6.1f} ms{percentile(phases, 99):>9.1f} ms{done:>12.1f}")
    return Limit(f"p99 busy ÷ p99 idle on {database}", percentile(busy, 99) / percentile(idle, 99), at_most=LIMIT)


def main() -> int:
    """The exit status: 1 when hashing makes reads slower than `LIMIT` allows."""
    print(f"GET /api/users/{{id}} every {PACE_SECONDS * 1000:.0f} ms, {ROUNDS} × {PHASE_SECONDS:.0f} s each way")
    limits = [measure_on(database) for database in DATABASES]
    print()
    return report(limits)


if __name__ == "__main__":
    sys.exit(main())
