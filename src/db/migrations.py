"""Bringing a database to the tables that this version needs, and telling whether it has them."""

import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path

from sqlalchemy import Connection, func, inspect, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from src.db.connections import create_migration_engine
from src.db.database import AsyncDatabaseManager, is_transient_database_error

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[2]
_REVISION = re.compile(r"^(revision|down_revision)\b.*= (.+)$", re.MULTILINE)
_ADVISORY_LOCK = 0x75736572  # any number, as long as every instance uses the same
_WAITING = "Another process migrates the database, or holds its lock: waiting for it to finish"


class DatabaseNotReadyError(Exception):
    """The database cannot be worked in as it is. The text says why, and what to do."""


async def prepare(database: AsyncDatabaseManager, *, auto_migrate: bool) -> None:
    """Make sure that the database has what this version needs. SQLite's is migrated by itself, as nobody else looks
    after it; another only with `auto_migrate`.

    Raises `DatabaseNotReadyError`.
    """
    try:
        if database.is_sqlite or auto_migrate:
            await migrate(database)
            await database.connect()  # from here on, no file of SQLite's is made
            return
        async with database.session() as session:
            if await is_current(session):
                return
    except (DBAPIError, TimeoutError) as error:  # asyncpg's own limits raise the latter
        if not is_transient_database_error(error):
            raise
        # A connection that was not made in time has no text.
        reason = str(error.orig if isinstance(error, DBAPIError) else "") or "it does not answer in time"
        raise DatabaseNotReadyError(
            f"The database cannot be opened ({reason}). Check DATABASE_URL; the file and folder of an SQLite "
            "database must be writable for the user that the service runs as."
        ) from None
    raise DatabaseNotReadyError(
        "The database's tables are not those that this version needs: run `python -m src migrate`, "
        "or set DATABASE_AUTO_MIGRATE=true."
    )


def head() -> str:
    """The revision that this version of the code needs: the one that no other comes after."""
    [last] = _revisions().keys() - _revisions().values()
    return last


async def is_current(session: AsyncSession) -> bool:
    """Whether the database of this session has what this version needs: it is at `head()`, or at a revision that a
    later version has brought it to, as when instances are replaced one by one.

    Raises SQLAlchemy's errors if it does not answer.
    """
    revision = await find_revision(session)
    return revision is not None and (revision == head() or revision not in _revisions())


async def find_revision(session: AsyncSession) -> str | None:
    """The revision that the database of this session is at; `None` if no migration has ever reached it."""
    return await session.run_sync(lambda sync: _revision(sync.connection()))


@lru_cache
def _revisions() -> Mapping[str, str]:
    """Each revision, and the one before it ("None" before the first). Read from the files: loading Alembic takes 11 MiB
    and a tenth of a second, and at most starts there is nothing to migrate."""
    texts = (path.read_text("utf-8") for path in (_ROOT / "alembic" / "versions").glob("*.py"))
    found = [dict(_REVISION.findall(text)) for text in texts]
    return {each["revision"].strip('"'): each["down_revision"].strip('"') for each in found}


async def migrate(database: AsyncDatabaseManager) -> None:
    """Bring the database to `head()`. Processes that start together do it one after the other."""
    async with migrating_connection(database) as connection:
        await connection.run_sync(_upgrade)


@asynccontextmanager
async def migrating_connection(database: AsyncDatabaseManager) -> AsyncGenerator[AsyncConnection, None]:
    """A connection of its own, without the limits of time that requests have, in a transaction that only one process
    has at a time, committed at the end. Others wait as long as it takes.

    Raises `DatabaseNotReadyError` for a database in memory, which no second connection reaches.
    """
    if database.is_in_memory:
        raise DatabaseNotReadyError("DATABASE_URL names a database in memory, which is for tests: name a file.")
    engine = create_migration_engine(database.url)
    try:
        async with engine.connect() as connection:
            await (_begin_sqlite(connection) if database.is_sqlite else _begin_postgresql(connection))
            yield connection
            await connection.commit()
    finally:
        await engine.dispose()


async def _begin_postgresql(connection: AsyncConnection) -> None:
    if not await connection.scalar(select(func.pg_try_advisory_xact_lock(_ADVISORY_LOCK))):
        log.warning(_WAITING)
        await connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))


async def _begin_sqlite(connection: AsyncConnection) -> None:
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None  # noqa: S101 - a fresh connection has its driver's
    # SQLite changes a table by building it anew and dropping the old one. With foreign keys on, the drop deletes what
    # refers to the old rows; and inside a transaction the switch does nothing.
    await driver.execute("PRAGMA foreign_keys=OFF")
    _ = await connection.execution_options(sqlite_begin="BEGIN IMMEDIATE")
    while not connection.in_transaction():
        try:
            _ = await connection.begin()
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", None) != "SQLITE_BUSY":
                raise
            log.warning(_WAITING)


def _upgrade(connection: Connection) -> None:
    revision = _revision(connection)
    if revision is not None and revision not in _revisions():
        log.warning("The database is at %s, which a later version of the service has made: left as it is", revision)
        return
    if revision == head():
        return
    from alembic import command
    from alembic.config import Config

    config = Config(_ROOT / "alembic.ini")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision
