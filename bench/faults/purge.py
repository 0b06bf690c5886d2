"""Half a million ended sessions are purged while people log in: `python -m bench.faults.purge`

No log-in waits for long, and the event loop in which the purge runs goes on: here it is a process of its own, beside
the service, so that both can be seen.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from uuid import UUID

from bench.databases import DATABASES
from bench.limits import Limit, report
from bench.scale import Row, Seed, fill
from bench.service import PASSWORD, create_account, running_service
from src.core.settings import Settings
from src.db import AsyncDatabaseManager
from src.services.purge import purge

SESSIONS = 500_000
LOG_IN_MOST = 0.5  # seconds
LAG_MOST = 0.25
TICK_SECONDS = 0.01
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class EndedSessions(Seed):
    """Sessions of one user that ended long ago."""

    def tables(self) -> Mapping[str, Iterator[Row]]:
        return {"users": iter([next(self.users())]), "sessions": self.ended()}

    def ended(self) -> Iterator[Row]:
        owner, at = self.id_of(0), datetime.now(UTC) - timedelta(days=400)
        names = ("created_at", "updated_at", "last_used_at", "authenticated_at", "idle_expires_at", "expires_at")
        for number in range(self.size):
            yield {"id": UUID(int=number), "user_id": owner, "generation": 1, **dict.fromkeys(names, at)}


async def longest_lag(is_over: asyncio.Event) -> float:
    """By how much the event loop was late at most."""
    longest = 0.0
    while not is_over.is_set():
        began_at = time.monotonic()
        await asyncio.sleep(TICK_SECONDS)
        longest = max(longest, time.monotonic() - began_at - TICK_SECONDS)
    return longest


async def purge_and_watch(url: str) -> tuple[int, float]:
    """How many sessions went, and the longest lag meanwhile."""
    database, is_over = AsyncDatabaseManager(url), asyncio.Event()
    watching = asyncio.create_task(longest_lag(is_over))
    purged = await purge(database, Settings())
    is_over.set()
    lag = await watching
    await database.disconnect()
    return purged.sessions, lag


def measure_on(database: str, sessions: int) -> list[Limit]:
    with DATABASES[database]() as create:
        url = create("users")
        asyncio.run(fill(url, EndedSessions(sessions)))
        with running_service(url, {"AUTH_BCRYPT_ROUNDS": "4", "RATE_LIMIT_ENABLED": "false"}) as service:
            account, waits, is_over = create_account(service), list[float](), Event()

            def log_in_again_and_again() -> None:
                while not is_over.is_set():
                    began_at = time.monotonic()
                    service.ask("POST", "/auth/login", {"email": account.email, "password": PASSWORD})
                    waits.append(time.monotonic() - began_at)
                    time.sleep(PAUSE_SECONDS)

            thread = Thread(target=log_in_again_and_again)
            thread.start()
            began_at = time.monotonic()
            purged, lag = asyncio.run(purge_and_watch(url))
            seconds = time.monotonic() - began_at
            is_over.set()
            thread.join()
    print(f"{database}: {purged} sessions in {seconds:.0f} s, {len(waits)} log-ins meanwhile")
    return [
        Limit(f"{database}: sessions left", sessions - purged, at_most=0),
        Limit(f"{database}: slowest log-in, in s", max(waits), at_most=LOG_IN_MOST),
        Limit(f"{database}: the event loop was late by, in s", lag, at_most=LAG_MOST),
    ]


def main(sessions: int) -> int:
    return report([limit for database in DATABASES for limit in measure_on(database, sessions)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    sys.exit(main(parser.parse_args().sessions))
