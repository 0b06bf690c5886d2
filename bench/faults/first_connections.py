"""Several processes open a new SQLite file at the same moment, or one that is no database:
`python -m bench.faults.first_connections`

The first wait for each other, without keeping their event loops waiting; of the other, everybody is told at once.
"""

import argparse
import asyncio
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy.exc import DBAPIError

from bench.faults.purge import longest_lag
from bench.limits import Limit, report
from src.db import AsyncDatabaseManager

PROCESSES = 4
CONNECTIONS = 8
ROUNDS = 10
OPEN_MOST = 5.0  # seconds
REFUSED_MOST = 2.0
LAG_MOST = 0.25


@dataclass(frozen=True, slots=True)
class Opened:
    seconds: float
    lag: float
    failures: int


async def open_at_once(url: str) -> Opened:
    database, is_over = AsyncDatabaseManager(url), asyncio.Event()
    watching = asyncio.create_task(longest_lag(is_over))
    began_at = time.monotonic()
    outcomes = await asyncio.gather(*(database.connect() for _ in range(CONNECTIONS)), return_exceptions=True)
    seconds = time.monotonic() - began_at
    is_over.set()
    lag = await watching
    await database.disconnect()
    return Opened(seconds, lag, sum(isinstance(outcome, DBAPIError) for outcome in outcomes))


def open_in_process(url: str) -> Opened:
    return asyncio.run(open_at_once(url))


def main(rounds: int) -> int:
    new, broken = list[Opened](), list[Opened]()
    with TemporaryDirectory() as folder, ProcessPoolExecutor(PROCESSES) as processes:
        list(processes.map(open_in_process, [f"sqlite:///{folder}/warm{n}.db" for n in range(PROCESSES)]))  # loads code
        for number in range(rounds):
            new += processes.map(open_in_process, [f"sqlite:///{folder}/new{number}.db"] * PROCESSES)
        Path(folder, "broken.db").write_bytes(b"This is no database. " * 1_000)
        broken += processes.map(open_in_process, [f"sqlite:///{folder}/broken.db"] * PROCESSES)
    opened = PROCESSES * CONNECTIONS - sum(each.failures for each in broken)
    return report(
        [
            Limit("new: connections that failed", sum(each.failures for each in new), at_most=0),
            Limit("new: slowest to open, in s", max(each.seconds for each in new), at_most=OPEN_MOST),
            Limit("new: the event loop was late by, in s", max(each.lag for each in new), at_most=LAG_MOST),
            Limit("broken: connections that opened", opened, at_most=0),
            Limit("broken: slowest refusal, in s", max(each.seconds for each in broken), at_most=REFUSED_MOST),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    sys.exit(main(parser.parse_args().rounds))
