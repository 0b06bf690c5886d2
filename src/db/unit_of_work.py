"""One transaction, and the repositories that work in it. docs/decisions/0007 tells why it has this shape."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.exceptions import ServiceUnavailableException
from src.core.hash_pool import never_disconnected
from src.db.database import AsyncDatabaseManager, DatabaseSession
from src.db.repositories import (
    AuditEventRepository,
    OutboxRepository,
    RateLimitRepository,
    SecondFactorRepository,
    ServiceClientRepository,
    SessionRepository,
    UserRepository,
    UserTokenRepository,
)


class UnitOfWork:
    """Before `begin()`, a read is a statement of its own: neither a transaction nor a connection is held afterwards,
    while a password is hashed or an email is sent. What it has brought is not tracked.

    From `begin()` to `commit()`, reads and writes are one transaction. Leaving without `commit()` discards it.
    """

    def __init__(
        self, session: AsyncSession, is_disconnected: Callable[[], Awaitable[bool]] = never_disconnected
    ) -> None:
        if not isinstance(session, DatabaseSession):
            raise TypeError("session_dependency must yield a session of an AsyncDatabaseManager")
        session.is_autocommit = True
        self._session = session
        self.is_disconnected = is_disconnected  # whether whoever asks has gone
        self.users = UserRepository(session)
        self.tokens = UserTokenRepository(session)
        self.second_factors = SecondFactorRepository(session)
        self.sessions = SessionRepository(session)
        self.emails = OutboxRepository(session)
        self.clients = ServiceClientRepository(session)
        self.events = AuditEventRepository(session)
        self.limits = RateLimitRepository(session)

    async def begin(self) -> None:
        """Open the transaction. Raises `ServiceUnavailableException` if whoever asks has gone while it waited for its
        turn: it would be done for nobody. Raises SQLAlchemy's `InvalidRequestError` if one is open."""
        await self._session.begin_transaction()
        if await self.is_disconnected():
            await self._session.rollback()
            raise ServiceUnavailableException

    async def commit(self) -> None:
        await self._session.commit()

    async def rollback(self) -> None:
        """Discard the transaction, if one is open."""
        await self._session.rollback()


@asynccontextmanager
async def open_unit_of_work(database: AsyncDatabaseManager) -> AsyncGenerator[UnitOfWork, None]:
    """For what is no request: the dispatcher, the purge, the command line."""
    async with database.session() as session:
        yield UnitOfWork(session)
