"""PostgreSQL is frozen for a while, every process of it: `python -m bench.faults.frozen`

Whoever asks gets a 503 within the limits of DATABASE_POOL_TIMEOUT_SECONDS and DATABASE_STATEMENT_TIMEOUT_SECONDS, and
the service recovers without a restart.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.databases import postgresql
from bench.faults.probes import probing
from bench.limits import Limit, report
from bench.service import running_service
from src.db.connections import CONNECT_TIMEOUT_SECONDS

TIMEOUT_SECONDS = 10  # the default of both
SLACK_SECONDS = 2.5


def server_processes(postmaster: int | None = None) -> list[int]:
    """Of every PostgreSQL on this machine, or of one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # it has ended meanwhile
            continue
        is_wanted = postmaster is None or str(postmaster) in (fields["Pid"].strip(), fields["PPid"].strip())
        if fields["Name"].strip() == "postgres" and is_wanted:
            found.append(int(fields["Pid"]))
    return found


@contextmanager
def frozen(processes: list[int]) -> Iterator[None]:
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def main(seconds: float, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
    settings = {
        "DATABASE_POOL_TIMEOUT_SECONDS": str(timeout_seconds),
        "DATABASE_STATEMENT_TIMEOUT_SECONDS": str(timeout_seconds),
    }
    others = set(server_processes())
    with postgresql() as create:
        url = create("users")
        with running_service(url, settings) as service, probing(service) as probes:
            probes.begin("before")
            time.sleep(2)
            with frozen([process for process in server_processes() if process not in others]):
                probes.begin("frozen")
                time.sleep(seconds)
            probes.begin("thawed")
            time.sleep(10)
    most = max(timeout_seconds, CONNECT_TIMEOUT_SECONDS) + SLACK_SECONDS
    limits = [Limit("frozen: slowest sign of life, in s", probes.slowest("frozen", "live"), at_most=1)]
    for kind in ("read", "write"):
        during, after = probes.statuses("frozen", kind), probes.of("thawed", kind)[-20:]
        limits += [
            Limit(f"frozen: slowest {kind}, in s", probes.slowest("frozen", kind), at_most=most),
            Limit(f"frozen: {kind}s but 200 and 503", during.total() - during[200] - during[503], at_most=0),
            Limit(
                f"thawed: share of 200 of the last {kind}s",
                sum(a.status == 200 for a in after) / len(after),
                at_least=1,
            ),
        ]
    return report(limits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="how long it is frozen")
    sys.exit(main(parser.parse_args().seconds))
