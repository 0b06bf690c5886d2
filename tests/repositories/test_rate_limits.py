"""The rates as the database counts them. What is limited by them is in tests/api/test_rate_limits.py."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

from src.core.limits import Place, Rate
from src.db import AsyncDatabaseManager
from src.db.models import rate_limits
from src.db.unit_of_work import open_unit_of_work
from tests.support.databases import execute, writing

THREE_AN_HOUR = Rate.parse("3/1h")
KEY = UUID(int=1)
PLACE = Place(KEY, THREE_AN_HOUR)


async def take(database: AsyncDatabaseManager, *places: Place) -> set[UUID]:
    async with open_unit_of_work(database) as uow:
        return set(await uow.limits.take(places))


async def wait_of(database: AsyncDatabaseManager, place: Place = PLACE) -> float:
    async with open_unit_of_work(database) as uow:
        return (await uow.limits.find_waits([place]))[place.key]


async def let_pass(database: AsyncDatabaseManager, seconds: float) -> None:
    """As if it had all happened earlier."""
    row = rate_limits.c
    await execute(
        database, rate_limits.update().values(tat=row.tat - seconds, reported_until=row.reported_until - seconds)
    )


async def test_there_are_as_many_places_as_the_rate_says(database: AsyncDatabaseManager) -> None:
    taken = [await take(database, PLACE) for _ in range(5)]

    assert taken == [{KEY}] * 3 + [set()] * 2


async def test_of_many_at_once_as_many_get_a_place_as_there_are(database: AsyncDatabaseManager) -> None:
    taken = await asyncio.gather(*(take(database, PLACE) for _ in range(20)))

    assert sum(map(len, taken)) == 3


async def test_places_come_back_one_after_the_other(database: AsyncDatabaseManager) -> None:
    for _ in range(3):
        await take(database, PLACE)
    assert 1190 < await wait_of(database) <= 1200

    await let_pass(database, 1201)

    assert [await take(database, PLACE) for _ in range(2)] == [{KEY}, set()]


async def test_an_attempt_that_is_refused_takes_nothing(database: AsyncDatabaseManager) -> None:
    for _ in range(3):
        await take(database, PLACE)
    before = await wait_of(database)

    for _ in range(10):
        await take(database, PLACE)

    assert await wait_of(database) <= before


async def test_each_key_of_a_statement_is_decided_on_its_own(database: AsyncDatabaseManager) -> None:
    for _ in range(3):
        await take(database, PLACE)
    others = [Place(uuid4(), Rate.parse("1/1d")), Place(uuid4(), Rate.parse("600/1m"))]

    taken = await take(database, *others, PLACE)

    assert taken == {place.key for place in others}


async def test_a_place_that_is_given_back_is_free(database: AsyncDatabaseManager) -> None:
    for _ in range(3):
        await take(database, PLACE)

    async with open_unit_of_work(database) as uow:
        await uow.begin()
        await uow.limits.give_back([PLACE])
        await uow.commit()

    assert [await take(database, PLACE) for _ in range(2)] == [{KEY}, set()]


async def test_taking_the_same_places_in_another_order_deadlocks_nobody(database: AsyncDatabaseManager) -> None:
    places = [Place(uuid4(), Rate.parse("1000/1h")) for _ in range(4)]

    taken = await asyncio.gather(
        *(take(database, *places[number % 4 :], *places[: number % 4]) for number in range(40))
    )

    assert all(len(each) == 4 for each in taken)


async def test_one_alone_reports_in_a_period_that_a_key_has_no_place_left(database: AsyncDatabaseManager) -> None:
    await take(database, PLACE)

    async def report() -> bool:
        async with open_unit_of_work(database) as uow:
            return await uow.limits.report(KEY)

    assert sorted(await asyncio.gather(*(report() for _ in range(5)))) == [False] * 4 + [True]
    await let_pass(database, 3601)
    assert await report()


async def test_keys_with_all_their_places_are_forgotten(database: AsyncDatabaseManager) -> None:
    await take(database, PLACE)
    await let_pass(database, 1201)
    other = Place(uuid4(), THREE_AN_HOUR)
    await take(database, other)

    async with open_unit_of_work(database) as uow:
        await uow.begin()
        assert await uow.limits.delete_unused(limit=10) == 1
        await uow.commit()

    async with writing(database) as session:
        assert (await session.scalars(rate_limits.select())).all() == [other.key]


async def test_a_key_is_marked_until_its_time(database: AsyncDatabaseManager) -> None:
    async with open_unit_of_work(database) as uow:
        await uow.begin()
        for days in (30, 14):  # the second time counts
            await uow.limits.mark(KEY, timedelta(days=days))
        await uow.commit()

        assert await uow.limits.is_marked(KEY)
        assert not await uow.limits.is_marked(uuid4())
        await let_pass(database, 14 * 86_400 + 1)
        assert not await uow.limits.is_marked(KEY)
