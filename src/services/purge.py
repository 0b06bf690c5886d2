"""Forgetting what has ended. No request asks for this: it has the database itself."""

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from src.core.settings import Settings
from src.db.base import utc_now
from src.db.database import AsyncDatabaseManager
from src.db.repositories import BaseRepository, Condition
from src.db.unit_of_work import UnitOfWork, open_unit_of_work
from src.services.second_factor import SET_UP_LIFETIME
from src.services.sessions import PLACE_KNOWN_FOR

log = logging.getLogger(__name__)

INTERVAL = timedelta(hours=1)
SETTLED_EMAILS_KEPT = timedelta(hours=1)
DEAD_LETTERS_KEPT = timedelta(days=30)  # for an operator to see; they hold addresses, of people who may have left too
FOUND_AT_ONCE = 5_000
BATCH = 500  # a sign-up, with all that refers to it, takes SQLite some 40 microseconds
PAUSE_SECONDS = 0.01  # another process that waits for SQLite's file only tries now and then


@dataclass(frozen=True, slots=True)
class Purged:
    """How many rows of each kind were deleted."""

    tokens: int = 0
    sessions: int = 0
    sign_ups: int = 0
    mails: int = 0  # named so in the output of `purge --json`
    events: int = 0


async def purge(database: AsyncDatabaseManager, settings: Settings) -> Purged:
    """Delete expired tokens, sessions that ended some time ago, sign-ups that no link can activate any more, emails
    that were sent or dropped, old dead letters, events older than AUDIT_RETENTION_SECONDS, set-ups of second
    factors that were never confirmed, and limits that nobody is near."""
    now = utc_now()
    abandoned_before = now - timedelta(seconds=settings.auth_activation_ttl_seconds)
    events_before = now - timedelta(seconds=settings.audit_retention_seconds)
    async with open_unit_of_work(database) as uow:
        emails = uow.emails.obsolete(settled_before=now - SETTLED_EMAILS_KEPT, dead_before=now - DEAD_LETTERS_KEPT)
        purged = Purged(
            tokens=await _purge(uow, uow.tokens, uow.tokens.expired()),
            sessions=await _purge(uow, uow.sessions, uow.sessions.ended(unused_since=now - PLACE_KNOWN_FOR)),
            sign_ups=await _purge(uow, uow.users, uow.users.abandoned(abandoned_before)),
            mails=await _purge(uow, uow.emails, emails),
            # Where the service may only insert events, their owner purges: docs/audit-trail.md.
            events=await _purge(uow, uow.events, uow.events.older_than(events_before))
            if await uow.events.may_delete()
            else 0,
        )
        await _purge(uow, uow.second_factors, uow.second_factors.abandoned(now - SET_UP_LIFETIME))
        await _purge_limits(uow)
        return purged


async def _purge(uow: UnitOfWork, rows: BaseRepository[Any], condition: Condition) -> int:
    """Delete the rows for which the condition holds; how many they were.

    Each batch is a transaction of its own, so that others write between two: there may be millions. What to delete is
    looked for before, where a long search keeps no writer waiting, and for many batches at once, since it may read the
    whole table.
    """
    total = 0
    while ids := await rows.find_ids(condition, limit=FOUND_AT_ONCE):
        deleted = 0
        for start in range(0, len(ids), BATCH):
            await uow.begin()
            deleted += await rows.purge(ids[start : start + BATCH], condition)
            await uow.commit()
            await asyncio.sleep(PAUSE_SECONDS)
        total += deleted
        if deleted == 0 or len(ids) < FOUND_AT_ONCE:  # what is left is locked, and waits for the next time
            break
    return total


async def _purge_limits(uow: UnitOfWork) -> None:
    """As `_purge`, by the clock of the database. What goes means nothing any more, and is not told."""
    deleted = BATCH
    while deleted == BATCH:
        await uow.begin()
        deleted = await uow.limits.delete_unused(limit=BATCH)
        await uow.commit()
        await asyncio.sleep(PAUSE_SECONDS)


async def purge_quietly(database: AsyncDatabaseManager, settings: Settings) -> None:
    """Purge about every hour, until cancelled. Workers drift apart; if two meet, each deletes what the other left."""
    while True:
        await asyncio.sleep(INTERVAL.total_seconds() * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
        try:
            log.info("Purged %s", await purge(database, settings))
        except Exception:
            log.exception("The purge failed, and will be tried again")
