"""Forgetting what has ended. No request asks for this: it has the database itself."""

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import timedelta

from src.core.settings import Settings
from src.db.base import utc_now
from src.db.database import AsyncDatabaseManager, begin_writing
from src.db.repositories import (
    AuditEventRepository,
    OutboxRepository,
    SessionRepository,
    UserRepository,
    UserTokenRepository,
)
from src.services.outbox import LIMIT_WINDOW

log = logging.getLogger(__name__)

INTERVAL = timedelta(hours=1)
EVENTS_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Purged:
    """How many rows of each kind were deleted."""

    tokens: int
    sessions: int
    sign_ups: int
    mails: int
    events: int


async def purge(database: AsyncDatabaseManager, settings: Settings) -> Purged:
    """Delete expired tokens, ended sessions, sign-ups that no link can activate any more, mails that were sent, and
    events older than AUDIT_RETENTION_SECONDS.

    Each kind has a transaction of its own: one for all would hold tokens while it waits for users, against the order
    in which everybody else takes their locks.
    """
    abandoned_before = utc_now() - timedelta(seconds=settings.auth_activation_ttl_seconds)
    async with database.session() as session:
        await begin_writing(session)
        tokens = await UserTokenRepository(session).delete_expired()
        await session.commit()
        await begin_writing(session)
        sessions = await SessionRepository(session).delete_ended()
        await session.commit()
        await begin_writing(session)
        sign_ups = await UserRepository(session).delete_abandoned(abandoned_before)
        await session.commit()
        await begin_writing(session)
        mails = await OutboxRepository(session).delete_sent(utc_now() - LIMIT_WINDOW)
        await session.commit()
    events = await _delete_old_events(database, settings)
    return Purged(tokens, sessions, sign_ups, mails, events)


async def _delete_old_events(database: AsyncDatabaseManager, settings: Settings) -> int:
    """So many at once, since there may be millions, and others want to write meanwhile. Where the service may only
    insert events, their owner purges: docs/audit-trail.md."""
    than, total = utc_now() - timedelta(seconds=settings.audit_retention_seconds), 0
    while True:
        async with database.session() as session:
            await begin_writing(session)
            events = AuditEventRepository(session)
            count = await events.delete_older(than, limit=EVENTS_AT_ONCE) if await events.may_delete() else 0
            await session.commit()
        total += count
        if count < EVENTS_AT_ONCE:
            return total


async def purge_quietly(database: AsyncDatabaseManager, settings: Settings) -> None:
    """Purge about every hour, until cancelled. Workers drift apart; if two meet, each deletes what the other left."""
    while True:
        await asyncio.sleep(INTERVAL.total_seconds() * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
        try:
            log.info("Purged %s", await purge(database, settings))
        except Exception:
            log.exception("The purge failed, and will be tried again")
