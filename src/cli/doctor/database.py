"""The database: whether it answers, and with which tables; and the emails that wait in it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from src.cli.doctor.findings import Finding, check_modes, open_session, try_to_write
from src.core.settings import Settings
from src.db.base import utc_now
from src.db.connections import CONNECT_TIMEOUT_SECONDS
from src.db.database import AsyncDatabaseManager
from src.db.migrations import find_revision, head, is_current
from src.db.repositories import OutboxRepository
from src.db.sqlite import sqlite_path
from src.services.outbox import STUCK_AFTER


async def check_database(settings: Settings) -> Sequence[Finding]:
    try:
        database = AsyncDatabaseManager.from_settings(settings)
    except ValueError as error:
        return [_no_database(f"{error}.", "Correct DATABASE_URL.")]
    if database.is_in_memory:
        return [_no_database("It is in memory, which is for tests.", "Name a file in DATABASE_URL.")]
    if database.is_sqlite and (finding := _check_file(_path(database))):
        return [finding]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            await database.connect()
    except (DBAPIError, TimeoutError) as error:
        why = str(getattr(error, "orig", "")) or f"within {CONNECT_TIMEOUT_SECONDS} seconds"
        return [_no_database(f"It does not answer ({why}).", "Check DATABASE_URL, and that the database runs.")]
    finally:
        await database.disconnect()
    # Not the whole URL: a password may be in its query as well.
    kind = "SQLite" if database.is_sqlite else "PostgreSQL"
    answers = Finding("database", "ok", f"{kind} answers: {database.url.database}.")
    return [answers, *check_modes("database", database.files)]


def _path(database: AsyncDatabaseManager) -> Path:
    return sqlite_path(database.url.database or "")


def _no_database(text: str, advice: str) -> Finding:
    return Finding("database", "problem", text, advice, blocks="the database does not answer")


def _check_file(path: Path) -> Finding | None:
    try:
        try_to_write(path)
        if path.exists():
            return None
    except OSError as error:
        return _no_database(
            f"{path} cannot be written ({error.strerror}).",
            "The file and its folder must be writable for the user that the service runs as; be that user here too.",
        )
    advice = "The first start makes it."
    return Finding("database", "warning", f"There is no {path} yet.", advice, blocks="there is no database yet")


async def check_schema(settings: Settings) -> Sequence[Finding]:
    async with open_session(settings) as session:
        revision, is_enough = await find_revision(session), await is_current(session)
    if revision == head():
        return [Finding("schema", "ok", f"The tables are those of this version ({revision}).")]
    if is_enough:
        text = f"The tables are those of a later version ({revision})."
        return [Finding("schema", "warning", text, "That is well while instances are replaced one by one.")]
    text = f"The tables are those of {revision}; this version needs {head()}." if revision else "There are no tables."
    blocks = "the tables are not those that are needed"
    if settings.database_auto_migrate or settings.database_url.startswith("sqlite"):
        return [Finding("schema", "warning", text, "The next start of the service migrates them.", blocks)]
    return [Finding("schema", "problem", text, "Run `python -m src migrate`.", blocks)]


async def check_outbox(settings: Settings) -> Sequence[Finding]:
    async with open_session(settings) as session:
        stuck = await OutboxRepository(session).count_stuck(utc_now() - STUCK_AFTER)
    if stuck:
        advice = "See why with `python -m src outbox list`; dead letters are queued again with `outbox retry`."
        return [Finding("outbox", "warning", f"Emails that are dead letters or do not get out: {stuck}.", advice)]
    return [Finding("outbox", "ok", "No email is stuck.")]
