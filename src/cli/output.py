"""What all commands share: the database that they work in, and how they print and fail."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, NoReturn, TypeVar

import typer
from pydantic_core import to_json
from sqlalchemy.exc import DBAPIError

from src.core.settings import get_settings
from src.db.database import AsyncDatabaseManager, is_transient_database_error
from src.db.migrations import DatabaseNotReadyError, prepare

Result = TypeVar("Result")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs; times are ISO 8601, in UTC.")]


def print_json(value: object) -> None:
    """Print dataclasses, mappings, or a list of them, on one line."""
    typer.echo(to_json(value))  # bytes: JSON is UTF-8 (RFC 8259, section 8.1), whatever the terminal speaks


def fail(sentence: str) -> NoReturn:
    """End the command with exit code 1, and the sentence where errors go."""
    typer.echo(sentence, err=True)
    raise typer.Exit(1)


def in_database(
    work: Callable[[AsyncDatabaseManager], Awaitable[Result]], *, auto_migrate: bool | None = None
) -> Result:
    """What the work makes of the database of DATABASE_URL, which is prepared first, as at the start of the service.

    Ends the command with a sentence if the database is not ready, or stops answering. `auto_migrate` stands in for
    DATABASE_AUTO_MIGRATE.
    """
    return asyncio.run(_in_database(work, auto_migrate=auto_migrate))


async def _in_database(
    work: Callable[[AsyncDatabaseManager], Awaitable[Result]], *, auto_migrate: bool | None
) -> Result:
    settings = get_settings()
    try:
        database = AsyncDatabaseManager.from_settings(settings)
    except ValueError as error:
        fail(f"{error}.")
    try:
        await prepare(database, auto_migrate=settings.database_auto_migrate if auto_migrate is None else auto_migrate)
        return await work(database)
    except DatabaseNotReadyError as refusal:
        fail(str(refusal))
    except (DBAPIError, TimeoutError) as error:
        if not is_transient_database_error(error):
            raise
        fail("The database has stopped answering: what was not said to be done has to be repeated.")
    finally:
        await database.disconnect()
