"""What nobody may notice: a PostgreSQL that was restarted, and work that was abandoned halfway."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from datetime import timedelta
from uuid import uuid4

import pytest
import pytest_asyncio
from sqlalchemy import event, text
from sqlalchemy.pool import QueuePool

from src.db import AsyncDatabaseManager
from src.db.connections import _refuse_closed
from src.db.unit_of_work import open_unit_of_work
from tests.support.service import serve
from tests.support.steps import UNKNOWN_ID

pytestmark = pytest.mark.slow  # a server is stopped and started, or connections are cut, for each

AT_ONCE = 8
OTHERS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"

Work = Callable[[AsyncDatabaseManager], Coroutine[None, None, None]]


async def read(database: AsyncDatabaseManager) -> None:
    async with open_unit_of_work(database) as uow:
        assert await uow.users.count() == 0


async def write(database: AsyncDatabaseManager) -> None:
    async with open_unit_of_work(database) as uow:
        await uow.begin()
        await uow.users.demote_invited()
        await uow.commit()


async def refresh(database: AsyncDatabaseManager) -> None:
    async with open_unit_of_work(database) as uow:
        assert await uow.sessions.rotate(uuid4(), 1, idle=timedelta(days=1)) is None


async def end_connections(url: str) -> None:
    """As a restart does it: the server closes every connection (and is waited for)."""
    other = AsyncDatabaseManager(url)
    async with other.session() as session:
        await session.execute(text(f"SELECT pg_terminate_backend(pid, 5000) {OTHERS}"))
    await other.disconnect()


@pytest_asyncio.fixture
async def postgresql_database(migrated_postgresql: str) -> AsyncGenerator[AsyncDatabaseManager, None]:
    manager = AsyncDatabaseManager(migrated_postgresql, pool_size=AT_ONCE)
    yield manager
    await manager.disconnect()


@pytest.mark.parametrize("work", [read, write, refresh])
async def test_a_restarted_postgresql_gives_nobody_an_error(
    postgresql_database: AsyncDatabaseManager, work: Work
) -> None:
    await asyncio.gather(*(work(postgresql_database) for _ in range(AT_ONCE)))

    await end_connections(str(postgresql_database.url.render_as_string(hide_password=False)))

    await asyncio.gather(*(work(postgresql_database) for _ in range(AT_ONCE)))


@pytest.mark.parametrize("work", [read, write, refresh])
async def test_nor_does_one_whose_end_has_not_been_noticed_yet(
    postgresql_database: AsyncDatabaseManager, work: Work
) -> None:
    event.remove(postgresql_database.connections.autocommit.sync_engine, "checkout", _refuse_closed)
    await asyncio.gather(*(work(postgresql_database) for _ in range(AT_ONCE)))

    await end_connections(str(postgresql_database.url.render_as_string(hide_password=False)))

    await asyncio.gather(*(work(postgresql_database) for _ in range(AT_ONCE)))


async def request(database: AsyncDatabaseManager) -> None:
    async with serve(database) as service:
        response = await service.client.get(f"/api/users/{UNKNOWN_ID}")
    assert response.status_code == 404


@pytest.mark.parametrize("work", [read, write, refresh, request])
@pytest.mark.parametrize("seconds", [0, 0.001, 0.01, 0.1])
async def test_work_that_is_cancelled_leaks_no_connection(
    postgresql_database: AsyncDatabaseManager, work: Work, seconds: float
) -> None:
    other = AsyncDatabaseManager(postgresql_database.url)
    async with other.session() as session:
        await session.execute(text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))
        tasks = [asyncio.create_task(work(postgresql_database)) for _ in range(3 * AT_ONCE)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await other.disconnect()

    assert None not in outcomes  # a request answers 503 when it is cancelled
    pool = postgresql_database.engine.pool
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() == 0
    await asyncio.gather(*(work(postgresql_database) for _ in range(AT_ONCE)))
