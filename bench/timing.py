"""Does the time of an answer tell who has an account? `python -m bench.timing [BOUND]`, or `make check-timing`

On SQLite and on a PostgreSQL of its own, asks the same of addresses that have an account, wait to be confirmed, are
disabled, were imported with a cheaper hash or have a second factor, and of addresses that nobody has: 200 pairs each,
interleaved. For each it prints the AUC of the best guess by a threshold: 0.5 is tossing a coin, 1 is certainty. It
fails above BOUND (0.6), which chance alone reaches once in a thousand times.
"""

import asyncio
import io
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection

from sqlalchemy import select

from bench.databases import DATABASES
from bench.limits import Limit, report
from bench.service import PASSWORD, Service, running_service
from src.core.encryption import Encryption
from src.core.passwords import hash_password
from src.core.settings import get_settings
from src.core.tokens import TokenSigner
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import SecondFactorModel, UserModel
from src.services.imports import import_people

BOUND = 0.6
PAIRS = 200
WARM_UP = 20  # pairs that are not counted
PEOPLE = 20  # of each kind, asked in turn
COST = 8  # the cheaper the hash, the less it hides
CHEAPER = 6
NEVER_REACHED = "999999/1s"
SETTINGS = {
    "AUTH_BCRYPT_ROUNDS": str(COST),
    # Emails are queued, and nobody sends them: what else the process does would only hide differences.
    "SMTP_HOST": "localhost",
    "SMTP_FROM": "auth@example.com",
    "OUTBOX_IN_APP": "false",
    "RATE_LIMIT_REQUESTS_PER_ORIGIN": NEVER_REACHED,
    "RATE_LIMIT_FAILURES_PER_ACCOUNT_AND_ORIGIN": NEVER_REACHED,
    "RATE_LIMIT_FAILURES_PER_ACCOUNT": NEVER_REACHED,
    "RATE_LIMIT_EMAILS_PER_ADDRESS_AND_ORIGIN": NEVER_REACHED,
    "RATE_LIMIT_EMAILS_PER_ADDRESS": NEVER_REACHED,
}
ROUTES: Mapping[str, tuple[str, Mapping[str, str], int]] = {
    "log-in": ("/auth/login", {"password": "a-wrong-passphrase"}, 401),
    "resend": ("/auth/activation/resend", {}, 202),
    "reset": ("/auth/password-reset/request", {}, 202),
    "sign-up": ("/auth/signup", {"password": PASSWORD}, 201),
}
ACCOUNTS = ("known", "disabled", "imported", "second-factor")
KINDS = (*ACCOUNTS, "pending")


def addresses(kind: str) -> list[str]:
    return [f"{kind}-{number}@example.com" for number in range(PEOPLE)]


def prepare(url: str, service: Service) -> None:
    hashes = {"known": hash_password(PASSWORD, COST), "imported": hash_password(PASSWORD, CHEAPER)}
    people = [
        {"email": email, "hashed_password": hashes.get(kind, hashes["known"]), "is_active": kind != "disabled"}
        for kind in ACCOUNTS
        for email in addresses(kind)
    ]
    lines = io.BytesIO("\n".join(map(json.dumps, people)).encode())
    asyncio.run(_import(url, lines, addresses("second-factor")))
    for email in addresses("pending"):
        service.ask("POST", "/auth/signup", {"email": email, "password": PASSWORD})


async def _import(url: str, lines: io.BytesIO, with_factor: Sequence[str]) -> None:
    database = AsyncDatabaseManager(url)
    encryption = Encryption(TokenSigner.from_settings(get_settings()).keys)
    counts = await import_people(database, lines, encryption=encryption, is_production=False, report=lambda *_: None)
    async with database.session() as session:
        for user_id in await session.scalars(select(UserModel.id).where(UserModel.email.in_(with_factor))):
            # No right password is sent, so nobody reads the secret.
            session.add(SecondFactorModel(user_id=user_id, encrypted_secret=b"", key_id="", confirmed_at=utc_now()))
        await session.commit()
    await database.disconnect()
    assert not counts.refused, counts


def seconds_of(connection: HTTPConnection, route: str, email: str) -> float:
    path, body, status = ROUTES[route]
    content = json.dumps({"email": email, **body})
    start = time.perf_counter()
    connection.request("POST", path, content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    seconds = time.perf_counter() - start
    assert answer.status == status, (route, email, answer.status, text)
    return seconds


def compare(service: Service, route: str, kind: str) -> float:
    """The AUC of telling `kind` from unknown addresses."""
    known, unknown = list[float](), list[float]()
    with closing(service.connect()) as connection:
        for number in range(WARM_UP + PAIRS):
            pair: list[tuple[list[float], str]] = [
                (known, addresses(kind)[number % PEOPLE]),
                (unknown, addresses(f"nobody-{route}-{kind}")[number % PEOPLE]),
            ]
            random.shuffle(pair)
            for times, email in pair:
                times.append(seconds_of(connection, route, email))
    return auc(known[WARM_UP:], unknown[WARM_UP:])


def auc(ones: Sequence[float], others: Sequence[float]) -> float:
    """The area under the ROC curve, in whichever direction tells more: how likely one of the ones is above one of the
    others (Mann and Whitney's U)."""
    above = sum((one > other) + (one == other) / 2 for one in ones for other in others) / (len(ones) * len(others))
    return max(above, 1 - above)


def measure_on(database: str, bound: float) -> list[Limit]:
    with DATABASES[database]() as create:
        url = create("timing")
        with running_service(url, SETTINGS) as service:
            prepare(url, service)
            return [
                Limit(f"{route}, {kind} or unknown, on {database}", compare(service, route, kind), at_most=bound)
                for route in ROUTES
                for kind in KINDS
            ]


def main() -> int:
    """The exit status: 1 when a time tells."""
    bound = float(sys.argv[1]) if len(sys.argv) > 1 else BOUND
    return report([limit for database in DATABASES for limit in measure_on(database, bound)])


if __name__ == "__main__":
    sys.exit(main())
