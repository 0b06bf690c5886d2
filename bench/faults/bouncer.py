"""PgBouncer in transaction mode stands between: `python -m bench.faults.bouncer` (needs PgBouncer 1.21 or newer)

Each transaction may get another connection of PostgreSQL's, of which there are fewer than the service believes. Nothing
is refused, and each answer is the right one.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import URL, make_url

from bench.databases import postgresql
from bench.faults.probes import probing
from bench.limits import Limit, report
from bench.service import running_service

CONNECTIONS = 4  # of PostgreSQL's
START_SECONDS = 10


@contextmanager
def running_pgbouncer(program: str, url: URL) -> Iterator[URL]:
    """The URL of the same database, behind PgBouncer."""
    with TemporaryDirectory() as folder, closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
        probe.close()
        Path(folder).chmod(0o755)
        Path(folder, "pgbouncer.ini").write_text(
            f"""[databases]
{url.database} = host={url.query["host"]} user={url.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {CONNECTIONS}
max_prepared_statements = 200
"""
        )
        owner = Path(
            str(url.query["host"])
        ).owner()  # whom PostgreSQL's socket belongs to; not root, who may not run it
        as_user = ["-u", owner] if os.geteuid() == 0 else []
        process = subprocess.Popen([program, "-q", *as_user, f"{folder}/pgbouncer.ini"])
        try:
            wait_for(port)
            yield url.difference_update_query(["host"]).set(host="127.0.0.1", port=port)
        finally:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError("PgBouncer did not start.")


def main(seconds: float, program: str) -> int:
    with postgresql() as create, running_pgbouncer(program, make_url(create("users"))) as url:
        shown = url.render_as_string(hide_password=False)
        with running_service(shown, {"RATE_LIMIT_ENABLED": "true"}) as service:
            with probing(service) as probes:
                probes.begin("behind it")
                time.sleep(seconds)
            log = service.log.read_text()
    statuses = [probes.statuses("behind it", kind) for kind in ("read", "write")]
    return report(
        [
            Limit("answers but 200", sum(each.total() - each[200] for each in statuses), at_most=0),
            Limit("writes", statuses[1][200], at_least=seconds),
            Limit("errors in the log", log.count(" ERROR ") + log.count("did not answer"), at_most=0),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--program", default=shutil.which("pgbouncer"))
    given = parser.parse_args()
    sys.exit(main(given.seconds, given.program))
