import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from src.core.exceptions import UserEmailTakenError
from src.db import AsyncDatabaseManager
from src.db.base import utc_now
from src.db.models import SessionModel, UserModel
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

    async def test_nor_does_a_commit_insert(self, database: AsyncDatabaseManager) -> None:
        async with database.session() as session:
            UnitOfWork(session)
            session.add(make_user())

            with pytest.raises(RuntimeError, match="begin"):
                await session.commit()

        assert await count_users(database) == 0

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


async def test_in_memory_what_stands_alone_lasts_although_another_session_is_open() -> None:
    database = AsyncDatabaseManager("sqlite+aiosqlite:///:memory:")
    await database.create_tables()
    now = utc_now()
    async with database.session() as open_session:
        user = make_user()
        open_session.add(user)
        await open_session.flush()
        live = SessionModel(
            user_id=user.id, idle_expires_at=now + timedelta(days=1), expires_at=now + timedelta(days=1)
        )
        open_session.add(live)
        await open_session.flush()

        async with open_unit_of_work(database) as uow:
            assert await uow.sessions.rotate(live.id, 1, idle=timedelta(days=1)) is not None

        async with open_unit_of_work(database) as uow:
            session = await uow.sessions.find_live(live.id)
    await database.disconnect()

    assert session is not None
    assert session.generation == 2


async def test_closing_a_file_does_not_wait_for_what_still_runs(tmp_path: Path) -> None:
    database = AsyncDatabaseManager(f"sqlite:///{tmp_path}/users.db")
    endless = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")

    async def run() -> None:
        async with database.session() as session:
            UnitOfWork(session)
            await session.execute(endless)

    running = asyncio.create_task(run())
    await asyncio.sleep(0.2)

    async with asyncio.timeout(5):
        await database.disconnect()
        with pytest.raises(OperationalError):
            await running
        await database.create_tables()  # it connects again
    assert await count_users(database) == 0
    await database.disconnect()


async def test_a_named_database_in_memory_is_one() -> None:
    database = AsyncDatabaseManager("sqlite:///file:shared?mode=memory&cache=shared&uri=true")
    assert database.is_in_memory

    await database.create_tables()

    assert await count_users(database) == 0
    await database.disconnect()
