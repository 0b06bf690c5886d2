"""One database: its engine, its sessions, and what SQLite needs to behave like a server.

Few others know which database it is: the migrations, and whoever prepares one at the start.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Dialect, MetaData, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from src.db.base import BaseModel

log = logging.getLogger(__name__)

BUSY_TIMEOUT_SECONDS = 15  # how long an SQLite writer waits for its turn
CONNECT_TIMEOUT_SECONDS = 10
COMMAND_TIMEOUT_SECONDS = 30  # a PostgreSQL that hangs must not hold its callers for ever

# SQLSTATE classes and codes that say "not now" rather than "not like that": connection, resources, operator, a standby,
# and transactions that lost against another.
_AWAY_CLASSES = ("08", "53", "57")
_AWAY_CODES = ("25006", "40001", "40P01", "55P03", "3D000", "28000", "28P01")
_AWAY_SQLITE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
)

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


def is_database_away(error: BaseException) -> bool:
    """Whether the database could not do its work just now, as opposed to having been asked for something wrong."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeoutError | TimeoutError)
    if error.connection_invalidated or isinstance(error.orig, OSError | TimeoutError):
        return True
    state = getattr(error.orig, "sqlstate", None) or ""
    if state:
        return state[:2] in _AWAY_CLASSES or state in _AWAY_CODES
    code = getattr(error.orig, "sqlite_errorcode", None)
    # A driver without a code for it speaks of its own connection.
    return isinstance(error, InterfaceError) if code is None else code & 0xFF in _AWAY_SQLITE


class AsyncDatabaseManager:
    """Connects on first use, so that an application without a lifespan (a test's) works too."""

    def __init__(self, url: str | URL, *, echo: bool = False) -> None:
        self.url = normalize_url(url)
        self._echo = echo
        self._engine: AsyncEngine | None = None
        self._sessions: async_sessionmaker[AsyncSession] | None = None
        self._write_turn = asyncio.Lock()

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def is_in_memory(self) -> bool:
        """Whether all sessions share one connection, and so one transaction: good for one request at a time."""
        return self.is_sqlite and self.url.database in (None, "", ":memory:")

    @property
    def engine(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = create_engine(self.url, echo=self._echo)
        return self._engine

    async def connect(self) -> None:
        """Reach the database once. Raises SQLAlchemy's `OperationalError` if it does not answer."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def disconnect(self) -> None:
        """Close every connection. The manager connects again if it is used again."""
        engine, self._engine, self._sessions = self._engine, None, None
        if engine is not None:
            await engine.dispose()

    async def create_tables(self, metadata: MetaData | None = None) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync((metadata or BaseModel.metadata).create_all)

    async def drop_tables(self, metadata: MetaData | None = None) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync((metadata or BaseModel.metadata).drop_all)

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession, None]:
        """A session of one's own. Leaving without a commit discards what was written."""
        if self._sessions is None:
            self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        async with self._sessions() as session:
            turn = session.info["write_turn"] = WriteTurn(self._write_turn if self.is_sqlite else None)
            try:
                yield session
            finally:
                turn.end()

    async def session_dependency(self) -> AsyncGenerator[AsyncSession, None]:
        """`session()` as a FastAPI dependency, and the key under which a test puts another database in its place."""
        async with self.session() as session:
            yield session

    async def health_check(self) -> bool:
        """Whether the database answers, within the time that a load balancer waits."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await self.connect()
        except (SQLAlchemyError, TimeoutError):
            log.warning("The database does not answer", exc_info=True)
            return False
        return True


class WriteTurn:
    """A place in the line of a process's SQLite writers. They wait here rather than in SQLite, where each would hold a
    connection meanwhile, until none is left for the readers."""

    def __init__(self, lock: asyncio.Lock | None) -> None:
        self._lock = lock
        self._is_mine = False

    async def begin(self) -> None:
        if self._lock and not self._is_mine:
            await self._lock.acquire()
            self._is_mine = True

    def end(self) -> None:
        if self._lock and self._is_mine:
            self._is_mine = False
            self._lock.release()


async def begin_writing(session: AsyncSession) -> None:
    """Open the transaction that will write. A service calls this once, before its first statement that counts.

    A read that is still open on the session is ended. On SQLite the transaction takes the write lock at once (`BEGIN
    IMMEDIATE`): one that begins as a reader and turns writer is refused when another has written meanwhile, and the
    busy timeout does not apply to it.
    """
    await session.close()
    if "write_turn" in session.info:
        await session.info["write_turn"].begin()
    _ = await session.connection(execution_options={"sqlite_begin": "BEGIN IMMEDIATE"})


def create_engine(url: str | URL, *, echo: bool = False) -> AsyncEngine:
    """An engine that never shows parameters in an error or a log: they may be hashes."""
    url = normalize_url(url)
    if url.get_backend_name() == "sqlite":
        return _create_sqlite_engine(url, echo=echo)
    engine = create_async_engine(
        url,
        echo=echo,
        hide_parameters=True,
        pool_pre_ping=True,  # when PostgreSQL has restarted, nobody gets an error for it
        connect_args={"timeout": CONNECT_TIMEOUT_SECONDS, "command_timeout": COMMAND_TIMEOUT_SECONDS},
    )
    event.listen(engine.sync_engine, "do_connect", _connect_or_operational_error)
    return engine


def _connect_or_operational_error(
    dialect: Dialect, _record: object, args: list[Any], options: dict[str, Any]
) -> DBAPIConnection:
    # The drivers let "connection refused" through as an OSError, which callers could not tell from any other.
    try:
        if dialect.name == "sqlite":
            _look_at_file(args[0])
        return dialect.connect(*args, **options)
    except (OSError, TimeoutError) as error:
        raise OperationalError("connect", None, error) from error


def _look_at_file(database: str) -> None:
    """Make the folder, and open the file once without the async driver: its thread would outlive a failed attempt, and
    complain under a traceback when it finds the event loop closed."""
    if database == ":memory:" or database.startswith("file:"):
        return
    Path(database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds hashes
    sqlite3.connect(database).close()


def _create_sqlite_engine(url: URL, *, echo: bool) -> AsyncEngine:
    engine = create_async_engine(
        url,
        echo=echo,
        hide_parameters=True,
        connect_args={
            "timeout": BUSY_TIMEOUT_SECONDS,
            "isolation_level": None,  # the driver begins nothing by itself; `_begin_sqlite` does
        },
    )
    logging.getLogger("aiosqlite").setLevel(logging.INFO)  # at DEBUG it logs parameters, and so hashes
    event.listen(engine.sync_engine, "do_connect", _connect_or_operational_error)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _record: object) -> None:
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
    # In memory all sessions share one connection, and with it a transaction that another session has open.
    driver = connection.connection.driver_connection
    if driver is not None and driver.in_transaction:
        return
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
