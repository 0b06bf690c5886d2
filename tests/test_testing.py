"""The helpers that projects built on this one use."""

import subprocess
import sys

import pytest
from sqlalchemy import Column, Integer, MetaData, StaticPool, Table, inspect, select
from sqlalchemy.exc import OperationalError

from src.db.models import UserModel
from src.db.repositories import UserRepository
from src.testing import (
    create_test_engine,
    create_test_session_factory,
    drop_test_metadata,
    init_test_metadata,
    test_database,
    test_session,
)
from tests.support.factories import make_user


async def test_an_engine_in_memory_keeps_its_one_connection() -> None:
    engine = create_test_engine()
    assert isinstance(engine.pool, StaticPool)

    await init_test_metadata(engine)
    async with create_test_session_factory(engine)() as session:
        assert await UserRepository(session).count() == 0

    await drop_test_metadata(engine)
    async with engine.connect() as connection:
        with pytest.raises(OperationalError):
            await connection.execute(select(UserModel.id))
    await engine.dispose()


async def test_objects_stay_readable_after_a_commit() -> None:
    async with test_session() as session:
        user = await UserRepository(session).add(make_user())
        await session.commit()

        assert user.email == "ana@example.com"


async def test_each_database_is_fresh() -> None:
    for _ in range(2):
        async with test_database() as factory, factory() as session:
            await UserRepository(session).add(make_user())
            await session.commit()


async def test_a_database_is_emptied_at_the_end(empty_url: str) -> None:
    async with test_database(empty_url) as factory, factory() as session:
        await UserRepository(session).add(make_user())
        await session.commit()

    async with test_session(empty_url) as session:
        assert await UserRepository(session).count() == 0


async def add_and_fail(url: str) -> None:
    async with test_session(url) as session:
        await UserRepository(session).add(make_user())
        await session.commit()
        raise ZeroDivisionError


async def test_it_is_emptied_even_if_the_test_fails(empty_url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        await add_and_fail(empty_url)

    async with test_session(empty_url) as session:
        assert await UserRepository(session).count() == 0


async def test_a_metadata_of_ones_own() -> None:
    metadata = MetaData()
    Table("notes", metadata, Column("id", Integer, primary_key=True))

    async with test_session(metadata=metadata) as session:
        connection = await session.connection()
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == ["notes"]


def test_pytest_is_not_needed() -> None:
    code = "import sys; sys.modules['pytest'] = sys.modules['pytest_asyncio'] = None; import src.testing"

    subprocess.run([sys.executable, "-c", code], check=True)
