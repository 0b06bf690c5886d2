"""What SQLite needs to behave like a server. `connections.py` is the only one that uses it."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool
from sqlalchemy.util import await_only

from src.core.logs import RareWarning

THREADS = 8  # at most: more than one, so that a long search does not keep the short reads waiting
SWITCH_SECONDS = 15.0  # for how long a new file may be busy with another process that opens it first, too
INSTRUCTIONS = 100_000  # of SQLite's machine between two looks at the clock: less than ten milliseconds

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def is_in_memory(url: URL) -> bool:
    """Whether it names an SQLite database that has no file, and lives in one connection."""
    has_no_file = url.database in (None, "", ":memory:", "file::memory:") or url.query.get("mode") == "memory"
    return url.get_backend_name() == "sqlite" and has_no_file


def sqlite_path(database: str) -> Path:
    """Where the file of an SQLite database is, by the name that SQLite gets, which may be a URI."""
    return Path(unquote(urlsplit(database).path) if database.startswith("file:") else database)


class SQLiteFile:
    """The file of a database, as all engines of a process open it.

    It is made when it is opened first, and never again: under a running service, an empty one would stand in for what
    is lost. It is used only while it is in its place, so that nothing is written into a file that nobody will find; nor
    is another in its place, which the journal of the first one (`-wal`) would spoil.
    """

    def __init__(self, url: URL) -> None:
        self._has_file = not is_in_memory(url)
        self._may_make = url.query.get("mode", "rwc") == "rwc"
        self._path = sqlite_path(url.database or "")
        self._opening = threading.Lock()
        self._identity: tuple[int, int] | None = None  # once it has been opened
        self._warning = RareWarning(log)

    def listen(self, engine: Engine, *, is_async: bool) -> None:
        def connect(dialect: Dialect, _entry: object, args: list[Any], options: dict[str, Any]) -> DBAPIConnection:
            try:
                if self._has_file:
                    args[0], options["uri"] = _uri_of(args[0]), True
                    open_file = partial(self._open, args[0])
                    await_only(asyncio.to_thread(open_file)) if is_async else open_file()
                connection = dialect.connect(*args, **options)
            except OSError as error:  # callers could not tell it from any other
                raise OperationalError("connect", None, error) from error
            return _configure(connection)

        event.listen(engine, "do_connect", connect)
        event.listen(engine, "checkout", self._refuse_moved)
        event.listen(engine, "handle_error", _drop_read_only)
        event.listen(engine, "begin", _begin)

    def is_moved(self) -> bool:
        """Whether nothing, or another file, is where it was when it was opened first."""
        return self._has_file and self._identity != self._identify()

    def forget(self) -> None:
        """After the last connection has been closed: what is opened next may be another."""
        self._identity = None

    def _open(self, uri: str) -> None:
        """Check that it can be opened, and make it if nobody has opened it yet. Where an attempt fails, the thread of
        the asynchronous driver would survive it, and complain when the event loop is closed."""
        import sqlite3  # loaded only where it is used

        with self._opening:
            if self._identity is None:
                self._make()
                _switch_to_wal(uri)
                self._identity = self._identify()
        if self.is_moved():
            self._warning.give(f"{self._path} is gone, or another file is there: put it back, or restart the service")
            raise FileNotFoundError(self._path)
        sqlite3.connect(uri, uri=True).close()

    def _make(self) -> None:
        if not self._may_make:
            return
        path = self._path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # It holds hashes. SQLite would let everyone read it, and gives the files beside it the mode of this one.
        with suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - before every statement, and pathlib's takes three times as long
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _refuse_moved(self, _connection: DBAPIConnection, _entry: object, _proxy: object) -> None:
        if self.is_moved():
            raise DisconnectionError  # the pool tries to open it again, and fails


def _uri_of(name: str) -> str:
    """The name by which SQLite opens the file, and makes none."""
    if not name.startswith("file:"):
        return f"file:{quote(name)}?mode=rw"
    path, _, query = name.partition("?")
    options = dict(parse_qsl(query))
    if options.get("mode", "rwc") == "rwc":
        options["mode"] = "rw"
    return f"{path}?{urlencode(options)}"


def _switch_to_wal(uri: str) -> None:
    """Let readers go on while one writes, which the file remembers. Two processes that switch it at the same moment
    collide, and SQLite's own timeout does not cover that."""
    import sqlite3

    deadline, is_wal = time.monotonic() + SWITCH_SECONDS, False
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        while not is_wal:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                is_wal = True
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def _configure(connection: DBAPIConnection) -> DBAPIConnection:
    try:
        # SQLite's own knows ASCII alone, so a search for "émile" would not find "Émile" as it does on PostgreSQL.
        connection.create_function("lower", 1, _lower, deterministic=True)
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()
    except BaseException:
        connection.close()
        raise
    return connection


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _drop_read_only(context: ExceptionContext) -> None:
    # A connection that was opened while its file could not be written stays read-only when the file can be.
    name = getattr(context.original_exception, "sqlite_errorname", "")
    if name.startswith("SQLITE_READONLY"):
        context.is_disconnect = True


def _begin(connection: Connection) -> None:
    begin = connection.get_execution_options().get("sqlite_begin", "BEGIN")
    # In memory all sessions share one connection, and with it a transaction that another session has open.
    driver = connection.connection.driver_connection
    if begin and driver is not None and not driver.in_transaction:
        connection.exec_driver_sql(begin)


def create_sqlite_engine(
    url: URL, file: SQLiteFile, *, pool_size: int, pool_timeout: float, busy_timeout: float, echo: bool
) -> AsyncEngine:
    """For transactions, by the asynchronous driver."""
    pool: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": pool_timeout}
    if is_in_memory(url):
        pool = {"poolclass": StaticPool}
    engine = create_async_engine(
        url,
        echo=echo,
        hide_parameters=True,
        connect_args={
            "timeout": busy_timeout,
            "isolation_level": None,  # the driver begins nothing by itself; `_begin` does
        },
        **pool,
    )
    logging.getLogger("aiosqlite").setLevel(logging.INFO)  # at DEBUG it logs parameters, and so hashes
    file.listen(engine.sync_engine, is_async=True)
    return engine


class SQLiteThreads:
    """Threads that each keep a connection in autocommit mode and do a whole statement in one hop. The asynchronous
    driver takes five hops for a read.

    A statement ends with SQLite's "interrupted" when it takes longer than `statement_timeout` seconds.
    """

    def __init__(
        self, url: URL, file: SQLiteFile, *, busy_timeout: float, statement_timeout: float, echo: bool
    ) -> None:
        self._file = file
        self._statement_timeout = statement_timeout
        self._engine = create_engine(
            url.set(drivername="sqlite"),
            echo=echo,
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            pool_reset_on_return=None,
            pool_size=THREADS,
            max_overflow=0,
            connect_args={"timeout": busy_timeout},
            execution_options={"sqlite_begin": None},
        )
        file.listen(self._engine, is_async=False)
        self._local = threading.local()
        self._open: list[Connection] = []
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="sqlite")
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
        if connection is not None and self._file.is_moved():
            self._drop(connection, local, opened)
            connection = None
        if connection is None:
            connection = local.connection = self._engine.connect()
            opened.append(connection)
            self._limit_time(connection, local)
        local.ends_at = time.monotonic() + self._statement_timeout
        try:
            return work(connection)
        except DBAPIError as error:
            if error.connection_invalidated:
                self._drop(connection, local, opened)
            raise

    def _limit_time(self, connection: Connection, local: threading.local) -> None:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: time.monotonic() > local.ends_at, INSTRUCTIONS)

    def _drop(self, connection: Connection, local: threading.local, opened: list[Connection]) -> None:
        local.connection = None
        opened.remove(connection)
        connection.invalidate()
        connection.close()
