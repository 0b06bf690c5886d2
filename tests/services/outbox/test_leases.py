"""Whoever claims an email has it alone, until its lease ends."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import OutboxEmailModel, OutboxStatus, UserModel
from src.db.repositories import OutboxRepository
from src.email import EmailUtils
from tests.support.databases import connected, writing
from tests.support.outbox import (
    OutboxHarness,
    change_emails,
    claim,
    in_transaction,
    interrupted,
    list_emails,
    make_dispatcher,
    queue_notices,
)
from tests.support.service import Mailbox
from tests.support.smtp_server import MailServer
from tests.support.steps import sign_up


async def end_leases(database: AsyncDatabaseManager) -> None:
    await change_emails(database, leased_until=utc_now() - timedelta(seconds=1))


async def test_a_claimed_email_is_not_claimed_again_until_its_lease_ends(database: AsyncDatabaseManager) -> None:
    await queue_notices(database, 1)
    [first] = await claim(database)

    assert await claim(database) == []

    await end_leases(database)
    [second] = await claim(database)
    assert second.id == first.id
    assert second.lease_id != first.lease_id
    assert second.attempts == 2


async def test_claims_at_once_share_the_emails(database: AsyncDatabaseManager) -> None:
    await queue_notices(database, 40)

    claims = await asyncio.gather(*(claim(database, 10) for _ in range(8)))

    ids = [email.id for each in claims for email in each]
    assert len(ids) == len(set(ids))
    assert sum(len(each) for each in [*claims, await claim(database, 40)]) == 40


async def test_an_email_that_is_not_due_yet_is_not_claimed(database: AsyncDatabaseManager) -> None:
    await queue_notices(database, 1)
    await change_emails(database, due_at=utc_now() + timedelta(seconds=30))

    assert await claim(database) == []


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(lambda emails, email: emails.mark_sent(email), id="mark_sent"),
        pytest.param(lambda emails, email: emails.retry_at(email, utc_now(), error="late"), id="retry_at"),
        pytest.param(lambda emails, email: emails.give_up(email, error="late", is_refused=True), id="give_up"),
        pytest.param(lambda emails, email: emails.release(email), id="release"),
        pytest.param(lambda emails, email: emails.drop(email), id="drop"),
    ],
)
async def test_who_has_lost_the_lease_changes_nothing(
    database: AsyncDatabaseManager, late: Callable[[OutboxRepository, OutboxEmailModel], Awaitable[None]]
) -> None:
    await queue_notices(database, 1)
    [mine] = await claim(database)
    await end_leases(database)
    [theirs] = await claim(database)

    await in_transaction(database, lambda emails: late(emails, mine))

    [email] = await list_emails(database)
    for column in ("status", "attempts", "lease_id", "leased_until", "due_at", "last_error", "content"):
        assert getattr(email, column) == getattr(theirs, column)


async def test_an_email_that_another_has_claimed_meanwhile_is_not_sent(outbox: OutboxHarness) -> None:
    await sign_up(outbox.service)

    async def lose_the_lease() -> None:
        await end_leases(outbox.database)
        assert len(await claim(outbox.database)) == 1

    async with interrupted(outbox.database_url, before=2, happens=lose_the_lease) as late:
        await make_dispatcher(late, outbox.mailbox).dispatch_due()

    assert outbox.mailbox.messages == []
    assert await outbox.count_tokens() == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_the_time_that_a_link_is_waited_for_counts_so_that_the_lease_outlasts_the_attempt(
    outbox: OutboxHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.services.outbox.ATTEMPT_SECONDS", 0.1)
    await sign_up(outbox.service)

    async with writing(outbox.database) as holding, asyncio.timeout(10):
        await holding.execute(select(UserModel.id).with_for_update())
        await outbox.dispatch()

    [email] = await outbox.list_all()
    assert (email.status, email.attempts, email.last_error) == (OutboxStatus.QUEUED, 1, "TimeoutError")
    assert outbox.mailbox.messages == []


async def drain(database_url: str, carrier: Any) -> None:
    async with connected(database_url) as database:
        dispatcher = make_dispatcher(database, carrier)
        while await dispatcher.dispatch_due():
            pass


class TestManyAtOnce:
    @pytest.mark.slow
    async def test_two_dispatchers_send_five_hundred_emails_once_each(
        self, database: AsyncDatabaseManager, database_url: str
    ) -> None:
        await queue_notices(database, 500)
        mailbox = Mailbox()

        await asyncio.gather(drain(database_url, mailbox), drain(database_url, mailbox))

        assert Counter(message.to for message in mailbox.messages) == {f"u{n}@example.com": 1 for n in range(500)}
        assert Counter(email.status for email in await list_emails(database)) == {OutboxStatus.SENT: 500}

    @pytest.mark.slow
    async def test_two_dispatchers_send_five_hundred_emails_once_each_by_smtp(
        self, database: AsyncDatabaseManager, database_url: str
    ) -> None:
        await queue_notices(database, 500)

        with MailServer() as server:
            carrier = EmailUtils(host="127.0.0.1", port=server.port, sender="accounts@example.com", tls="none")
            await asyncio.gather(drain(database_url, carrier), drain(database_url, carrier))

        assert Counter(str(email["To"]) for email in server.emails) == {f"u{n}@example.com": 1 for n in range(500)}
        assert len({email["Message-ID"] for email in server.emails}) == 500
