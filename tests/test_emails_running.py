"""Emails as people run it: real processes, a mail server that fails in every way, and processes that are killed."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from src.db import AsyncDatabaseManager, BaseModel
from src.db.base import utc_now
from src.db.models import OutboxEmailModel, OutboxStatus
from tests.support.outbox import change_emails, list_emails
from tests.support.processes import Running, run_service, run_worker, wait_until
from tests.support.second_factor import code_of
from tests.support.smtp_server import MailServer, Mood, link_in
from tests.support.steps import PASSWORD, token_of

pytestmark = pytest.mark.slow

SECONDS = 20  # the longest that anything here is waited for


def wiring(database_url: str, server: MailServer, **environment: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(server.port),
        "SMTP_FROM": "Accounts <accounts@example.com>",
        "SMTP_TLS": "none",
    } | environment


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


async def until_it_has(server: MailServer, count: int) -> None:
    async def has() -> bool:
        return len(server.emails) >= count

    await until(has)


async def until_all_are_sent(database: AsyncDatabaseManager) -> None:
    async def are_sent() -> bool:
        return {email.status for email in await list_emails(database)} == {OutboxStatus.SENT}

    await until(are_sent)


async def make_due(database: AsyncDatabaseManager) -> None:
    """As if the wait for the next attempt were over."""
    await change_emails(database, due_at=utc_now())


async def end_leases(database: AsyncDatabaseManager) -> None:
    """As if the minute of a lease had passed since its holder was killed."""
    await change_emails(database, leased_until=utc_now() - timedelta(seconds=1))


def sign_up(service: Running, email: str = "ana@example.com") -> float:
    """How long it took."""
    began = time.monotonic()
    response = httpx.post(f"{service.url}/auth/signup", json={"email": email, "password": PASSWORD})
    assert response.status_code == 201, response.text
    assert response.json()["activation_url"] is None
    return time.monotonic() - began


async def test_an_email_arrives_at_once_and_its_link_works(database_url: str, tmp_path: Path) -> None:
    with MailServer() as server, run_service(tmp_path, **wiring(database_url, server)) as service:
        service.wait_until_ready()

        began = time.monotonic()
        sign_up(service)
        await until_it_has(server, 1)

        assert time.monotonic() - began < 5
        link = link_in(server.emails[0])
        assert link.startswith(f"{service.url}/activate?token=")
        async with httpx.AsyncClient(base_url=service.url) as client:
            for method in ("GET", "HEAD") * 10:
                assert (await client.request(method, link)).status_code == 200
            assert (await client.post("/activate", data={"token": token_of(link)})).status_code == 200
            body = {"email": "ana@example.com", "password": PASSWORD}
            assert (await client.post("/auth/login", json=body)).status_code == 200


async def test_whatever_the_mail_server_does_sign_ups_go_on_and_every_email_arrives(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    server = MailServer()
    moods: tuple[Mood, ...] = ("not now", "knows nobody", "drops", "takes and drops")
    with run_service(tmp_path, **wiring(database_url, server)) as service:
        service.wait_until_ready()
        with server:
            usual = max(sign_up(service, f"usual-{number}@example.com") for number in range(5))
            await until_all_are_sent(database)

        took = [sign_up(service, "refused@example.com")]
        await until_it_failed(database, "refused@example.com")
        with server:
            for mood in moods:
                server.becomes(mood)
                to_email = f"{mood.replace(' ', '-')}@example.com"
                took.append(sign_up(service, to_email))
                await until_it_failed(database, to_email)
            server.becomes("hangs")
            greeted = server.tried
            took.append(sign_up(service, "hangs@example.com"))

            async def hangs() -> bool:
                return server.tried > greeted

            await until(hangs)
            took.append(sign_up(service, "while-it-hangs@example.com"))
        server.becomes("well")
        with server:
            async with asyncio.timeout(SECONDS):
                while {email.status for email in await list_emails(database)} != {OutboxStatus.SENT}:
                    await make_due(database)
                    await asyncio.sleep(0.1)

        assert "Traceback" not in service.log
    emails = await list_emails(database)
    assert max(took) < usual * 3 + 1
    assert Counter(server.recipients) == Counter([*(email.to_email for email in emails), *server.unanswered])
    assert len({email["Message-ID"] for email in server.emails}) == len(emails)


async def find_email(database: AsyncDatabaseManager, to_email: str) -> OutboxEmailModel:
    [email] = [each for each in await list_emails(database) if each.to_email == to_email]
    return email


async def until_it_failed(database: AsyncDatabaseManager, to_email: str) -> None:
    async def failed() -> bool:
        email = await find_email(database, to_email)
        return email.last_error is not None and email.lease_id is None

    await until(failed)


async def test_a_service_that_is_killed_before_it_could_send_loses_nothing(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    server = MailServer()
    environment = wiring(database_url, server, OUTBOX_IN_APP="false")
    with run_service(tmp_path, **environment) as service:
        service.wait_until_ready()
        sign_up(service)
        service.kill()

    with server, run_worker(tmp_path, **environment):
        await until_all_are_sent(database)

    assert server.recipients == ["ana@example.com"]


async def test_a_worker_killed_between_sending_and_marking_repeats_one_email_at_most(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    with MailServer() as server:
        environment = wiring(database_url, server, OUTBOX_IN_APP="false")
        server.becomes("takes and hangs")
        with run_service(tmp_path, **environment) as service:
            service.wait_until_ready()
            sign_up(service)
            with run_worker(tmp_path, **environment) as worker:
                await until_it_has(server, 1)
                worker.kill()
            sign_up(service, "bob@example.com")
        server.becomes("well")
        [held] = [email for email in await list_emails(database) if email.lease_id]
        assert (held.to_email, held.status) == ("ana@example.com", OutboxStatus.QUEUED)

        with run_worker(tmp_path, **environment):
            await until_it_has(server, 2)
            assert server.recipients == ["ana@example.com", "bob@example.com"]  # the lease still holds
            await end_leases(database)
            await until_all_are_sent(database)

    assert Counter(server.recipients) == {"ana@example.com": 2, "bob@example.com": 1}
    first, _, again = server.emails
    assert first["Message-ID"] == again["Message-ID"]


async def test_a_worker_that_is_killed_before_the_server_took_the_email_sends_it_once(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    with MailServer() as server:
        environment = wiring(database_url, server, OUTBOX_IN_APP="false")
        server.becomes("hangs")
        with run_service(tmp_path, **environment) as service:
            service.wait_until_ready()
            sign_up(service)
            with run_worker(tmp_path, **environment) as worker:

                async def hangs() -> bool:
                    return server.tried > 0

                await until(hangs)
                worker.kill()
        server.becomes("well")
        await end_leases(database)

        with run_worker(tmp_path, **environment):
            await until_all_are_sent(database)

    assert server.recipients == ["ana@example.com"]


async def test_a_stop_lets_through_what_is_being_sent(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    with MailServer() as server, run_service(tmp_path, **wiring(database_url, server)) as service:
        service.wait_until_ready()
        server.becomes("slow")
        sign_up(service)
        await until_it_has(server, 1)

        service.process.send_signal(signal.SIGTERM)
        service.process.wait(8)

        assert [email.status for email in await list_emails(database)] == [OutboxStatus.SENT]
        assert "Traceback" not in service.log


async def test_a_stop_gives_back_what_hangs_so_that_another_may_send_it_at_once(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    with MailServer() as server:
        environment = wiring(database_url, server)
        with run_service(tmp_path, **environment) as service:
            service.wait_until_ready()
            server.becomes("takes and hangs")
            sign_up(service)
            await until_it_has(server, 1)

            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(8)

            assert time.monotonic() - began < 5
            assert "Traceback" not in service.log
        [email] = await list_emails(database)
        assert (email.status, email.attempts, email.lease_id) == (OutboxStatus.QUEUED, 0, None)


async def test_a_stop_while_the_server_owes_its_goodbye_repeats_nothing(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    with MailServer() as server, run_service(tmp_path, **wiring(database_url, server)) as service:
        service.wait_until_ready()
        server.becomes("takes and stays silent")
        sign_up(service)
        await until_it_has(server, 1)

        service.process.send_signal(signal.SIGTERM)
        service.process.wait(8)

        assert [email.status for email in await list_emails(database)] == [OutboxStatus.SENT]


def is_listening_to_signals(worker: Running) -> bool:
    """Whether it has come so far that SIGTERM does not simply end it: the other may send all before."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


async def test_two_workers_share_the_emails_and_stop_when_told(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    with MailServer() as server:
        environment = wiring(database_url, server, OUTBOX_IN_APP="false")
        with run_service(tmp_path, **environment) as service:
            service.wait_until_ready()
            for number in range(10):
                sign_up(service, f"u{number}@example.com")
        with run_worker(tmp_path, **environment) as one, run_worker(tmp_path, **environment) as two:
            await until_all_are_sent(database)
            for worker in (one, two):
                wait_until(partial(is_listening_to_signals, worker))
                worker.process.send_signal(signal.SIGTERM)
                assert worker.process.wait(5) == 0

    assert Counter(server.recipients) == {f"u{number}@example.com": 1 for number in range(10)}
    assert one.log == ""


def test_a_worker_without_smtp_says_so(tmp_path: Path) -> None:
    with run_worker(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/users.db") as worker:
        assert worker.process.wait(10) == 1

    assert worker.log == "SMTP is not configured: set SMTP_HOST and SMTP_FROM.\n"


async def test_a_worker_survives_a_database_that_has_no_tables_yet(tmp_path: Path) -> None:
    environment = wiring(f"sqlite:///{tmp_path}/users.db", MailServer())
    with run_worker(tmp_path, **environment) as worker:

        async def complains() -> bool:
            return "The outbox could not be read (OperationalError)" in worker.log

        await until(complains)
        worker.process.send_signal(signal.SIGTERM)

        assert worker.process.wait(5) == 0
        assert "Traceback" not in worker.log


class Canaries:
    """What must never be found at rest, and everything that has been at rest."""

    def __init__(self, database: AsyncDatabaseManager) -> None:
        self.secrets = {PASSWORD, "canary-of-a-new-password", "canary-of-a-wrong-password"}
        self.dumps: list[str] = []
        self._database = database

    async def look(self) -> None:
        async with self._database.session() as session:
            for table in BaseModel.metadata.sorted_tables:
                self.dumps += [repr(row) for row in (await session.execute(table.select())).all()]
        if self._database.is_sqlite:  # deleted rows stay in the file for a while
            path = Path(str(self._database.url.database))
            self.dumps += [
                file.read_bytes().decode("latin-1") for file in path.parent.iterdir() if file.name.startswith(path.name)
            ]

    def leaked(self, log: str) -> set[str]:
        return {secret for secret in {*self.secrets, "token="} if any(secret in each for each in [*self.dumps, log])}


async def test_no_table_and_no_log_holds_a_usable_link_token_or_password_at_any_moment(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    canaries = Canaries(database)
    environment = wiring(database_url, MailServer())
    with (
        MailServer() as server,
        run_service(tmp_path, **environment | {"SMTP_PORT": str(server.port), "LOG_LEVEL": "debug"}) as service,
    ):
        service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.url) as client:
            person = Person(client, server, canaries)
            server.becomes("not now")
            await person.post("/auth/signup", 201, email="ana@example.com", password=PASSWORD)
            await until_it_failed(database, "ana@example.com")
            await canaries.look()
            server.becomes("well")
            await make_due(database)
            await person.post("/auth/activate", 200, token=await person.token())
            await person.post("/auth/login", 401, email="ana@example.com", password="canary-of-a-wrong-password")
            await person.log_in("ana@example.com", PASSWORD)

            await person.post("/auth/email-change/request", 202, new_email="b@example.com", current_password=PASSWORD)
            await person.post("/auth/email-change/confirm", 204, token=await person.token())
            undo = await person.token()
            await client.head("/email-revert", params={"token": undo})
            await person.post("/auth/email-change/revert", 204, token=undo)
            await person.post("/auth/password-reset/request", 202, email="ana@example.com")
            reset = await person.token()
            await client.get("/password-reset", params={"token": reset})
            await person.post("/auth/password-reset/confirm", 204, token=reset, new_password="canary-of-a-new-password")
            await person.token(has_link=False)
            await person.log_in("ana@example.com", "canary-of-a-new-password")
            await person.post("/auth/delete-account", 204, current_password="canary-of-a-new-password")
            await person.token(has_link=False)
        await canaries.look()

        assert len(canaries.secrets) == 3 + 4 + 4  # passwords, links, tokens of two sessions
        assert canaries.leaked(service.log) == set()
        assert "SMTPDataError 451" in service.log


async def test_no_table_no_log_and_no_email_holds_anything_of_a_second_factor(
    database_url: str, database: AsyncDatabaseManager, tmp_path: Path
) -> None:
    canaries = Canaries(database)
    wrong_code = "canary-of-a-wrong-code"
    with (
        MailServer() as server,
        run_service(tmp_path, **wiring(database_url, server), LOG_LEVEL="debug", LOG_FORMAT="json") as service,
    ):
        service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.url) as client:
            person = Person(client, server, canaries)
            await person.post("/auth/signup", 201, email="ana@example.com", password=PASSWORD)
            await person.post("/auth/activate", 200, token=await person.token())
            await person.log_in("ana@example.com", PASSWORD)

            set_up = await person.post("/auth/second-factor", 200, current_password=PASSWORD)
            await person.post("/auth/second-factor/confirm", 403, code=wrong_code)
            first = await person.post("/auth/second-factor/confirm", 200, code=code_of(set_up["secret"]))
            second = await person.post("/auth/second-factor/recovery-codes", 200)
            assert (await client.delete("/auth/second-factor")).status_code == 204
            for _ in range(3):
                await person.token(has_link=False)
        canaries.secrets |= {*set_up.values(), *first["recovery_codes"], *second["recovery_codes"], wrong_code}
        await canaries.look()
        canaries.dumps += [text_of(notice) for notice in server.emails[1:]]

        assert len(canaries.secrets) == 3 + 1 + 2 + 3 + 20 + 1  # passwords, link, tokens, set-up, recovery codes, code
        assert canaries.leaked(service.log) == set()


def text_of(email: EmailMessage) -> str:
    return "".join(part.get_content() for part in email.walk() if not part.is_multipart())


class Person:
    """Does things, reads emails, and looks at what is at rest before anything is used."""

    def __init__(self, client: httpx.AsyncClient, server: MailServer, canaries: Canaries) -> None:
        self._client = client
        self._server = server
        self._canaries = canaries
        self._read = 0

    async def post(self, path: str, status: int, **body: str) -> dict[str, Any]:
        response = await self._client.post(path, json=body)
        assert response.status_code == status, response.text
        await self._canaries.look()
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    async def log_in(self, email: str, password: str) -> None:
        answer = await self.post("/auth/login", 200, email=email, password=password)
        self._canaries.secrets |= {answer["access_token"], answer["refresh_token"]}
        self._client.headers["authorization"] = f"Bearer {answer['access_token']}"

    async def token(self, *, has_link: bool = True) -> str:
        """That of the link in the next email."""
        await until_it_has(self._server, self._read + 1)
        email = self._server.emails[self._read]
        self._read += 1
        await self._canaries.look()
        if not has_link:
            return ""
        token = token_of(link_in(email))
        self._canaries.secrets.add(token)
        return token
