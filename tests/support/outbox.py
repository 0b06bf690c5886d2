"""The outbox: what waits in it, and what happens to it meanwhile."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import select, update

from src.db import AsyncDatabaseManager
from src.db.database import DatabaseSession
from src.db.models import OutboxEmailModel, OutboxStatus, UserTokenModel
from src.db.repositories import OutboxRepository
from src.db.unit_of_work import UnitOfWork
from src.email import EmailKind, Message
from src.services.outbox import Dispatcher, Outbox
from tests.support.databases import add_rows, execute, writing
from tests.support.factories import make_user
from tests.support.service import Mailbox, MailingService, Service, make_settings

LEASE = timedelta(seconds=60)

Result = TypeVar("Result")


def make_dispatcher(database: AsyncDatabaseManager, carrier: Any, **settings: Any) -> Dispatcher:
    return Dispatcher(database, carrier, make_settings(**settings))


def make_outbox(uow: UnitOfWork) -> Outbox:
    return Outbox(uow, is_wired=True, wake=lambda: None)


async def list_emails(database: AsyncDatabaseManager) -> list[OutboxEmailModel]:
    """The oldest first."""
    async with database.session() as session:
        return list(await OutboxRepository(session).list(limit=1000))


async def change_emails(database: AsyncDatabaseManager, **values: Any) -> None:
    await execute(database, update(OutboxEmailModel).values(values))


async def add_email(
    database: AsyncDatabaseManager, to_email: str, status: OutboxStatus, attempts: int
) -> OutboxEmailModel:
    email = OutboxEmailModel(
        kind=EmailKind.ACCOUNT_DELETED,
        to_email=to_email,
        content={"when": "canary-of-the-content", "where": None},
        status=status,
        attempts=attempts,
        last_error="SMTPDataError 554" if attempts else None,
    )
    await add_rows(database, email)
    return email


async def queue_notices(database: AsyncDatabaseManager, count: int) -> None:
    """Emails to as many addresses about one account."""
    async with database.session() as session:
        user = make_user()
        session.add(user)
        await session.flush()
        session.add_all(
            OutboxEmailModel(
                kind=EmailKind.PASSWORD_CHANGED,
                to_email=f"u{number}@example.com",
                user_id=user.id,
                content={"when": "now", "where": None},
            )
            for number in range(count)
        )
        await session.commit()


async def claim(database: AsyncDatabaseManager, limit: int = 10) -> Sequence[OutboxEmailModel]:
    return await in_transaction(database, lambda emails: emails.claim(limit=limit, lease=LEASE))


async def in_transaction(
    database: AsyncDatabaseManager, work: Callable[[OutboxRepository], Awaitable[Result]]
) -> Result:
    async with writing(database) as session:
        return await work(OutboxRepository(session))


@asynccontextmanager
async def hidden_outbox(database: AsyncDatabaseManager) -> AsyncGenerator[None, None]:
    """Meanwhile whoever needs the outbox fails."""
    await execute(database, "ALTER TABLE outbox_emails RENAME TO hidden")
    try:
        yield
    finally:
        await execute(database, "ALTER TABLE hidden RENAME TO outbox_emails")


class InterruptedDatabase(AsyncDatabaseManager):
    """The real database, where something else happens just before one of the transactions.

    An email takes three: it is claimed, its message is made, and what became of it is written down.
    """

    def __init__(self, url: str, *, before: int, happens: Callable[[], Awaitable[object]]) -> None:
        super().__init__(url)
        self.transactions = 0
        self._before = before
        self._happens = happens

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[DatabaseSession, None]:
        self.transactions += 1
        if self.transactions == self._before:
            await self._happens()
        async with super().session() as session:
            yield session


@asynccontextmanager
async def interrupted(
    url: str, *, before: int, happens: Callable[[], Awaitable[object]]
) -> AsyncGenerator[InterruptedDatabase, None]:
    database = InterruptedDatabase(url, before=before, happens=happens)
    try:
        yield database
    finally:
        await database.disconnect()


@dataclass
class RefusingMailbox(Mailbox):
    """A mailbox that takes emails to anyone but one."""

    refused: str = ""
    error: Exception = field(default_factory=OSError)

    async def send(self, message: Message) -> None:
        if message.to == self.refused:
            raise self.error
        await super().send(message)


@dataclass
class OutboxHarness:
    """A service whose emails wait until the test dispatches them, and what the test needs to look at them.

    `links` is the same service without emails: its links are in its answers, so that accounts are made without any.
    """

    service: MailingService
    links: Service
    database: AsyncDatabaseManager
    database_url: str

    @property
    def mailbox(self) -> Mailbox:
        return self.service.mailbox

    async def dispatch(self) -> bool:
        """Send what is due; whether there was anything."""
        return await self.service.dispatcher.dispatch_due()

    async def drain(self) -> None:
        while await self.dispatch():
            pass

    async def list_all(self) -> list[OutboxEmailModel]:
        return await list_emails(self.database)

    async def list_queued(self) -> list[OutboxEmailModel]:
        return [email for email in await self.list_all() if email.status == OutboxStatus.QUEUED]

    async def change(self, **values: Any) -> None:
        await change_emails(self.database, **values)

    async def count_tokens(self) -> int:
        async with self.database.session() as session:
            return len((await session.scalars(select(UserTokenModel.id))).all())
