"""The use cases as the command line has them. Whoever runs it is the operator; what is refused ends a command."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from src.cli.output import fail, in_database
from src.core.exceptions import AppException
from src.core.keys import NoKeysError
from src.core.settings import get_settings
from src.db.database import AsyncDatabaseManager
from src.db.unit_of_work import open_unit_of_work
from src.services import Context, Runtime

Result = TypeVar("Result")


def with_context(work: Callable[[Context], Awaitable[Result]]) -> Result:
    """What the work makes of a context, on the database of DATABASE_URL.

    Ends the command with a sentence if a service refuses, or needs keys that are not there. Emails are queued where
    SMTP is configured: a running service or worker sends them.
    """
    try:
        return in_database(lambda database: _in_context(database, work))
    except AppException as refusal:
        fail(_sentence(refusal))
    except NoKeysError as error:
        fail(str(error))


def with_context_if_ready(work: Callable[[Context], Awaitable[Result]]) -> Result | None:
    """What the work makes of a context, on the database of DATABASE_URL; `None` if that is not ready. No file is made
    and nothing is migrated."""
    return asyncio.run(_in_context_if_ready(work))


async def _in_context_if_ready(work: Callable[[Context], Awaitable[Result]]) -> Result | None:
    try:
        database = AsyncDatabaseManager.from_settings(get_settings())
    except ValueError:
        return None
    if database.is_sqlite and not database.files:
        return None
    try:
        return await _in_context(database, work)
    except Exception:  # noqa: BLE001 - a driver may raise anything when it is given a wrong URL, and quote it
        return None
    finally:
        await database.disconnect()


async def _in_context(database: AsyncDatabaseManager, work: Callable[[Context], Awaitable[Result]]) -> Result:
    runtime = Runtime.from_settings(get_settings())
    async with open_unit_of_work(database) as uow:
        return await work(Context.new(runtime, uow, email=runtime.email))


def _sentence(refusal: AppException) -> str:
    """What is wrong with which field, where it is known."""
    fields = [f"The {field['field']} {field['reason']}." for field in refusal.details.get("fields", [])]
    return " ".join(fields) or refusal.detail
