"""Forgetting what has ended. No request asks for this: it has the database itself."""

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from src.core.settings import Settings
from src.db.base import utc_now
from src.db.database import AsyncDatabaseManager
from src.db.unit_of_work import UnitOfWork, open_unit_of_work
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
    mails: int  # named so in the output of `purge --json`
    events: int


async def purge(database: AsyncDatabaseManager, settings: Settings) -> Purged:
    """Delete expired tokens, ended sessions, sign-ups that no link can activate any more, emails that were sent, and
    events older than AUDIT_RETENTION_SECONDS.

    Each kind has a transaction of its own: one for all would hold tokens while it waits for users, against the order
    in which everybody else takes their locks.
    """
    now = utc_now()
    abandoned_before = now - timedelta(seconds=settings.auth_activation_ttl_seconds)
    events_before = now - timedelta(seconds=settings.audit_retention_seconds)
    async with open_unit_of_work(database) as uow:
        counts = dict[str, int]()
        for kind, delete in (
            ("tokens", uow.tokens.delete_expired),
            ("sessions", uow.sessions.delete_ended),
            ("sign_ups", partial(uow.users.delete_abandoned, abandoned_before)),
            ("mails", partial(uow.emails.delete_sent, now - LIMIT_WINDOW)),
        ):
            await uow.begin()
            counts[kind] = await delete()
            await uow.commit()
        return Purged(**counts, events=await _delete_old_events(uow, events_before))


async def _delete_old_events(uow: UnitOfWork, cutoff: datetime) -> int:
    """So many at once, since there may be millions, and others want to write meanwhile. Where the service may only
    insert events, their owner purges: docs/audit-trail.md."""
    total = 0
    while await uow.events.may_delete():
        await uow.begin()
        deleted = await uow.events.delete_before(cutoff, limit=EVENTS_AT_ONCE)
        await uow.commit()
        total += deleted
        if deleted < EVENTS_AT_ONCE:
            break
    return total


async def purge_quietly(database: AsyncDatabaseManager, settings: Settings) -> None:
    """Purge about every hour, until cancelled. Workers drift apart; if two meet, each deletes what the other left."""
    while True:
        await asyncio.sleep(INTERVAL.total_seconds() * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
        try:
            log.info("Purged %s", await purge(database, settings))
        except Exception:
            log.exception("The purge failed, and will be tried again")
