"""Thousands of sign-ups of one address wait: `python -m bench.faults.sign_ups`

One more costs what the first did. (Limits allow ten an hour from one origin, and fifty from everywhere; here there are
none.)
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from uuid_utils.compat import uuid7

from bench.databases import DATABASES
from bench.limits import Limit, report
from bench.scale import Row, Seed, fill
from bench.service import PASSWORD, Service, running_service

SIGN_UPS = 50_000
MEASURED = 60
MOST = 1.8  # with so many ÷ with none; answers come in steps of 20 ms
EMAIL = "ana@example.com"
SETTINGS = {
    "AUTH_BCRYPT_ROUNDS": "4",
    "RATE_LIMIT_ENABLED": "false",
    "SMTP_HOST": "127.0.0.1",
    "SMTP_PORT": "9",  # nobody listens: the emails wait, as many as there are sign-ups
    "SMTP_FROM": "accounts@example.com",
    "SMTP_TLS": "none",
}


@dataclass(frozen=True, slots=True)
class Waiting(Seed):
    """Sign-ups of one address, and the email of each."""

    def tables(self) -> Mapping[str, Iterator[Row]]:
        ids = [uuid7() for _ in range(self.size)]
        at = datetime.now(UTC)
        times = {"created_at": at, "updated_at": at}
        shared = {"email": EMAIL, "hashed_password": "-", "is_active": False, "is_admin": False, **times}
        email = {"kind": "activation", "to_email": EMAIL, "status": "dropped", "due_at": at, "attempts": 0, **times}
        return {
            "users": ({"id": id_} | shared for id_ in ids),
            "outbox_emails": ({"id": uuid4(), "user_id": id_} | email for id_ in ids),
        }


def median_sign_up(service: Service, email: str) -> float:
    """In seconds; of new addresses, where none is given."""
    times = []
    for _ in range(MEASURED):
        began_at = time.perf_counter()
        service.ask("POST", "/auth/signup", {"email": email or f"{uuid4()}@example.com", "password": PASSWORD})
        times.append(time.perf_counter() - began_at)
    return statistics.median(times)


def measure_on(database: str, sign_ups: int) -> Limit:
    with DATABASES[database]() as create:
        url = create("users")
        asyncio.run(fill(url, Waiting(sign_ups)))
        with running_service(url, SETTINGS) as service:
            median_sign_up(service, "")  # warms up
            fresh, crowded = median_sign_up(service, ""), median_sign_up(service, EMAIL)
    print(
        f"{database}: {fresh * 1000:.1f} ms for a new address, {crowded * 1000:.1f} ms for one with {sign_ups} waiting"
    )
    return Limit(f"{database}: a crowded address ÷ a new one", crowded / fresh, at_most=MOST)


def main(sign_ups: int) -> int:
    return report([measure_on(database, sign_ups) for database in DATABASES])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sign-ups", type=int, default=SIGN_UPS)
    sys.exit(main(parser.parse_args().sign_ups))
