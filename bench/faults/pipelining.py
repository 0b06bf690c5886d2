"""Clients send many requests on one connection, and leave before the answers: `python -m bench.faults.pipelining`

That is no error, and nothing above debug is logged of it.
"""

import argparse
import asyncio
import sys
from tempfile import TemporaryDirectory

from bench.faults.clients import message, send_and_leave
from bench.limits import Limit, report
from bench.service import PASSWORD, running_service

CLIENTS = 200
PIPELINED = 20
PAUSES = (0.0, 0.005, 0.02, 0.05)
BODY = {"email": "somebody@example.com", "password": PASSWORD}


async def leave(port: int, clients: int) -> None:
    read, guess = message("GET", "/health/ready"), message("POST", "/auth/login", BODY)
    half = guess[:-10]
    for number in range(clients):
        sent = (read * PIPELINED, guess * 3, read * 3 + guess + half)[number % 3]
        await send_and_leave(port, sent, after=PAUSES[number % len(PAUSES)])
    await asyncio.sleep(2)  # until what is under way has ended


def main(clients: int) -> int:
    settings = {"AUTH_BCRYPT_ROUNDS": "4", "RATE_LIMIT_ENABLED": "false"}
    with TemporaryDirectory() as folder, running_service(f"sqlite:///{folder}/users.db", settings) as service:
        asyncio.run(leave(service.port, clients))
        lines = service.log.read_text().splitlines()
    loud = [line for line in lines if " ERROR " in line or (" WARNING " in line and "SMTP" not in line)]
    print(*loud[:10], sep="\n")
    answered = sum("GET /health/ready 200" in line for line in lines)
    return report(
        [Limit("requests that were answered", answered, at_least=1), Limit("loud lines", len(loud), at_most=0)]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    sys.exit(main(parser.parse_args().clients))
