"""A dispatcher that is stopped finishes what it can, and gives back the rest."""

import asyncio

import pytest

from src.db import AsyncDatabaseManager
from src.db.models import OutboxStatus
from src.email import Message
from tests.support.outbox import claim, interrupted, list_emails, make_dispatcher, queue_notices
from tests.support.service import Mailbox


class SlowMailbox(Mailbox):
    """Says when somebody begins to send, and takes nothing until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.gate = asyncio.Event(), asyncio.Event()

    async def send(self, message: Message) -> None:
        self.has_begun.set()
        await self.gate.wait()
        await super().send(message)


async def test_an_email_that_is_being_sent_gets_through(database: AsyncDatabaseManager) -> None:
    await queue_notices(database, 1)
    mailbox = SlowMailbox()
    dispatcher = make_dispatcher(database, mailbox)
    running = asyncio.create_task(dispatcher.run())
    await mailbox.has_begun.wait()

    finishing = asyncio.create_task(dispatcher.finish(running))
    asyncio.get_running_loop().call_later(0.2, mailbox.gate.set)
    await finishing

    assert len(mailbox.messages) == 1
    assert [email.status for email in await list_emails(database)] == [OutboxStatus.SENT]


@pytest.mark.slow
async def test_emails_that_do_not_get_through_are_given_back_at_once(database: AsyncDatabaseManager) -> None:
    await queue_notices(database, 3)
    mailbox = SlowMailbox()
    dispatcher = make_dispatcher(database, mailbox)
    running = asyncio.create_task(dispatcher.run())
    await mailbox.has_begun.wait()

    await dispatcher.finish(running)

    states = {(email.status, email.attempts, email.lease_id) for email in await list_emails(database)}
    assert states == {(OutboxStatus.QUEUED, 0, None)}
    assert len(await claim(database)) == 3


async def test_a_stop_between_sending_and_marking_marks_it_all_the_same(
    database: AsyncDatabaseManager, database_url: str
) -> None:
    await queue_notices(database, 1)
    mailbox = Mailbox()

    async def stop() -> None:
        assert len(mailbox.messages) == 1
        dispatching.cancel()

    async with interrupted(database_url, before=3, happens=stop) as stopped:
        dispatching = asyncio.create_task(make_dispatcher(stopped, mailbox).dispatch_due())
        with pytest.raises(asyncio.CancelledError):
            await dispatching

    assert [email.status for email in await list_emails(database)] == [OutboxStatus.SENT]
