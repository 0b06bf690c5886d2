"""The least that FastAPI can take for GET /api/users/{id}: the same row by the same index, straight from the driver.

`bench.floors` runs it on a database that the service has made. It has no sessions, no tokens, no layers.
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
from fastapi import FastAPI
from pydantic import BaseModel

URL = os.environ["DATABASE_URL"]
POOL_SIZE = 20
QUERY = "SELECT id, name, is_active, created_at FROM users WHERE id = {}"


class Profile(BaseModel):
    id: UUID
    name: str | None
    is_active: bool
    created_at: datetime


ReadProfile = Callable[[UUID], Awaitable[Profile]]


@asynccontextmanager
async def sqlite() -> AsyncIterator[ReadProfile]:
    """In the event loop itself. A service must not read there, for a slow disk would stop it; a floor may."""
    connection = sqlite3.connect(URL.removeprefix("sqlite:///"))
    query = QUERY.format("?")

    async def read(user_id: UUID) -> Profile:
        id_, name, is_active, created_at = connection.execute(query, (user_id.hex,)).fetchone()
        created = datetime.fromisoformat(created_at).replace(tzinfo=UTC)
        return Profile(id=UUID(id_), name=name, is_active=is_active, created_at=created)

    yield read
    connection.close()


@asynccontextmanager
async def postgresql() -> AsyncIterator[ReadProfile]:
    """Without the pool's own reset of each connection, which would be a second query for every read."""
    query = QUERY.format("$1")

    async def keep(_connection: object) -> None:
        """Nothing of a read lasts."""

    async with asyncpg.create_pool(URL, min_size=POOL_SIZE, max_size=POOL_SIZE, reset=keep) as pool:

        async def read(user_id: UUID) -> Profile:
            row = await pool.fetchrow(query, user_id)
            assert row is not None
            return Profile(**row)

        yield read


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with sqlite() if URL.startswith("sqlite") else postgresql() as app.state.read:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/api/users/{user_id}")
async def read_user(user_id: UUID) -> Profile:
    read: ReadProfile = app.state.read
    return await read(user_id)


@app.get("/health/live")
async def live() -> dict[str, str]:
    return {"status": "ok"}
