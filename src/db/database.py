"""One database and its sessions. Few others know which database it is: the migrations, and whoever prepares one."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Executable, FrozenResult, MetaData, UpdateBase, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.pool import QueuePool

from src.core.settings import Settings
from src.db.base import BaseModel
from src.db.connections import CONNECT_TIMEOUT_SECONDS, DEFAULT_POOL_SIZE, Connections, Timeouts, normalize_url
from src.db.sqlite import is_in_memory, sqlite_path

log = logging.getLogger(__name__)

MOST_WAITING_WRITERS = 256  # of a process; they take less than a second on a disk that is not slow

LONG_SEARCHES = 2  # at once in a process: each may keep a connection and a processor busy for seconds
LONG_SEARCH = {"is_long_search": True}  # for `execution_options`: what reads rows by the million, index or not

_PING = text("SELECT 1")
_BEGIN_FIRST = "begin() comes before what is written"

# SQLSTATE classes and codes that say "not now" rather than "not like that": connection, resources, operator, a standby,
# and transactions that lost against another.
_TRANSIENT_CLASSES = ("08", "53", "57")
_TRANSIENT_CODES = ("25006", "40001", "40P01", "55P03", "3D000", "28000", "28P01")
_TRANSIENT_SQLITE = tuple(
    f"SQLITE_{name}" for name in ["BUSY", "LOCKED", "READONLY", "IOERR", "FULL", "CANTOPEN", "NOTADB", "INTERRUPT"]
)


def is_transient_database_error(error: BaseException) -> bool:
    """Whether the database could not do its work just now, as opposed to having been asked for something wrong."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeoutError | TimeoutError)
    if error.connection_invalidated or isinstance(error.orig, OSError | TimeoutError):
        return True
    state = getattr(error.orig, "sqlstate", None) or ""
    if state:
        return state[:2] in _TRANSIENT_CLASSES or state in _TRANSIENT_CODES
    name: str | None = getattr(error.orig, "sqlite_errorname", None)
    # A driver without a name for it speaks of its own connection.
    return isinstance(error, InterfaceError) if name is None else name.startswith(_TRANSIENT_SQLITE)


class AsyncDatabaseManager:
    """Connects on first use, so that an application without a lifespan (a test's) works too.

    At most `pool_size` connections are open at once; whoever needs another waits, for as long as `timeouts` says.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        pool_size: int = DEFAULT_POOL_SIZE,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - it is frozen
        echo: bool = False,
    ) -> None:
        self.url = normalize_url(url)
        self.pool_size = pool_size
        self.timeouts = timeouts
        self._echo = echo
        self._connections: Connections | None = None
        self.write_lock = asyncio.Lock()  # of SQLite, see `DatabaseSession.begin_transaction`
        self._waiting_writers = 0
        self.long_searches = asyncio.Semaphore(LONG_SEARCHES)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises `ValueError` for a URL that cannot be read."""
        timeouts = Timeouts.from_settings(settings)
        return cls(settings.database_url, pool_size=settings.database_pool_size, timeouts=timeouts)

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def is_in_memory(self) -> bool:
        """Whether all sessions share one connection, and so one transaction: good for one request at a time."""
        return is_in_memory(self.url)

    @property
    def files(self) -> Sequence[Path]:
        """What an SQLite database consists of and is there: its file, and the two that SQLite puts beside it."""
        if not self.is_sqlite or self.is_in_memory:
            return ()
        path = sqlite_path(self.url.database or "")
        beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
        return [file for file in (path, *beside) if file.exists()]

    @property
    def connections(self) -> "Connections":
        if self._connections is None:
            self._connections = Connections.open(
                self.url, pool_size=self.pool_size, timeouts=self.timeouts, echo=self._echo
            )
        return self._connections

    @property
    def connections_in_use(self) -> int:
        """Of those for transactions, and on PostgreSQL of all. In memory it is 0."""
        pool = self.connections.engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    @property
    def engine(self) -> AsyncEngine:
        return self.connections.engine

    async def connect(self) -> None:
        """Reach the database once. Raises SQLAlchemy's `OperationalError` if it does not answer."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def disconnect(self) -> None:
        """Close every connection. The manager connects again if it is used again."""
        if self._connections:
            await self._connections.close()

    async def create_tables(self, metadata: MetaData | None = None) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync((metadata or BaseModel.metadata).create_all)

    async def drop_tables(self, metadata: MetaData | None = None) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync((metadata or BaseModel.metadata).drop_all)

    @asynccontextmanager
    async def session(self) -> AsyncGenerator["DatabaseSession", None]:
        """A session of one's own. Leaving without a commit discards what was written."""
        async with DatabaseSession(self) as session:
            yield session

    async def session_dependency(self) -> AsyncGenerator["DatabaseSession", None]:
        """`session()` as a FastAPI dependency, and the key under which a test puts another database in its place."""
        async with DatabaseSession(self) as session:
            yield session

    async def take_write_lock(self) -> None:
        """Wait for `write_lock`. Raises `TimeoutError` when it takes too long, and at once where so many wait that
        another would only make them wait longer."""
        if self._waiting_writers >= MOST_WAITING_WRITERS:
            raise TimeoutError("too many writers wait")
        self._waiting_writers += 1
        try:
            async with asyncio.timeout(self.timeouts.lock / 2):
                await self.write_lock.acquire()
        finally:
            self._waiting_writers -= 1

    async def health_check(self) -> bool:
        """Whether the database answers, within the time that a load balancer waits."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await self.connect()
        except (SQLAlchemyError, TimeoutError):
            log.warning("The database does not answer", exc_info=True)
            return False
        return True


class DatabaseSession(AsyncSession):
    """SQLAlchemy's own, until a unit of work switches it to autocommit: outside a transaction, each statement is then a
    transaction of its own, which holds nothing afterwards. What it has brought is detached from the session.
    """

    def __init__(self, database: AsyncDatabaseManager) -> None:
        super().__init__(database.engine, expire_on_commit=False)
        self._database = database
        self._is_writing = False
        self.is_autocommit = False

    async def __aexit__(self, *exception: object) -> None:
        if self.in_transaction() or self._is_writing:  # closing is a task of its own, which reads need not pay for
            await super().__aexit__(*exception)

    async def begin_transaction(self) -> None:
        """Open the transaction that will write, on a connection that answers.

        On SQLite it takes the write lock at once (`BEGIN IMMEDIATE`): one that begins as a reader and turns writer is
        refused when another has written meanwhile, and the busy timeout does not apply to it. The writers of a process
        wait for `write_lock` rather than in SQLite, where each would hold a connection until none is left for others.
        """
        if self._is_writing:
            raise InvalidRequestError("a transaction is open already")
        if self._database.is_sqlite:
            await self._database.take_write_lock()
        self._is_writing = True
        if self._database.is_sqlite:
            _ = await self.connection(execution_options={"sqlite_begin": "BEGIN IMMEDIATE"})
            return
        try:
            await super().execute(_PING)
        except DBAPIError as error:  # PostgreSQL was restarted, and nobody has noticed yet; nothing is lost
            if not error.connection_invalidated:
                raise
            await super().rollback()
            await super().execute(_PING)

    @property
    def _stands_alone(self) -> bool:
        return self.is_autocommit and not self._is_writing

    # The signatures are those of `AsyncSession`, whose overloads give callers the types of the rows.

    async def execute(self, statement: Executable, params: Any = None, **options: Any) -> Any:
        if self._stands_alone:
            return (await self._execute_alone(statement, params))()
        return await super().execute(statement, params, **options)

    async def scalar(self, statement: Executable, params: Any = None, **options: Any) -> Any:
        return (await self.execute(statement, params, **options)).scalar()

    async def flush(self, objects: Any = None) -> None:
        if self._stands_alone:
            raise RuntimeError(_BEGIN_FIRST)
        await super().flush(objects)

    async def commit(self) -> None:
        if self._stands_alone and (self.new or self.dirty or self.deleted):
            raise RuntimeError(_BEGIN_FIRST)
        try:
            await super().commit()
        finally:
            self._end_writing()

    async def rollback(self) -> None:
        try:
            await super().rollback()
        finally:
            self._end_writing()

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._end_writing()

    def _end_writing(self) -> None:
        if self._is_writing and self._database.is_sqlite:
            self._database.write_lock.release()
        self._is_writing = False

    async def _execute_alone(self, statement: Executable, params: Any) -> FrozenResult[Any]:
        database, options = self._database, statement.get_execution_options()
        if options.get("is_long_search"):
            async with asyncio.timeout(database.timeouts.pool):
                await database.long_searches.acquire()
            try:
                return await database.connections.execute(self, statement, params)
            finally:
                database.long_searches.release()
        is_write = isinstance(statement, UpdateBase)
        if is_write and not options.get("stands_alone"):
            raise RuntimeError(_BEGIN_FIRST)
        if is_write and database.is_in_memory:  # where others' transactions may be open on the one connection
            await self.begin_transaction()
            result = (await super().execute(statement, params)).freeze()
            await self.commit()
            return result
        if is_write and database.is_sqlite:
            await database.take_write_lock()
            try:
                return await database.connections.execute(self, statement, params)
            finally:
                database.write_lock.release()
        return await database.connections.execute(self, statement, params)
