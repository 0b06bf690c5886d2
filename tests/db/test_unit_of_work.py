import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from src.core.exceptions import UserEmailTakenError
from src.db import AsyncDatabaseManager
from src.db.models import UserModel
from src.db.repositories import UserRepository
from src.db.unit_of_work import UnitOfWork, open_unit_of_work


def make_user(email: str = "ana@example.com") -> UserModel:
    return UserModel(email=email, hashed_password="<bcrypt-hash>")


@pytest_asyncio.fixture
async def uow(database: AsyncDatabaseManager) -> AsyncGenerator[UnitOfWork, None]:
    async with open_unit_of_work(database) as uow:
        yield uow


async def count_users(database: AsyncDatabaseManager) -> int:
    async with open_unit_of_work(database) as other:
        return await other.users.count()


def held_connections(database: AsyncDatabaseManager) -> int:
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


class TestBeforeBegin:
    async def test_a_read_holds_no_connection_afterwards(self, uow: UnitOfWork, database: AsyncDatabaseManager) -> None:
        assert await uow.users.find_owner("ana@example.com") is None
        assert await uow.users.count() == 0

        assert held_connections(database) == 0

    async def test_a_read_sees_what_others_have_committed_since_the_last_one(
        self, uow: UnitOfWork, database: AsyncDatabaseManager
    ) -> None:
        assert await uow.users.count() == 0

        async with open_unit_of_work(database) as other:
            await other.begin()
            await other.users.add(make_user())
            await other.commit()

        assert await uow.users.count() == 1
        assert await uow.users.find_owner("ana@example.com") is not None

    async def test_an_insert_is_refused(self, uow: UnitOfWork) -> None:
        with pytest.raises(RuntimeError, match="begin"):
            await uow.users.add(make_user())

    async def test_an_update_is_refused(self, uow: UnitOfWork, database: AsyncDatabaseManager) -> None:
        user = make_user()
        async with database.session() as session:
            session.add(user)
            await session.commit()

        with pytest.raises(RuntimeError, match="begin"):
            await uow.users.set_password(user.id, "another")

        assert (await uow.users.get_by_id(user.id)).hashed_password == "<bcrypt-hash>"

    async def test_a_failing_read_holds_nothing_either(self, uow: UnitOfWork, database: AsyncDatabaseManager) -> None:
        async with database.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE users RENAME TO hidden"))
        try:
            with pytest.raises(Exception, match="users"):
                await uow.users.count()
        finally:
            async with database.engine.begin() as connection:
                await connection.execute(text("ALTER TABLE hidden RENAME TO users"))

        assert held_connections(database) == 0
        assert await uow.users.count() == 0


class TestTransaction:
    async def test_commit_makes_it_last(self, uow: UnitOfWork, database: AsyncDatabaseManager) -> None:
        await uow.begin()
        await uow.users.add(make_user())
        assert await count_users(database) == 0
        await uow.commit()

        assert await count_users(database) == 1
        assert held_connections(database) == 0

    async def test_reads_see_what_it_has_written(self, uow: UnitOfWork) -> None:
        await uow.begin()
        await uow.users.add(make_user())

        assert await uow.users.find_owner("ana@example.com") is not None

    async def test_leaving_without_a_commit_discards_it(self, database: AsyncDatabaseManager) -> None:
        async with open_unit_of_work(database) as uow:
            await uow.begin()
            await uow.users.add(make_user())

        assert await count_users(database) == 0
        assert held_connections(database) == 0

    async def test_rollback_discards_it_and_another_may_begin(
        self, uow: UnitOfWork, database: AsyncDatabaseManager
    ) -> None:
        await uow.begin()
        await uow.users.add(make_user())
        await uow.rollback()

        await uow.begin()
        await uow.users.add(make_user("bob@example.com"))
        await uow.commit()

        assert await count_users(database) == 1

    async def test_it_begins_once(self, uow: UnitOfWork) -> None:
        await uow.begin()

        with pytest.raises(InvalidRequestError):
            await uow.begin()

    async def test_after_a_conflict_the_next_writer_is_not_kept_waiting(self, database: AsyncDatabaseManager) -> None:
        async with open_unit_of_work(database) as first:
            await first.begin()
            await first.users.add(make_user())
            await first.commit()
        async with open_unit_of_work(database) as second:
            await second.begin()
            with pytest.raises(UserEmailTakenError):
                await second.users.add(make_user())

        async with asyncio.timeout(5), open_unit_of_work(database) as third:
            await third.begin()
            await third.commit()


async def test_a_writer_that_is_cancelled_lets_the_next_one_in(database: AsyncDatabaseManager) -> None:
    begun = asyncio.Event()

    async def write() -> None:
        async with open_unit_of_work(database) as uow:
            await uow.begin()
            begun.set()
            await asyncio.sleep(60)

    writer = asyncio.create_task(write())
    await begun.wait()
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)

    async with asyncio.timeout(5), open_unit_of_work(database) as uow:
        await uow.begin()
        await uow.commit()
    assert held_connections(database) == 0


async def test_a_session_that_is_not_ours_is_refused_with_the_reason(database: AsyncDatabaseManager) -> None:
    async with AsyncSession(database.engine) as session:
        with pytest.raises(TypeError, match="AsyncDatabaseManager"):
            UnitOfWork(session)


async def test_a_plain_session_tracks_what_it_reads(database: AsyncDatabaseManager) -> None:
    async with database.session() as session:
        session.add(make_user())
        await session.commit()

    async with database.session() as session:
        user = await UserRepository(session).get({"email": "ana@example.com"})
        user.name = "Ana"
        await session.commit()

    async with open_unit_of_work(database) as uow:
        owner = await uow.users.find_owner("ana@example.com")
    assert owner is not None
    assert owner.name == "Ana"
