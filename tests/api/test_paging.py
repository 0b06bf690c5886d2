"""Paging through many users while others come and go."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, insert
from uuid_utils.compat import uuid7

from src.core.passwords import UNUSABLE_PASSWORD
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import UserModel
from tests.support.databases import count_users, writing
from tests.support.service import Service
from tests.support.steps import LoggedIn, create_admin

USERS = 200_000
LEAVING = 20_000
CHUNK = 10_000


def make_rows(ids: Sequence[UUID]) -> list[Mapping[str, Any]]:
    shared = {"hashed_password": UNUSABLE_PASSWORD, "is_active": True, "is_admin": False, "activated_at": utc_now()}
    return [{"id": id_, "email": f"{id_}@example.com"} | shared for id_ in ids]


async def seed(database: AsyncDatabaseManager) -> list[UUID]:
    ids = [uuid7() for _ in range(USERS)]
    async with database.session() as session:
        for start in range(0, USERS, CHUNK):
            await session.execute(insert(UserModel), make_rows(ids[start : start + CHUNK]))
        await session.commit()
    return ids


@asynccontextmanager
async def coming_and_going(
    database: AsyncDatabaseManager, *, among: Sequence[UUID], leaving: Sequence[UUID]
) -> AsyncGenerator[Counter[str], None]:
    """Until the end of the block, insert users between these (they came by import, say) and behind them, and delete
    some; how many of each."""
    dice, moves, is_over = random.Random(7), Counter[str](), asyncio.Event()  # noqa: S311 - not a secret

    async def move() -> None:
        going = list(leaving)
        dice.shuffle(going)
        while going and not is_over.is_set():
            # A neighbour of a random user: the same millisecond, other random bits.
            between = [UUID(int=dice.choice(among).int ^ dice.getrandbits(60)) for _ in range(5)]
            gone, going = going[:10], going[10:]
            async with writing(database) as session:
                await session.execute(insert(UserModel), make_rows([*between, uuid7()]))
                await session.execute(delete(UserModel).where(UserModel.id.in_(gone)))
            moves.update(came=len(between) + 1, went=len(gone))
            await asyncio.sleep(0.01)

    moving = asyncio.create_task(move())
    try:
        yield moves
    finally:
        is_over.set()  # not cancelled: what was committed at that moment would not be counted
        await moving


async def page_through(service: Service, who: LoggedIn, **query: Any) -> list[UUID]:
    seen, more = list[UUID](), dict[str, str]()
    while True:
        response = await service.client.get("/api/users", params=query | more, headers=who.bearer)
        assert response.status_code == 200, response.text
        page = response.json()
        seen += [UUID(user["id"]) for user in page["items"]]
        if page["next_cursor"] is None:
            return seen
        more = {"cursor": page["next_cursor"]}


@pytest.mark.slow
async def test_nobody_is_listed_twice_and_nobody_who_stays_is_missed(
    service: Service, database: AsyncDatabaseManager
) -> None:
    admin = await create_admin(service)
    ids = await seed(database)
    leaving = ids[:: USERS // LEAVING]

    async with coming_and_going(database, among=ids, leaving=leaving) as moves:
        seen = await page_through(service, admin, limit=100)

    stayed = set(ids) - set(leaving) | {UUID(admin.user_id)}
    assert min(moves["came"], moves["went"]) > 100
    assert len(seen) == len(set(seen))
    assert stayed - set(seen) == set()
    assert seen == sorted(seen)
    assert await count_users(database) == USERS + 1 + moves["came"] - moves["went"]
