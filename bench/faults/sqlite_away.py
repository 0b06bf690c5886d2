"""The folder of an SQLite database is away for a while, then its file alone: `python -m bench.faults.sqlite_away`

Meanwhile there is only 503, and a line of the log a minute. No new file is made. When the file is back, so is the
service, and what it said to have written is there.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.faults.probes import probing
from bench.limits import Limit, report
from bench.service import running_service


def main(seconds: float) -> int:
    with TemporaryDirectory() as root:
        folder, file = Path(root, "data"), Path(root, "data", "users.db")
        with (
            running_service(f"sqlite:///{file}", {"JWT_KEYS_DIR": f"{root}/keys"}) as service,
            probing(service) as probes,
        ):
            probes.begin("before")
            time.sleep(seconds / 2)
            probes.begin("folder away")
            folder.rename(f"{root}/elsewhere")
            time.sleep(seconds)
            was_made = folder.exists()
            Path(root, "elsewhere").rename(folder)
            probes.begin("folder back")
            time.sleep(seconds / 2)
            probes.begin("file away")
            file.rename(f"{root}/users.db")
            time.sleep(seconds)
            was_made |= file.exists()
            Path(root, "users.db").rename(file)
            probes.begin("file back")
            time.sleep(seconds)
            log = service.log.read_text()
    limits = [
        Limit("files made anew", int(was_made), at_most=0),
        Limit("tracebacks", log.count("Traceback") + log.count("The request failed"), at_most=0),
        Limit("lines about the database", log.count("The database did not answer"), at_most=4),
    ]
    for phase in ("folder away", "file away"):
        answers = [answer for kind in ("read", "write") for answer in probes.of(phase, kind)]
        refused = sum(answer.status == 503 for answer in answers)
        limits.append(Limit(f"{phase}: share of 503", refused / len(answers), at_least=0.95))
        limits.append(Limit(f"{phase}: other refusals", sum(a.status not in (200, 503) for a in answers), at_most=0))
        limits.append(Limit(f"{phase}: slowest sign of life, in s", probes.slowest(phase, "live"), at_most=1))
    for phase in ("folder back", "file back"):
        late = [
            a for kind in ("read", "write") for a in probes.of(phase, kind)[-30:-10]
        ]  # the next phase meets the last
        limits.append(
            Limit(f"{phase}: share of 200 in the end", sum(a.status == 200 for a in late) / len(late), at_least=1)
        )
    return report(limits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long it is away")
    sys.exit(main(parser.parse_args().seconds))
