"""How Alembic reaches the database: by the connection that the service hands it, else by DATABASE_URL."""

import asyncio
from logging.config import fileConfig
from typing import Literal

from alembic import context
from sqlalchemy import Connection

import src.db.models  # noqa: F401 - registers every table on BaseModel.metadata
from src.core.settings import get_settings
from src.db import AsyncDatabaseManager, BaseModel
from src.db.base import UTCDateTime
from src.db.connections import normalize_url
from src.db.migrations import migrating_connection


def render_item(kind: str, item: object, _autogenerate: object) -> str | Literal[False]:
    # A migration must not change its meaning when our types do.
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UTCDateTime) else False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=BaseModel.metadata,
        render_as_batch=True,  # SQLite changes a table by building it anew
        transactional_ddl=True,  # SQLite's can be rolled back, as we begin its transactions ourselves
        compare_server_default=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    database = AsyncDatabaseManager.from_settings(get_settings())
    async with migrating_connection(database) as connection:
        await connection.run_sync(run)
    await database.disconnect()


config = context.config
if context.is_offline_mode():  # `alembic upgrade head --sql`, for people who apply SQL by hand
    url = normalize_url(get_settings().database_url)
    context.configure(url=url, target_metadata=BaseModel.metadata, literal_binds=True, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
elif "connection" in config.attributes:
    run(config.attributes["connection"])
else:
    if config.config_file_name:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    asyncio.run(connect_and_run())
