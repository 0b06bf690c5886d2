"""Helpers for the tests of this project and of projects built on it. They need no pytest: wrap them in fixtures."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from src.db.base import BaseModel
from src.db.database import AsyncDatabaseManager

IN_MEMORY = "sqlite+aiosqlite:///:memory:"


def create_test_engine(database_url: str = IN_MEMORY, *, echo: bool = False) -> AsyncEngine:
    """An engine to throw away. In memory it keeps one connection, which all sessions share (`StaticPool`)."""
    return AsyncDatabaseManager(database_url, echo=echo).engine


def create_test_session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions whose objects stay readable after a commit."""
    return async_sessionmaker(engine, expire_on_commit=False)


async def init_test_metadata(engine: AsyncEngine, metadata: MetaData | None = None) -> None:
    """Create every table of `metadata` (default: `BaseModel.metadata`)."""
    async with engine.begin() as connection:
        await connection.run_sync((metadata or BaseModel.metadata).create_all)


async def drop_test_metadata(engine: AsyncEngine, metadata: MetaData | None = None) -> None:
    """Drop every table of `metadata` (default: `BaseModel.metadata`)."""
    async with engine.begin() as connection:
        await connection.run_sync((metadata or BaseModel.metadata).drop_all)


@asynccontextmanager
async def test_database(
    database_url: str = IN_MEMORY, *, metadata: MetaData | None = None
) -> AsyncGenerator[async_sessionmaker[AsyncSession], None]:
    """A session factory on fresh tables, which are dropped at the end."""
    engine = create_test_engine(database_url)
    try:
        await init_test_metadata(engine, metadata)
        yield create_test_session_factory(engine)
    finally:
        await drop_test_metadata(engine, metadata)
        await engine.dispose()


@asynccontextmanager
async def test_session(
    database_url: str = IN_MEMORY, *, metadata: MetaData | None = None
) -> AsyncGenerator[AsyncSession, None]:
    """One session on a fresh `test_database`."""
    async with test_database(database_url, metadata=metadata) as factory, factory() as session:
        yield session


# pytest collects every function whose name begins with `test_`, in each file that imports one.
test_database.__test__ = False  # type: ignore[attr-defined]  # a mark that only pytest reads
test_session.__test__ = False  # type: ignore[attr-defined]  # a mark that only pytest reads
