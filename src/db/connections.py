"""How a database is connected to."""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import URL, Connection, Dialect, Executable, FrozenResult, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from src.core.settings import Settings
from src.db.sqlite import SQLiteFile, SQLiteThreads, create_sqlite_engine, is_in_memory

MIGRATION_BUSY_TIMEOUT_SECONDS = 1  # before it says that it waits; then it goes on waiting
CONNECT_TIMEOUT_SECONDS = 5
DEFAULT_POOL_SIZE = 20

_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg"}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long whoever needs the database waits before the answer is 503, in seconds."""

    pool: float = 10  # for a connection
    lock: float = 10  # of SQLite: half of it for the writers of this process, half for those of others
    statement: float = 10  # for a statement, and on PostgreSQL for the locks that it needs

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            settings.database_pool_timeout_seconds,
            settings.database_lock_timeout_seconds,
            settings.database_statement_timeout_seconds,
        )


def normalize_url(url: str | URL) -> URL:
    """The URL with its async driver, and libpq's `sslmode=` as asyncpg names it."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # their texts quote pieces of the URL, and so of the password
        raise ValueError("DATABASE_URL cannot be read: percent-encode what is special in its password") from None
    parsed = parsed.set(drivername=_ASYNC_DRIVERS.get(parsed.drivername, parsed.drivername))
    if "sslmode" in parsed.query:
        ssl = parsed.query["sslmode"]
        parsed = parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": ssl})
    return parsed


@dataclass(frozen=True, slots=True)
class Connections:
    """The open connections of a database, for transactions (`engine`) and for statements in autocommit mode."""

    engine: AsyncEngine
    autocommit: AsyncEngine  # on the same pool
    threads: SQLiteThreads | None = None
    file: SQLiteFile | None = None

    @classmethod
    def open(cls, url: URL, *, pool_size: int, timeouts: Timeouts, echo: bool) -> Self:
        """None is made before it is needed. No error and no log shows parameters: they may be hashes."""
        if url.get_backend_name() != "sqlite":
            autocommit = _create_postgresql_engine(url, pool_size=pool_size, timeouts=timeouts, echo=echo)
            return cls(autocommit.execution_options(isolation_level="READ COMMITTED"), autocommit)
        file, busy_timeout = SQLiteFile(url), timeouts.lock / 2
        engine = create_sqlite_engine(
            url, file, pool_size=pool_size, pool_timeout=timeouts.pool, busy_timeout=busy_timeout, echo=echo
        )
        threads = None
        if not is_in_memory(url):
            threads = SQLiteThreads(
                url, file, busy_timeout=busy_timeout, statement_timeout=timeouts.statement, echo=echo
            )
        return cls(engine, engine.execution_options(sqlite_begin=None), threads, file)

    async def close(self) -> None:
        await self.engine.dispose()
        if self.threads:
            await asyncio.to_thread(self.threads.close)
        if self.file:
            self.file.forget()

    async def execute(self, session: AsyncSession, statement: Executable, params: Any) -> FrozenResult[Any]:
        """Do a statement in autocommit mode. A connection that turns out to be lost is replaced and the statement done
        again, once, so that nobody notices that PostgreSQL was restarted: what stands alone may be repeated."""
        if self.threads:
            return await self.threads.run(lambda connection: execute(connection, statement, params))
        return await session.run_sync(lambda _session: self._execute(statement, params))

    def _execute(self, statement: Executable, params: Any, *, is_repeated: bool = False) -> FrozenResult[Any]:
        try:
            with self.autocommit.sync_engine.connect() as connection:
                return execute(connection, statement, params)
        except DBAPIError as error:
            if is_repeated or not error.connection_invalidated:
                raise
            return self._execute(statement, params, is_repeated=True)


def execute(connection: Connection, statement: Executable, params: Any) -> FrozenResult[Any]:
    """All that the statement brings, entities detached. One that `is_plain` brings columns, and needs no ORM."""
    if statement.get_execution_options().get("is_plain"):
        return connection.execute(statement, params).freeze()
    with Session(connection, expire_on_commit=False) as session:
        return session.execute(statement, params).freeze()


def create_migration_engine(url: URL) -> AsyncEngine:
    """For one connection that may take its time: building an index of a big table takes longer than any request may."""
    if url.get_backend_name() == "sqlite":
        timeout = MIGRATION_BUSY_TIMEOUT_SECONDS
        return create_sqlite_engine(url, SQLiteFile(url), pool_size=1, pool_timeout=0, busy_timeout=timeout, echo=False)
    engine = _create_postgresql_engine(url, pool_size=1, timeouts=None, echo=False)
    return engine.execution_options(isolation_level="READ COMMITTED")


def _create_postgresql_engine(url: URL, *, pool_size: int, timeouts: Timeouts | None, echo: bool) -> AsyncEngine:
    engine = create_async_engine(
        url,
        echo=echo,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,  # a connection over the size would be closed after its statement, and opened again for the next
        pool_timeout=timeouts.pool if timeouts else 0,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": timeouts.statement if timeouts else None,
        },
    )
    event.listen(engine.sync_engine, "do_connect", _connect_or_operational_error)
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def _refuse_closed(connection: DBAPIConnection, _record: object, _proxy: object) -> None:
    # A restarted PostgreSQL closes its connections, which is seen here without asking it; the pool opens another.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _connect_or_operational_error(
    dialect: Dialect, _record: object, args: list[Any], options: dict[str, Any]
) -> DBAPIConnection:
    # The driver lets "connection refused" through as an OSError, which callers could not tell from any other.
    try:
        return dialect.connect(*args, **options)
    except (OSError, TimeoutError) as error:
        raise OperationalError("connect", None, error) from error
