"""Another process holds SQLite's write lock for a while: `python -m bench.faults.locked`

Reads go on, and whoever wants to write gets a 503 with Retry-After within ten seconds.
"""

import argparse
import sqlite3
import sys
import time
from contextlib import closing
from tempfile import TemporaryDirectory

from bench.faults.probes import probing
from bench.limits import Limit, report
from bench.service import running_service

LOCK_SECONDS = 10  # the default of DATABASE_LOCK_TIMEOUT_SECONDS
SLACK_SECONDS = 1.5


def main(seconds: float, lock_seconds: float = LOCK_SECONDS) -> int:
    settings = {"DATABASE_LOCK_TIMEOUT_SECONDS": str(lock_seconds)}
    with TemporaryDirectory() as folder:
        file = f"{folder}/users.db"
        with running_service(f"sqlite:///{file}", settings) as service, probing(service) as probes:
            probes.begin("before")
            time.sleep(2)
            with closing(sqlite3.connect(file, isolation_level=None, timeout=60)) as other:
                other.execute("BEGIN IMMEDIATE")
                probes.begin("locked")
                time.sleep(seconds)
            probes.begin("free again")
            time.sleep(5)
    statuses = probes.statuses("locked", "write")
    return report(
        [
            Limit("locked: slowest read, in s", probes.slowest("locked", "read"), at_most=1),
            Limit(
                "locked: reads but 200",
                probes.statuses("locked", "read").total() - probes.statuses("locked", "read")[200],
                at_most=0,
            ),
            Limit(
                "locked: slowest write, in s", probes.slowest("locked", "write"), at_most=lock_seconds + SLACK_SECONDS
            ),
            Limit("locked: writes but 200 and 503", statuses.total() - statuses[200] - statuses[503], at_most=0),
            Limit("locked: writes that were refused", statuses[503], at_least=1),
            Limit(
                "free again: writes but 200", sum(a.status != 200 for a in probes.of("free again", "write")), at_most=0
            ),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long it is locked")
    sys.exit(main(parser.parse_args().seconds))
