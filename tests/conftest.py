"""Databases, applications and clients for the tests: each test has its own, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from httpx import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from src.api.app import create_app
from src.api.app import db as production_db
from src.db import AsyncDatabaseManager, BaseModel
from tests.support.databases import DATABASES, PostgreSQL, ReusingDatabase, SQLiteFile
from tests.support.service import (
    MailingService,
    Service,
    Starter,
    StartMailingService,
    StartService,
)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that the service runs on, too."""
    return {"uvloop": uvloop.new_event_loop}


# --- databases ---


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    server = PostgreSQL()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: PostgreSQL) -> str:
    url = postgresql.create("migrated")
    postgresql.migrate("migrated")
    return url


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> SQLiteFile:
    return SQLiteFile(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture
def migrated_sqlite_copy(sqlite_file: SQLiteFile) -> str:
    return sqlite_file.renew()


@pytest.fixture(scope="session")
def empty_postgresql(postgresql: PostgreSQL) -> str:
    return postgresql.create("empty")


@pytest.fixture(params=DATABASES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    yield request.getfixturevalue("empty_postgresql")
    server.clear("empty")


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database whose tables were made by the migrations, and are empty."""
    if request.param == "sqlite":
        yield request.getfixturevalue("migrated_sqlite_copy")
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    yield request.getfixturevalue("migrated_postgresql")
    server.delete_all("migrated")


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncGenerator[AsyncDatabaseManager, None]:
    """The test's own way into the database. The application has another: what it forgot to commit is not seen here."""
    manager = ReusingDatabase(database_url)
    yield manager
    await manager.disconnect()


@pytest.fixture(scope="module", params=DATABASES)
def shared_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all tests of a module that ask for it, which leave in it what they write."""
    if request.param == "sqlite":
        file: SQLiteFile = request.getfixturevalue("sqlite_file")
        yield file.copy_to(tmp_path_factory.mktemp("shared") / "test.db")
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.create("shared")
    server.migrate("shared")
    yield url
    server.execute("postgres", "DROP DATABASE shared WITH (FORCE)")


# --- the testing guide's own fixtures, on both databases ---


@pytest.fixture(scope="session")
def guide_postgresql(postgresql: PostgreSQL) -> str:
    return postgresql.create("guide")


@pytest_asyncio.fixture(params=DATABASES)
async def db(request: pytest.FixtureRequest) -> AsyncGenerator[AsyncDatabaseManager, None]:
    """Fresh tables: in memory, or in a database of their own on PostgreSQL."""
    url = "sqlite+aiosqlite:///:memory:"
    if request.param == "postgresql":
        url = request.getfixturevalue("guide_postgresql")
    manager = AsyncDatabaseManager(url)
    await manager.connect()
    await manager.create_tables(BaseModel.metadata)
    try:
        yield manager
    finally:
        await manager.drop_tables(BaseModel.metadata)
        await manager.disconnect()


@pytest_asyncio.fixture
async def session(db: AsyncDatabaseManager) -> AsyncGenerator[AsyncSession, None]:
    async for session in db.session_dependency():
        yield session


@pytest_asyncio.fixture
async def client(db: AsyncDatabaseManager) -> AsyncGenerator[AsyncClient, None]:
    app = create_app()
    app.dependency_overrides[production_db.session_dependency] = db.session_dependency
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        yield client


# --- the application on a migrated database ---


@pytest_asyncio.fixture
async def starter(database_url: str) -> AsyncGenerator[Starter, None]:
    async with AsyncExitStack() as stack:
        yield Starter(database_url, stack)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_starter(shared_database_url: str) -> AsyncGenerator[Starter, None]:
    async with AsyncExitStack() as stack:
        yield Starter(shared_database_url, stack)


@pytest.fixture
def start_service(starter: Starter) -> StartService:
    """Makes services with settings of their own: `await start_service(auth_auto_activate=True)`."""
    return starter.start


@pytest.fixture
def start_mailing_service(starter: Starter) -> StartMailingService:
    return starter.start_mailing


@pytest_asyncio.fixture
async def service(start_service: StartService) -> Service:
    """The service as it is without any configuration: links are in the answers."""
    return await start_service()


@pytest_asyncio.fixture
async def mailing_service(start_mailing_service: StartMailingService) -> MailingService:
    return await start_mailing_service()
