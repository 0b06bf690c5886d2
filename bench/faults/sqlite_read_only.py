"""An SQLite database cannot be written for a while: `python -m bench.faults.sqlite_read_only`

The service may open 512 descriptors, and has opened the file for nobody yet. Everything is 503, no descriptor and no
thread is lost, and when the file can be written again, it is. For root, the service runs without root's right to write
everything (`setpriv`).
"""

import argparse
import os
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.faults.probes import descriptors, probing, questions_of, threads
from bench.limits import Limit, report
from bench.service import running_service

DESCRIPTORS = 512


def set_modes(folder: Path, *, is_read_only: bool) -> None:
    for file in folder.glob("*.db*"):
        file.chmod(0o444 if is_read_only else 0o600)
    folder.chmod(0o555 if is_read_only else 0o700)


def main(seconds: float) -> int:
    wrapper = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []
    with TemporaryDirectory() as root:
        folder, settings = Path(root, "data"), {"JWT_KEYS_DIR": f"{root}/keys"}
        url = f"sqlite:///{folder}/users.db"
        with running_service(url, settings, wrapper=wrapper) as service:
            questions = questions_of(service, at_once=8)
        with running_service(url, settings, wrapper=wrapper) as service:  # which has hardly a connection yet
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
            set_modes(folder, is_read_only=True)
            with probing(service, questions) as probes:
                probes.begin("read-only")
                time.sleep(3)
                before = descriptors(service), threads(service)
                time.sleep(seconds)
                after = descriptors(service), threads(service)
                set_modes(folder, is_read_only=False)
                probes.begin("writable again")
                time.sleep(5)
            log = service.log.read_text()
    print(f"descriptors {before[0]} -> {after[0]}, threads {before[1]} -> {after[1]}")
    late = [a for kind in ("read", "write") for a in probes.of("writable again", kind)][-30:]
    during = [a for kind in ("read", "write") for a in probes.of("read-only", kind)]
    return report(
        [
            Limit("descriptors lost", after[0] - before[0], at_most=8),
            Limit("threads lost", after[1] - before[1], at_most=4),
            Limit("answers but 200 and 503", sum(answer.status not in (200, 503) for answer in during), at_most=0),
            Limit("slowest sign of life, in s", probes.slowest("read-only", "live"), at_most=1),
            Limit("share of 200 in the end", sum(answer.status == 200 for answer in late) / len(late), at_least=1),
            Limit("tracebacks", log.count("Traceback") + log.count("The request failed"), at_most=0),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long it cannot be written")
    sys.exit(main(parser.parse_args().seconds))
