"""Abuse without a pause: `python -m bench.faults.soak --minutes 60`

Clients leave before their answer, guess passwords and links, sign up, and send nonsense. The memory that the service
holds after a tenth of the time is what it holds in the end, within a fifth; no descriptor and no thread is lost.
"""

import argparse
import asyncio
import random
import resource
import sys
import time
from collections.abc import Sequence
from uuid import uuid4

from bench.databases import DATABASES
from bench.faults.clients import ask, message, send_and_leave
from bench.faults.probes import descriptors, threads
from bench.limits import Limit, report
from bench.service import PASSWORD, Service, running_service

CLIENTS = 24
SAMPLE_SECONDS = 10.0
FLAT = 1.2
SLACK = 30  # descriptors and threads that are made when they are first needed
DESCRIPTORS = 4_096


def abuse() -> bytes:
    email = f"{uuid4()}@example.com"
    return random.choice(
        [
            message("POST", "/auth/login", {"email": email, "password": PASSWORD}),
            message("POST", "/auth/login", {"email": "victim@example.com", "password": str(uuid4())}),
            message("POST", "/auth/signup", {"email": email, "password": PASSWORD}),
            message("POST", "/auth/signup", {"email": "x" * 60_000}),
            message("POST", "/auth/activate", {"token": str(uuid4())}),
            message("POST", "/auth/refresh", {"refresh_token": str(uuid4())}),
            message("POST", "/auth/password-reset/request", {"email": email}),
            message("GET", f"/activate?token={uuid4()}"),
            message("GET", f"/{uuid4()}"),
            message("GET", "/health/ready"),
        ]
    )


async def misbehave(port: int, ends_at: float) -> None:
    while time.monotonic() < ends_at:
        try:
            if random.random() < 0.5:
                await send_and_leave(port, abuse(), after=random.choice((0.0, 0.01, 0.1)))
            else:
                await ask(port, abuse())
        except OSError:
            await asyncio.sleep(0.1)


async def sample(service: Service, ends_at: float) -> Sequence[tuple[float, int, int]]:
    samples = []
    while time.monotonic() < ends_at:
        await asyncio.sleep(SAMPLE_SECONDS)
        samples.append((service.resident_mb, descriptors(service), threads(service)))
        print(f"{samples[-1][0]:7.1f} MB {samples[-1][1]:5} descriptors {samples[-1][2]:4} threads", flush=True)
    return samples


async def soak(service: Service, seconds: float) -> Sequence[tuple[float, int, int]]:
    ends_at = time.monotonic() + seconds
    clients = [asyncio.create_task(misbehave(service.port, ends_at)) for _ in range(CLIENTS)]
    samples = await sample(service, ends_at)
    await asyncio.gather(*clients)
    return samples


def main(minutes: float, database: str) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, DESCRIPTORS)), hard))
    settings = {"AUTH_BCRYPT_ROUNDS": "8", "LOG_LEVEL": "warning"}
    with DATABASES[database]() as create, running_service(create("users"), settings) as service:
        samples = asyncio.run(soak(service, minutes * 60))
    warm, last = samples[len(samples) // 10], samples[-1]
    print(f"{database}: {samples[0][0]:.0f} MB at first, {max(each[0] for each in samples):.0f} MB at most")
    return report(
        [
            Limit("memory, in the end ÷ warm", last[0] / warm[0], at_most=FLAT),
            Limit("descriptors lost", last[1] - warm[1], at_most=SLACK),
            Limit("threads lost", last[2] - warm[2], at_most=SLACK),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--database", choices=DATABASES, default="SQLite")
    given = parser.parse_args()
    sys.exit(main(given.minutes, given.database))
