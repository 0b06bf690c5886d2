"""Thousands of clients send a request and leave at once: `python -m bench.faults.departures`

What they asked for is not done for nobody, and the service goes on answering others.
"""

import argparse
import asyncio
import re
import resource
import sys
import time
from collections import Counter
from tempfile import TemporaryDirectory

from bench.faults.clients import ask, message, send_and_leave
from bench.limits import Limit, report
from bench.service import PASSWORD, Service, running_service

CLIENTS = 3_000
DESCRIPTORS = 8_192
LIVENESS_MOST = 4.0  # seconds; they all come at the same moment
WATCHED_SECONDS = 10
DONE_MOST = 0.2  # of what they asked for

LIVE = message("GET", "/health/live")


def asked_by(kind: str, number: int) -> bytes:
    if kind == "read":
        return message("GET", "/health/ready")
    body = {"email": f"{kind}{number}@example.com", "password": PASSWORD}
    return message("POST", {"log in": "/auth/login", "sign up": "/auth/signup"}[kind], body)


async def slowest_sign_of_life(port: int, kind: str, clients: int) -> float:
    leaving = [send_and_leave(port, asked_by(kind, number), after=0.0) for number in range(clients)]
    await asyncio.gather(*leaving)
    slowest, ends_at = 0.0, time.monotonic() + WATCHED_SECONDS
    while time.monotonic() < ends_at:
        began_at = time.monotonic()
        assert await ask(port, LIVE) == 200
        slowest = max(slowest, time.monotonic() - began_at)
        await asyncio.sleep(0.05)
    return slowest


def statuses(service: Service, route: str) -> Counter[str]:
    return Counter(re.findall(rf"(?:GET|POST) {route} (\d+) ", service.log.read_text()))


def main(clients: int) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, DESCRIPTORS)), hard))
    limits = []
    with TemporaryDirectory() as folder:
        settings = {"RATE_LIMIT_ENABLED": "false"}
        with running_service(f"sqlite:///{folder}/users.db", settings) as service:
            for kind in ("read", "log in", "sign up"):
                cpu = service.cpu_seconds
                slowest = asyncio.run(slowest_sign_of_life(service.port, kind, clients))
                print(f"{clients} clients {kind} and leave: {service.cpu_seconds - cpu:.1f} s of processor time")
                limits.append(Limit(f"{kind}: slowest sign of life, in s", slowest, at_most=LIVENESS_MOST))
            done = statuses(service, "/auth/signup")["201"] + statuses(service, "/auth/login")["401"]
            errors = service.log.read_text().count(" ERROR ")
    limits.append(
        Limit("share of log-ins and sign-ups that were done for nobody", done / (2 * clients), at_most=DONE_MOST)
    )
    return report([*limits, Limit("errors in the log", errors, at_most=0)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    sys.exit(main(parser.parse_args().clients))
