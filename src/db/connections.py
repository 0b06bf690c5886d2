"""How a database is connected to, and what SQLite needs to behave like a server."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, Connection, Dialect, Engine, Executable, FrozenResult, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

BUSY_TIMEOUT_SECONDS = 15  # how long an SQLite writer waits for its turn
MIGRATION_BUSY_TIMEOUT_SECONDS = 1  # before it says that it waits; then it goes on waiting
CONNECT_TIMEOUT_SECONDS = 10
COMMAND_TIMEOUT_SECONDS = 30  # a PostgreSQL that hangs must not hold its callers for ever
DEFAULT_POOL_SIZE = 20
SQLITE_THREADS = 8  # at most: more than one, so that a long search does not keep the short reads waiting

Result = TypeVar("Result")

_MAKES_NO_FILE = re.compile(r"^file::memory:|[?&]mode=(?!rwc)")  # URIs of SQLite
_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgres": "postgresql+asyncpg", "postgresql": "postgresql+asyncpg"}


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


def is_in_memory(url: URL) -> bool:
    """Whether it names an SQLite database that has no file, and lives in one connection."""
    has_no_file = url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    return url.get_backend_name() == "sqlite" and has_no_file


def sqlite_path(database: str) -> Path:
    """Where the file of an SQLite database is, by the name that SQLite gets, which may be a URI."""
    return Path(unquote(urlsplit(database).path) if database.startswith("file:") else database)


@dataclass(frozen=True, slots=True)
class Connections:
    """The open connections of a database, for transactions (`engine`) and for statements in autocommit mode."""

    engine: AsyncEngine
    autocommit: AsyncEngine  # on the same pool
    threads: "SQLiteThreads | None" = None

    @classmethod
    def open(cls, url: URL, *, pool_size: int, echo: bool) -> Self:
        """None is made before it is needed. No error and no log shows parameters: they may be hashes."""
        if url.get_backend_name() != "sqlite":
            autocommit = _create_postgresql_engine(
                url, pool_size=pool_size, echo=echo, command_timeout=COMMAND_TIMEOUT_SECONDS
            )
            return cls(autocommit.execution_options(isolation_level="READ COMMITTED"), autocommit)
        engine = _create_sqlite_engine(url, pool_size=pool_size, echo=echo, busy_timeout=BUSY_TIMEOUT_SECONDS)
        threads = None if is_in_memory(url) else SQLiteThreads(url, echo=echo)
        return cls(engine, engine.execution_options(sqlite_begin=None), threads)

    async def close(self) -> None:
        await self.engine.dispose()
        if self.threads:
            await asyncio.to_thread(self.threads.close)

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


class SQLiteThreads:
    """Threads that each keep a connection in autocommit mode and do a whole statement in one hop. The asynchronous
    driver takes five hops for a read."""

    def __init__(self, url: URL, *, echo: bool) -> None:
        self._engine = _listen_to_sqlite(
            create_engine(
                url.set(drivername="sqlite"),
                echo=echo,
                hide_parameters=True,
                isolation_level="AUTOCOMMIT",
                skip_autocommit_rollback=True,
                pool_reset_on_return=None,
                pool_size=SQLITE_THREADS,
                max_overflow=0,
                connect_args={"timeout": BUSY_TIMEOUT_SECONDS},
                execution_options={"sqlite_begin": None},
            )
        )
        self._local = threading.local()
        self._open: list[Connection] = []
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(SQLITE_THREADS, thread_name_prefix="sqlite")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, work)

    def close(self) -> None:
        """End the threads and their connections, and what still runs on them. The next statement begins new ones."""
        executor, connections = self._executor, self._open
        self._executor, self._open, self._local = None, [], threading.local()
        for connection in connections:
            driver: Any = connection.connection.driver_connection
            driver.interrupt()
        if executor:
            executor.shutdown(cancel_futures=True)
        for connection in connections:
            connection.close()
        self._engine.dispose()

    def _run(self, work: Callable[[Connection], Result]) -> Result:
        local, opened = self._local, self._open  # those of this executor, should it be closed meanwhile
        connection: Connection | None = getattr(local, "connection", None)
        if connection is None:
            connection = local.connection = self._engine.connect()
            opened.append(connection)
        return work(connection)


def create_migration_engine(url: URL) -> AsyncEngine:
    """For one connection that may take its time: building an index of a big table takes longer than any request may."""
    if url.get_backend_name() == "sqlite":
        return _create_sqlite_engine(url, pool_size=1, echo=False, busy_timeout=MIGRATION_BUSY_TIMEOUT_SECONDS)
    engine = _create_postgresql_engine(url, pool_size=1, echo=False, command_timeout=None)
    return engine.execution_options(isolation_level="READ COMMITTED")


def _create_postgresql_engine(url: URL, *, pool_size: int, echo: bool, command_timeout: float | None) -> AsyncEngine:
    engine = create_async_engine(
        url,
        echo=echo,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,  # a connection over the size would be closed after its statement, and opened again for the next
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        connect_args={"timeout": CONNECT_TIMEOUT_SECONDS, "command_timeout": command_timeout},
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
    # The drivers let "connection refused" through as an OSError, which callers could not tell from any other.
    try:
        if dialect.name == "sqlite":
            _check_file(args[0])
        return dialect.connect(*args, **options)
    except (OSError, TimeoutError) as error:
        raise OperationalError("connect", None, error) from error


def _check_file(database: str) -> None:
    """Make the file, and open it once without the async driver: its thread would survive a failed attempt, and complain
    under a traceback when it finds the event loop closed."""
    if database == ":memory:" or _MAKES_NO_FILE.search(database):
        return
    import sqlite3  # loaded only where it is used

    path = sqlite_path(database).resolve()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # It holds hashes. SQLite would let everyone read it, and gives the files beside it the mode of this one.
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
    if not database.startswith("file:"):
        sqlite3.connect(database).close()


def _create_sqlite_engine(url: URL, *, pool_size: int, echo: bool, busy_timeout: float) -> AsyncEngine:
    pool: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0}
    if is_in_memory(url):
        pool = {"poolclass": StaticPool}
    engine = create_async_engine(
        url,
        echo=echo,
        hide_parameters=True,
        connect_args={
            "timeout": busy_timeout,
            "isolation_level": None,  # the driver begins nothing by itself; `_begin_sqlite` does
        },
        **pool,
    )
    logging.getLogger("aiosqlite").setLevel(logging.INFO)  # at DEBUG it logs parameters, and so hashes
    _listen_to_sqlite(engine.sync_engine)
    return engine


def _listen_to_sqlite(engine: Engine) -> Engine:
    event.listen(engine, "do_connect", _connect_or_operational_error)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: DBAPIConnection, _record: object) -> None:
    import sqlite3  # loaded only where it is used

    # SQLite's own knows ASCII alone, so a search for "émile" would not find "Émile" as it does on PostgreSQL.
    connection.create_function("lower", 1, _lower, deterministic=True)
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            # Readers go on while one writes. Two first connections that switch a new file at the same moment collide,
            # and SQLite's own busy timeout does not cover that.
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    cursor.close()


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get("sqlite_begin", "BEGIN")
    # In memory all sessions share one connection, and with it a transaction that another session has open.
    driver = connection.connection.driver_connection
    if begin and driver is not None and not driver.in_transaction:
        connection.exec_driver_sql(begin)
