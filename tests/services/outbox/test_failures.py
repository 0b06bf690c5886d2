"""An email that fails is tried again, later and later, and is never lost."""

import asyncio
import logging
from datetime import timedelta

import aiosmtplib
import pytest

from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import OutboxStatus
from src.email import EmailUtils, Message
from src.services.outbox import back_off
from src.services.purge import purge
from tests.support.databases import execute
from tests.support.outbox import (
    OutboxHarness,
    RefusingMailbox,
    in_transaction,
    interrupted,
    list_emails,
    make_dispatcher,
    queue_notices,
)
from tests.support.service import Mailbox, make_settings
from tests.support.smtp_server import MailServer, Mood
from tests.support.steps import activate, sign_up


async def test_an_email_that_fails_waits_for_a_retry_and_tells_the_kind_of_the_error_alone(
    outbox: OutboxHarness, caplog: pytest.LogCaptureFixture
) -> None:
    await sign_up(outbox.service)
    outbox.mailbox.failure = aiosmtplib.SMTPDataError(451, "no room for the mail to ana@example.com")
    before = utc_now()

    with caplog.at_level(logging.INFO):
        await outbox.dispatch()

    [email] = await outbox.list_all()
    assert (email.status, email.attempts, email.lease_id) == (OutboxStatus.QUEUED, 1, None)
    assert email.last_error == "SMTPDataError 451"
    assert timedelta(seconds=2) < email.due_at - before < timedelta(seconds=15)
    assert not await outbox.dispatch()
    assert "SMTPDataError 451" in caplog.text
    for private in ("ana@example.com", "no room", "token="):
        assert private not in caplog.text


async def test_the_retry_sends_it_with_a_link_that_works(outbox: OutboxHarness) -> None:
    await sign_up(outbox.service, name="Ana")
    outbox.mailbox.failure = ConnectionRefusedError("by 127.0.0.1")
    await outbox.dispatch()
    outbox.mailbox.failure = None
    await outbox.change(due_at=utc_now())

    await outbox.dispatch()

    [email] = await outbox.list_all()
    assert (email.status, email.attempts, email.last_error) == (OutboxStatus.SENT, 2, None)
    assert (await activate(outbox.service, outbox.mailbox.token())).status_code == 200


async def test_after_the_last_attempt_it_is_a_dead_letter_that_can_be_queued_again(
    outbox: OutboxHarness, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = make_dispatcher(outbox.database, outbox.mailbox, outbox_max_attempts=2)
    await sign_up(outbox.service)
    outbox.mailbox.failure = aiosmtplib.SMTPSenderRefused(550, "who are you", "accounts@example.com")
    for _ in range(2):
        await outbox.change(due_at=utc_now())
        await dispatcher.dispatch_due()

    [email] = await outbox.list_all()
    assert (email.status, email.attempts, email.last_error) == (OutboxStatus.DEAD, 2, "SMTPSenderRefused 550")
    assert not await dispatcher.dispatch_due()
    assert [record.levelname for record in caplog.records if record.levelno >= logging.ERROR] == ["ERROR"]

    outbox.mailbox.failure = None
    assert await in_transaction(outbox.database, lambda emails: emails.retry(email.id)) == 1
    await dispatcher.dispatch_due()

    assert (await activate(outbox.service, outbox.mailbox.token())).status_code == 200


UNKNOWN = aiosmtplib.SMTPRecipientRefused(550, "no such user", "ana@example.com")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UNKNOWN, "SMTPRecipientRefused 550"),
        (aiosmtplib.SMTPRecipientsRefused([UNKNOWN]), "SMTPRecipientsRefused 550"),
        (aiosmtplib.SMTPDataError(554, "not wanted here"), "SMTPDataError 554"),
    ],
)
async def test_what_is_refused_for_good_is_a_dead_letter_at_once(
    outbox: OutboxHarness, error: Exception, reason: str
) -> None:
    await sign_up(outbox.service)
    outbox.mailbox.failure = error

    await outbox.dispatch()

    [email] = await outbox.list_all()
    assert (email.status, email.attempts, email.last_error) == (OutboxStatus.REFUSED, 1, reason)


@pytest.mark.parametrize(
    ("mood", "status"),
    [
        ("has no such mailbox", OutboxStatus.REFUSED),
        ("never", OutboxStatus.REFUSED),
        ("not now", OutboxStatus.QUEUED),
        ("knows nobody", OutboxStatus.QUEUED),
    ],
)
async def test_what_a_mail_server_says_tells_whether_to_try_again(
    database: AsyncDatabaseManager, mood: Mood, status: OutboxStatus
) -> None:
    await queue_notices(database, 1)

    with MailServer() as server:
        server.becomes(mood)
        carrier = EmailUtils(host="127.0.0.1", port=server.port, sender="accounts@example.com", tls="none")
        await make_dispatcher(database, carrier).dispatch_due()

    assert [email.status for email in await list_emails(database)] == [status]


@pytest.mark.parametrize(
    "error",
    [
        aiosmtplib.SMTPRecipientRefused(451, "come back later", "ana@example.com"),
        aiosmtplib.SMTPRecipientsRefused([aiosmtplib.SMTPRecipientRefused(452, "no room", "ana@example.com")]),
        aiosmtplib.SMTPSenderRefused(550, "who are you", "accounts@example.com"),
        aiosmtplib.SMTPAuthenticationError(535, "wrong password"),
        aiosmtplib.SMTPConnectResponseError(554, "no service"),
        aiosmtplib.SMTPServerDisconnected("gone"),
        OSError("no route"),
        RuntimeError("a carrier of one's own"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_yet_be_taken_is_tried_again(outbox: OutboxHarness, error: Exception) -> None:
    await sign_up(outbox.service)
    outbox.mailbox.failure = error

    await outbox.dispatch()

    [email] = await outbox.list_all()
    assert email.status == OutboxStatus.QUEUED


async def test_a_recipient_who_is_refused_at_every_attempt_is_no_fault_of_ours(outbox: OutboxHarness) -> None:
    dispatcher = make_dispatcher(outbox.database, outbox.mailbox, outbox_max_attempts=1)
    await sign_up(outbox.service)
    outbox.mailbox.failure = aiosmtplib.SMTPRecipientRefused(452, "no room", "ana@example.com")

    await dispatcher.dispatch_due()

    assert [email.status for email in await outbox.list_all()] == [OutboxStatus.REFUSED]


@pytest.mark.parametrize("status", [OutboxStatus.DEAD, OutboxStatus.REFUSED])
async def test_a_dead_letter_is_forgotten_after_a_month(outbox: OutboxHarness, status: OutboxStatus) -> None:
    await sign_up(outbox.service)
    await outbox.change(status=status, updated_at=utc_now() - timedelta(days=29))
    assert (await purge(outbox.database, make_settings())).mails == 0

    await outbox.change(updated_at=utc_now() - timedelta(days=30))

    assert (await purge(outbox.database, make_settings())).mails == 1


@pytest.mark.parametrize(
    ("attempts", "shortest", "longest"),
    [(1, 2.5, 7.5), (2, 5, 15), (3, 10, 30), (11, 1800, 5400), (10_000, 1800, 5400)],
)
def test_the_wait_doubles_from_seconds_to_an_hour_and_is_never_in_step(
    attempts: int, shortest: float, longest: float
) -> None:
    waits = [back_off(attempts).total_seconds() for _ in range(200)]

    assert shortest <= min(waits) < max(waits) <= longest
    assert max(waits) - min(waits) > (longest - shortest) / 2


async def test_one_email_that_fails_does_not_hold_up_the_others(database: AsyncDatabaseManager) -> None:
    await queue_notices(database, 10)
    refused = aiosmtplib.SMTPRecipientRefused(451, "come back later", "u3@example.com")
    mailbox = RefusingMailbox(refused="u3@example.com", error=refused)

    await make_dispatcher(database, mailbox).dispatch_due()

    assert len(mailbox.messages) == 9
    queued = [email.to_email for email in await list_emails(database) if email.status == OutboxStatus.QUEUED]
    assert queued == ["u3@example.com"]


async def test_an_email_whose_fate_cannot_be_written_down_does_not_end_the_others(
    database: AsyncDatabaseManager, database_url: str
) -> None:
    both_are_minted, gate = asyncio.Event(), asyncio.Event()

    class Slow(Mailbox):
        async def send(self, message: Message) -> None:
            if message.to == "u1@example.com":
                both_are_minted.set()
                await gate.wait()
            await both_are_minted.wait()
            await super().send(message)

    await queue_notices(database, 2)
    slow = Slow()
    writes: list[object] = []

    async def make_it_fail() -> None:
        writes.append(None)
        await execute(database, "ALTER TABLE outbox_emails RENAME TO hidden")

    async with interrupted(database_url, before=4, happens=make_it_fail) as failing:
        dispatching = asyncio.create_task(make_dispatcher(failing, slow).dispatch_due())
        try:
            while failing.transactions < 4 or not writes:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # for the failure, which nothing else announces
        finally:
            await execute(database, "ALTER TABLE hidden RENAME TO outbox_emails")
            gate.set()
            await asyncio.wait([dispatching])

    assert [message.to for message in slow.messages] == ["u0@example.com", "u1@example.com"]
    statuses = {email.to_email: email.status for email in await list_emails(database)}
    assert statuses == {"u0@example.com": OutboxStatus.QUEUED, "u1@example.com": OutboxStatus.SENT}
