"""Do reads keep answering while passwords are hashed? `python -m bench.reads_while_hashing`

Starts the service on a SQLite file of its own, and reads one profile at a steady pace: alone, and while sign-ups are
kept in flight. The two take turns, so that what else the machine does hits both; still, let it do little else. It fails
when the busy p95 is more than three times the idle one.
"""

import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from tempfile import TemporaryDirectory
from threading import Event
from uuid import uuid4

from bench.service import connect, running_service

LIMIT = 3.0  # busy p95 ÷ idle p95
SIGN_UPS_IN_FLIGHT = 16
ROUNDS = 5
PHASE_SECONDS = 2.0
PACE_SECONDS = 0.01  # far below what the service can do: the question is how long one read takes, not how many fit
SETTLE_SECONDS = 0.5
SETTINGS = {"AUTH_BCRYPT_ROUNDS": "12"}


def sign_up(connection: HTTPConnection) -> str:
    body = {"email": f"{uuid4()}@example.com", "password": "a-passphrase-of-some-length"}
    connection.request("POST", "/auth/signup", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 201, content
    return str(json.loads(content)["user_id"])


def read_at_a_pace(port: int, user_id: str) -> list[float]:
    """Seconds from when each read was *due* to its answer: a slow one delays the next, and that wait counts too."""
    latencies = []
    with closing(connect(port)) as connection:
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


def read_while_hashing(port: int, user_id: str) -> tuple[list[float], int]:
    """The latencies, and how many passwords were hashed meanwhile. No sign-up is left in flight afterwards."""
    stop, signed_up = Event(), list[str]()

    def keep_signing_up() -> None:
        with closing(connect(port)) as connection:
            while not stop.is_set():
                signed_up.append(sign_up(connection))

    with ThreadPoolExecutor(SIGN_UPS_IN_FLIGHT) as people:
        outcomes = [people.submit(keep_signing_up) for _ in range(SIGN_UPS_IN_FLIGHT)]
        try:
            time.sleep(SETTLE_SECONDS)
            before = len(signed_up)
            latencies = read_at_a_pace(port, user_id)
            hashes = len(signed_up) - before
        finally:
            stop.set()
    for outcome in outcomes:
        outcome.result()  # raises what went wrong: a sign-up that was refused hashed nothing
    return latencies, hashes


def percentile(phases: list[list[float]], percent: int) -> float:
    """In milliseconds: the median of the phases' percentiles, so that one disturbed phase does not decide."""
    return statistics.median(sorted(phase)[len(phase) * percent // 100] for phase in phases) * 1000


def main() -> int:
    """The exit status: 1 when hashing makes reads slower than `LIMIT` allows."""
    idle, busy, hashes = list[list[float]](), list[list[float]](), 0
    with TemporaryDirectory() as folder, running_service(f"sqlite:///{folder}/users.db", **SETTINGS) as port:
        with closing(connect(port)) as connection:
            user_id = sign_up(connection)
        read_at_a_pace(port, user_id)  # not counted: the first reads fill caches
        for _ in range(ROUNDS):
            idle.append(read_at_a_pace(port, user_id))
            latencies, hashed = read_while_hashing(port, user_id)
            busy.append(latencies)
            hashes += hashed

    ratio = percentile(busy, 95) / percentile(idle, 95)
    rate = hashes / (ROUNDS * PHASE_SECONDS)
    print(f"\nGET /api/users/{{id}} every {PACE_SECONDS * 1000:.0f} ms, {ROUNDS} × {PHASE_SECONDS:.0f} s each way")
    print(f"{'':26}{'p50':>9}{'p95':>12}{'hashes/s':>12}")
    for name, phases, done in (("idle", idle, 0.0), (f"{SIGN_UPS_IN_FLIGHT} sign-ups in flight", busy, rate)):
        print(f"{name:26}{percentile(phases, 50):>6.1f} ms{percentile(phases, 95):>9.1f} ms{done:>12.1f}")
    print(f"p95 busy ÷ p95 idle: {ratio:.2f} (at most {LIMIT:.2f})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
