"""`python -m src serve` is told to stop while somebody has sent half a request: `python -m bench.faults.stop`

The slow client does not keep it from stopping.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from tempfile import TemporaryDirectory

from bench.faults.bouncer import wait_for
from bench.limits import Limit, report
from bench.service import ROOT

STOP_MOST = 5.0  # seconds: two for the request, and what it takes to close
GIVE_UP_SECONDS = 30
HALF = b"POST /auth/login HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{"


def seconds_to_stop(workers: int) -> float:
    with TemporaryDirectory() as folder, closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
        probe.close()
        settings = {"DATABASE_URL": f"sqlite:///{folder}/users.db", "JWT_KEYS_DIR": f"{folder}/keys"}
        command = [sys.executable, "-m", "src", "serve", "--port", str(port), "--workers", str(workers)]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
        wait_for(port)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HALF)
            time.sleep(2)  # until a worker of the supervisor has taken it
            began_at = time.monotonic()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GIVE_UP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            return time.monotonic() - began_at


def main() -> int:
    return report(
        [
            Limit(f"seconds until it has stopped, with {workers} workers", seconds_to_stop(workers), at_most=STOP_MOST)
            for workers in (1, 2)
        ]
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(main())
