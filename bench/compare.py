"""Is one revision faster than another? `python -m bench.compare OLD_REVISION [NEW_REVISION]`

Without a new revision, the working tree is the new one. Each is started from a checkout of its own, on a database of
its own, with the packages that are installed now, and asked by 16 clients: old and new in turns, so that what else the
machine does hits both. Every answer must be a success.

The ratios hold from run to run, the absolute figures do not; 2.00 is twice as fast, or half the processor time. Where
the two ratios of a load differ much, the machine was busy with something else.
"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from bench.databases import DATABASES
from bench.load import ROUND_SECONDS, ROUNDS, Client, Round, alternate, measure, median_ratio, repeat, request
from bench.service import PASSWORD, ROOT, Account, Service, create_account, running_service

CLIENTS = 16
SETTINGS = {
    "AUTH_BCRYPT_ROUNDS": "4",  # what lies around the hashing is measured; bench.floors measures log-ins at full cost
    # Mail is configured, so that asking for a link again does its work; nobody sends it, and links are in the answers.
    "SMTP_HOST": "localhost",
    "SMTP_FROM": "accounts@example.com",
    "OUTBOX_IN_APP": "false",
    "AUTH_RETURN_TOKEN_IN_RESPONSE": "true",
}


@dataclass(frozen=True, slots=True)
class Load:
    """One route, and a client of it for each account."""

    name: str
    status: int
    client: Callable[[Service, Account], Client]

    def run(self, service: Service, accounts: Sequence[Account]) -> Round:
        return measure(service, [self.client(service, account) for account in accounts], status=self.status)


def read_user(_service: Service, account: Account) -> Client:
    return repeat(request("GET", f"/api/users/{account.user_id}"))


def read_self(service: Service, account: Account) -> Client:
    tokens = service.ask("POST", "/auth/login", credentials(account))
    return repeat(request("GET", "/auth/me", token=tokens["access_token"]))


def refresh(service: Service, account: Account) -> Client:
    tokens = service.ask("POST", "/auth/login", credentials(account))
    return keep_refreshing(tokens["refresh_token"])


def keep_refreshing(refresh_token: str) -> Client:
    """Goes on with the newest token of the session, as a browser does."""
    while True:
        answer = yield request("POST", "/auth/refresh", {"refresh_token": refresh_token})
        refresh_token = json.loads(answer)["refresh_token"]


def log_in(_service: Service, account: Account) -> Client:
    return repeat(request("POST", "/auth/login", credentials(account)))


def resend(_service: Service, _account: Account) -> Client:
    return repeat(request("POST", "/auth/activation/resend", {"email": f"{uuid4()}@example.com"}))


def sign_up(_service: Service, _account: Account) -> Client:
    while True:
        yield request("POST", "/auth/signup", {"email": f"{uuid4()}@example.com", "password": PASSWORD})


def credentials(account: Account) -> dict[str, str]:
    return {"email": account.email, "password": PASSWORD}


LOADS = (
    Load("GET /api/users/{id}", 200, read_user),
    Load("GET /auth/me", 200, read_self),
    Load("POST /auth/refresh", 200, refresh),
    Load("POST /auth/login", 200, log_in),
    Load("POST /auth/activation/resend", 202, resend),
    Load("POST /auth/signup", 201, sign_up),
)


@contextmanager
def checked_out(revision: str | None) -> Iterator[Path]:
    """The folder with a revision's sources; the working tree for `None`."""
    if revision is None:
        yield ROOT
        return
    with TemporaryDirectory() as folder:
        git("worktree", "add", "--quiet", "--detach", folder, revision)
        try:
            yield Path(folder)
        finally:
            git("worktree", "remove", "--force", folder)


def git(*arguments: str) -> str:
    """What git prints; where it refuses, its own words end the benchmark."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    return done.stdout.strip()


def name_of(revision: str | None) -> str:
    if revision is not None:
        return git("log", "-1", "--format=%h %s", revision, "--")
    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return f"working tree, {name_of('HEAD')}{changed}"


def compare_on(database: str, old_root: Path, new_root: Path) -> None:
    """Print a line for each load."""
    with (
        DATABASES[database]() as create,
        running_service(create("old"), SETTINGS, root=old_root) as old,
        running_service(create("new"), SETTINGS, root=new_root) as new,
    ):
        old_accounts, new_accounts = ([create_account(service) for _ in range(CLIENTS)] for service in (old, new))
        print(f"\n{database:28}{'requests/s':^25}{'CPU ms/request':^25}{'p50 ms':^16}{'p99 ms':>11}")
        print(" " * 28 + f"{'old':>9}{'new':>9}{'ratio':>7}" * 2 + f"{'old':>8}{'new':>8}" * 2)
        for load in LOADS:
            print(
                row(load.name, *alternate(partial(load.run, old, old_accounts), partial(load.run, new, new_accounts)))
            )


def row(name: str, old: Sequence[Round], new: Sequence[Round]) -> str:
    """The medians of the rounds."""

    def pair(figure: Callable[[Round], float], spec: str) -> str:
        return "".join(format(statistics.median(map(figure, rounds)), spec) for rounds in (old, new))

    faster = median_ratio([each.rate for each in new], [each.rate for each in old])
    cheaper = median_ratio([each.cpu_seconds for each in old], [each.cpu_seconds for each in new])
    return (
        f"{name:28}{pair(lambda each: each.rate, '>9,.0f')}{faster:>7.2f}"
        f"{pair(lambda each: each.cpu_seconds * 1000, '>9.2f')}{cheaper:>7.2f}"
        f"{pair(lambda each: each.milliseconds(50), '>8.1f')}{pair(lambda each: each.milliseconds(99), '>8.1f')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="Compare the speed of two revisions.")
    parser.add_argument("old", metavar="OLD_REVISION")
    parser.add_argument("new", metavar="NEW_REVISION", nargs="?", help="the working tree, if left out")
    revisions = parser.parse_args()
    print(f"old: {name_of(revisions.old)}\nnew: {name_of(revisions.new)}")
    print(f"{CLIENTS} clients, one worker, {ROUNDS} rounds of {ROUND_SECONDS:.0f} s each, in turns; medians")
    with checked_out(revisions.old) as old_root, checked_out(revisions.new) as new_root:
        for database in DATABASES:
            compare_on(database, old_root, new_root)


if __name__ == "__main__":
    main()
