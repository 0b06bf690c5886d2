"""What all commands share: the database that they work in, and how they print and fail."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import typer

from src.core.settings import get_settings
from src.db.database import AsyncDatabaseManager

Result = TypeVar("Result")


def fail(sentence: str) -> NoReturn:
    """End the command with exit code 1, and the sentence where errors go."""
    typer.echo(sentence, err=True)
    raise typer.Exit(1)


def in_database(work: Callable[[AsyncDatabaseManager], Awaitable[Result]]) -> Result:
    """What the work makes of the database of DATABASE_URL."""
    return asyncio.run(_in_database(work))


async def _in_database(work: Callable[[AsyncDatabaseManager], Awaitable[Result]]) -> Result:
    database = AsyncDatabaseManager(get_settings().database_url)
    try:
        return await work(database)
    finally:
        await database.disconnect()
